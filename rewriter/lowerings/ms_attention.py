"""com.microsoft Attention, as ONNX Runtime's CPU kernel computes it.

    Q, K, V = Split(X W + b)
    Y = Softmax(Q K^T * scale + masks) V                              (masks: ms_masks.py)

past and present hold keys and values in one tensor, [2, B, H, S, D].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stof_onnx.ir.expr import Expr
from stof_onnx.ir.expr.build import add, integer
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.lowerings.ms_masks import kept_keys, mask_stages, not_ahead
from stof_onnx.rewriter.lowerings.scores import (
    Scoring,
    Stage,
    default_scale,
    merge_heads,
    split_heads,
    weigh,
)
from stof_onnx.rewriter.lowerings.subgraph import FLOAT, SubGraph, element_type

_BIAS, _MASK, _PAST, _ATTENTION_BIAS = 2, 3, 4, 5


@dataclass(frozen=True)
class _Sizes:
    """Of the projections; the lengths also as scalar tensors."""

    heads: int
    widths: tuple[int, int, int]
    batch: Expr
    keys: Expr
    query_length: Tensor
    past_length: Tensor | None
    key_length: Tensor


def lower(g: SubGraph) -> Node:
    """Build the sub-graph; returns its Softmax."""
    _refuse_unsupported(g)
    sizes = _sizes(g)
    query, key, value = _operands(g, sizes)
    scale = float(g.attribute("scale", 0.0)) or default_scale(sizes.widths[0] // sizes.heads)
    scoring = Scoring(scale, FLOAT, FLOAT, _stages(g, sizes))
    softmax, weights = weigh(g, query, key, scoring)
    merge_heads(g, g.op("MatMul", weights, value), sizes.widths[2], g.output(0))
    return softmax


def _refuse_unsupported(g: SubGraph) -> None:
    if g.attribute("do_rotary", 0):
        raise g.refusal("attribute do_rotary is set, which the CPU kernel can't check")
    if g.attribute("past_present_share_buffer", 0):
        raise g.refusal("attribute past_present_share_buffer is set")
    g.refuse_inputs({6: "past_sequence_length"})
    if element_type(g.needed(0)) == 0:
        raise g.refusal("the type of its input is unknown")
    if g.input(_PAST) is not None and g.output(1) is None:
        raise g.refusal("past is given without output present")


def _sizes(g: SubGraph) -> _Sizes:
    heads = g.attribute("num_heads", 0)
    rows, weights = g.dims(g.needed(0)), g.dims(g.needed(1))
    if len(rows) != 3 or len(weights) != 2:
        raise g.refusal(f"its input has rank {len(rows)} and its weights {len(weights)}")
    given = g.attribute("qkv_hidden_sizes", None)
    if given is None:
        given = [g.quotient(weights[1], 3, "the width of the weights")] * 3
    widths = (int(given[0]), int(given[1]), int(given[2]))
    if heads < 1 or widths[0] != widths[1] or any(width % heads for width in widths):
        raise g.refusal(f"widths {list(widths)} of query, key and value for {heads} heads")
    past = g.input(_PAST)
    past_length = None if past is None else g.length(past, 3)
    length = g.length(g.needed(0), 1)
    return _Sizes(
        heads=heads,
        widths=widths,
        batch=rows[0],
        keys=add(integer(0) if past is None else g.dims(past)[3], rows[1]),
        query_length=length,
        past_length=past_length,
        key_length=g.total(past_length, length),
    )


def _operands(g: SubGraph, sizes: _Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as [B, H, S, D], the cache before them; writes the new cache."""
    packed = g.op("MatMul", g.needed(0), g.needed(1))
    bias = g.input(_BIAS)
    if bias is not None:
        packed = g.op("Add", packed, bias)
    rows = g.split(packed, sizes.widths, axis=2)
    query, key, value = (
        split_heads(g, row, sizes.heads, width // sizes.heads)
        for row, width in zip(rows, sizes.widths, strict=True)
    )
    past, present = g.input(_PAST), g.output(1)
    if past is not None:
        old_key, old_value = (g.op("Gather", past, g.constant(i, np.int64), axis=0) for i in (0, 1))
        key = g.op("Concat", old_key, key, axis=2)
        value = g.op("Concat", old_value, value, axis=2)
    if present is not None:
        stacked = [g.op("Unsqueeze", tensor, g.ints(0)) for tensor in (key, value)]
        g.op("Concat", *stacked, axis=0, output=present)
    return query, key, value


def _stages(g: SubGraph, sizes: _Sizes) -> list[Stage]:
    kept = causal = None
    mask = g.input(_MASK)
    if mask is not None:
        keys = (sizes.keys, sizes.key_length)
        kept = kept_keys(g, mask, sizes.batch, keys, starts=True)
    if g.attribute("unidirectional", 0) == 1:
        causal = not_ahead(g, sizes.query_length, sizes.past_length, sizes.key_length)
    return mask_stages(g, kept, causal, g.input(_ATTENTION_BIAS))
