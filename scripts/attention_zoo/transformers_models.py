"""Builds models of transformers, and the settings that their configurations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from torch import nn

from attention_zoo.model import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    VOCABULARY,
)

# Keyword arguments of a configuration.
Settings = dict[str, Any]

# The names that most configurations use.
SIZES: Settings = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": POSITIONS,
}
GROUPED_SIZES: Settings = SIZES | {"num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
# The defaults lie outside of our vocabulary.
SPECIAL_TOKENS: Settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def make_model(
    name: str, implementation: str, *, pooler: bool | None = None, **settings: Any
) -> transformers.PreTrainedModel:
    """Build ``<name>Model`` from ``<name>Config``; ``pooler`` None: it has no such choice."""
    config = getattr(transformers, f"{name}Config")(**settings)
    config._attn_implementation = implementation
    model_class = getattr(transformers, f"{name}Model")
    model: transformers.PreTrainedModel = (
        model_class(config) if pooler is None else model_class(config, add_pooling_layer=pooler)
    )
    return model


def builder(
    wrapper: Callable[[Any], nn.Module],
    name: str,
    *,
    pooler: bool | None = None,
    **settings: Any,
) -> Callable[[str], nn.Module]:
    """Return a function from an attention implementation to the wrapped ``<name>Model``."""

    def build(implementation: str) -> nn.Module:
        return wrapper(make_model(name, implementation, pooler=pooler, **settings))

    return build
