"""One hand-written idiom: its record, its inputs, and short ways to build a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from attention_zoo import handwritten_masks as masks
from attention_zoo.handwritten_export import (
    HIDDEN_INPUT,
    DrawnInput,
    checked,
    draw_documents,
    draw_drop_bool,
    draw_drop_right,
    draw_keep,
    draw_keep_bool,
    draw_lengths,
    draw_normal,
    draw_positions,
    draw_tokens,
    drawn,
)
from attention_zoo.handwritten_layers import (
    Attend,
    SelfAttention,
)
from attention_zoo.model import (
    BATCH,
    COMMON_EXPORTERS,
    HEADS,
    HIDDEN,
    MEMORY,
    SEQUENCE,
    Dtype,
    Exporter,
    ModelOutput,
    ZooBlock,
    ZooModel,
)

ALL_EXPORTERS: tuple[Exporter, ...] = (*COMMON_EXPORTERS, "dynamo20", "dynamo23")
WITH_23: tuple[Exporter, ...] = (*COMMON_EXPORTERS, "dynamo23")
CONTEXT = ModelOutput("context", (BATCH, SEQUENCE, HIDDEN))
NOT_RUN = "ONNX Runtime 1.32 takes no mask [B, 1, 1, S] in Attention: checked by onnx's evaluator"

KEEP = drawn("attention_mask", draw_keep)
KEEP_BOOL = drawn("attention_mask", draw_keep_bool)
DROP = drawn("key_padding_mask", draw_drop_bool)
DROP_RIGHT = drawn("key_padding_mask", draw_drop_right)
LENGTHS = drawn("lengths", draw_lengths, (BATCH,))
DOCUMENTS = drawn("document_ids", draw_documents)
POSITIONS = drawn("position_ids", draw_positions)
TOKENS = drawn("input_ids", draw_tokens)
MEMORY_INPUT = drawn("memory", draw_normal, (BATCH, MEMORY, HIDDEN))
MEMORY_KEEP = drawn("memory_mask", draw_keep, (BATCH, MEMORY))
MEMORY_DROP = drawn("memory_key_padding_mask", draw_drop_bool, (BATCH, MEMORY))


@dataclass(frozen=True)
class Form:
    """One idiom; ``blocks`` are the mask kinds in graph order, other fields as in ``ZooModel``.

    ``given`` are the inputs behind ``hidden``; ``inputs``, where given, are all of them.
    ``not_run`` are the exporters whose files ONNX Runtime can't run. ``static_torchscript``: that
    exporter writes the module's sizes into the file as constants.
    """

    name: str
    build: Callable[[], nn.Module]
    blocks: tuple[str, ...]
    given: tuple[DrawnInput, ...] = ()
    exporters: tuple[Exporter, ...] = COMMON_EXPORTERS
    status: Literal["fused", "refused", "either"] = "fused"
    kv_heads: int = HEADS
    heads: int = HEADS
    outputs: tuple[ModelOutput, ...] = (CONTEXT,)
    inputs: tuple[DrawnInput, ...] = ()
    dtype: Dtype = "float32"
    tolerance: float = 1e-4
    notes: str = ""
    not_run: tuple[Exporter, ...] = ()
    static_torchscript: bool = False


def keeping(name: str) -> tuple[ModelOutput, ...]:
    """Return the usual output with rows that the mask input ``name`` drops left out."""
    return (ModelOutput("context", (BATCH, SEQUENCE, HIDDEN), keep=name),)


def layer(attend: Attend, mask: Callable[[], nn.Module] | None = None) -> Callable[[], nn.Module]:
    """Return a builder of one self-attention with three projections."""
    return lambda: SelfAttention(attend, mask() if mask else None)


def arithmetic(predicate: masks.Predicate) -> Callable[[], nn.Module]:
    """Return a builder of a mask on ``arange``."""
    return lambda: masks.Arithmetic(predicate)


def arithmetic_rank4(predicate: masks.Predicate) -> Callable[[], nn.Module]:
    """Return a builder of a mask on ``arange`` in four axes."""
    return lambda: masks.Arithmetic(predicate, rank=4)


def constant(predicate: masks.Predicate) -> Callable[[], nn.Module]:
    """Return a builder of a mask that is a bool buffer."""
    return lambda: masks.Buffer(masks.table(predicate))


def constant_float(
    predicate: masks.Predicate, fill: float = float("-inf")
) -> Callable[[], nn.Module]:
    """Return a builder of a mask that is a float buffer [1, 1, positions, positions]."""
    return lambda: masks.Buffer(masks.additive(masks.table(predicate), fill), rank=4)


def written(make: Callable[[int], torch.Tensor]) -> Callable[[], nn.Module]:
    """Return a builder of a mask that is an expression of the length."""
    return lambda: masks.Written(make)


def given(make: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[], nn.Module]:
    """Return a builder of a mask that is made from an input."""
    return lambda: masks.FromInput(make)


def form_models(form: Form) -> Iterator[ZooModel]:
    """Yield a form with each of its exporters."""
    for exporter in form.exporters:
        runs = exporter not in form.not_run
        yield checked(
            runs=runs,
            model=ZooModel(
                name=f"hand_{form.name}_{exporter}",
                family="handwritten",
                build=form.build,
                inputs=form.inputs or (HIDDEN_INPUT, *form.given),
                outputs=form.outputs,
                blocks=tuple(
                    ZooBlock(mask, form.heads, form.kv_heads, status=form.status)
                    for mask in form.blocks
                ),
                exporter=exporter,
                dtype=form.dtype,
                static=form.static_torchscript and exporter == "torchscript17",
                tolerance=form.tolerance,
                notes=form.notes if runs else f"{form.notes} {NOT_RUN}".strip(),
            ),
        )
