"""Decoders with KV-cache inputs: for one new token (``past1``) and for several (``past``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attention_zoo.decoders import (
    ALTERNATING,
    CAUSAL,
    GEMMA3_SIZES,
    GPT2_SIZES,
    GROUPED,
    LLAMA_SIZES,
)
from attention_zoo.encoder_decoders import BART_SIZES
from attention_zoo.model import (
    BATCH,
    COMMON_EXPORTERS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    MEMORY,
    PAST,
    SEQUENCE,
    TOTAL,
    Axis,
    ModelInput,
    ModelOutput,
    ZooBlock,
    ZooFamily,
    family_models,
)
from attention_zoo.transformers_models import Settings, builder
from attention_zoo.wrappers import CachedMemoryDecoder, CachedText

# The cache and one new token.
PAST_AND_ONE = Axis("total_sequence", sum_of=("past_sequence",), plus=1)
# Whoever decodes one token sees all that came before: causality hides nothing.
ONE_TOKEN_MASKS = {
    "causal+padding": "padding",
    "causal": "none",
    "causal_sliding_window+padding": "causal_sliding_window+padding",
    "padding": "padding",
}


def cache_inputs(prefix: str, heads: int, length: Axis) -> tuple[ModelInput, ...]:
    """Keys and values of all layers."""
    return tuple(
        ModelInput(f"{prefix}.{layer}.{part}", "float", (BATCH, heads, length, HEAD_DIM))
        for layer in range(LAYERS)
        for part in ("key", "value")
    )


def cache_outputs(heads: int, length: Axis, keep: str | None) -> tuple[ModelOutput, ...]:
    """Keys and values of all layers, the new ones behind the old."""
    return tuple(
        ModelOutput(
            f"present.{layer}.{part}", (BATCH, heads, length, HEAD_DIM), keep=keep, row_axis=2
        )
        for layer in range(LAYERS)
        for part in ("key", "value")
    )


def decoder(
    family: str, name: str, blocks: tuple[ZooBlock, ...], settings: Settings
) -> Iterator[ZooFamily]:
    """Yield a decoder with a cache for several new tokens and for one."""
    heads = blocks[0].kv_num_heads
    for variant, new, total in (("past", SEQUENCE, TOTAL), ("past1", 1, PAST_AND_ONE)):
        seen = blocks
        if variant == "past1":
            seen = tuple(replace(b, mask=ONE_TOKEN_MASKS[b.mask]) for b in blocks)
        yield ZooFamily(
            family,
            builder(CachedText, name, **settings),
            f"{name}Model",
            seen,
            variant=variant,
            exporters=(*COMMON_EXPORTERS, "dynamo23"),
            inputs=(
                ModelInput("input_ids", "ids", (BATCH, new)),
                ModelInput("attention_mask", "mask", (BATCH, total)),
                *cache_inputs("past_key_values", heads, PAST),
            ),
            outputs=(
                ModelOutput("last_hidden_state", (BATCH, new, HIDDEN), keep="attention_mask"),
                *cache_outputs(heads, total, keep="attention_mask"),
            ),
        )


def bart_decoder() -> Iterator[ZooFamily]:
    """Yield BART's decoder with its own cache and the encoder's keys and values."""
    for variant, new, total in (
        ("decoder_past", SEQUENCE, TOTAL),
        ("decoder_past1", 1, PAST_AND_ONE),
    ):
        own = "causal" if variant == "decoder_past" else "none"
        yield ZooFamily(
            "bart",
            builder(CachedMemoryDecoder, "Bart", **BART_SIZES),
            "BartModel",
            (ZooBlock(own), ZooBlock("padding")) * LAYERS,
            variant=variant,
            inputs=(
                ModelInput("input_ids", "ids", (BATCH, new)),
                ModelInput("encoder_attention_mask", "mask", (BATCH, MEMORY)),
                *cache_inputs("past_key_values", HEADS, PAST),
                *cache_inputs("memory_key_values", HEADS, MEMORY),
            ),
            outputs=(
                ModelOutput("last_hidden_state", (BATCH, new, HIDDEN)),
                *cache_outputs(HEADS, total, keep=None),
            ),
        )


FAMILIES = (
    *decoder("gpt2", "GPT2", CAUSAL, {**GPT2_SIZES}),
    *decoder("llama", "Llama", GROUPED, {**LLAMA_SIZES}),
    *decoder("qwen3", "Qwen3", GROUPED, {**LLAMA_SIZES}),
    *decoder("gemma3", "Gemma3Text", ALTERNATING, GEMMA3_SIZES),
    *bart_decoder(),
)
MODELS = tuple(family_models(FAMILIES))
