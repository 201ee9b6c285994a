"""com.microsoft MultiHeadAttention, as ONNX Runtime's CPU kernel computes it.

    Y = Softmax((Q + bq) (K + bk)^T * scale + masks) (V + bv)          (masks: ms_masks.py)

unidirectional counts from the first key; with fewer queries than keys the kernel leaves the
last row unmasked, and that form is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

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
from stof_onnx.rewriter.lowerings.subgraph import FLOAT, SubGraph, element_type, is_one

_BIAS, _MASK, _ATTENTION_BIAS, _PAST_KEY, _PAST_VALUE = 3, 4, 5, 6, 7


@dataclass(frozen=True)
class _Sizes:
    """Of query and key; the lengths also as scalar tensors."""

    heads: int
    head_dim: int
    value_dim: int
    batch: Expr
    queries: Expr
    new_keys: Expr
    keys: Expr
    query_length: Tensor
    past_length: Tensor | None
    key_length: Tensor


def lower(g: SubGraph) -> Node:
    """Build the sub-graph; returns its Softmax."""
    _refuse_unsupported(g)
    sizes = _sizes(g)
    query, key, value = _operands(g, sizes)
    scale = float(g.attribute("scale", 0.0)) or default_scale(sizes.head_dim)
    scoring = Scoring(scale, FLOAT, FLOAT, _stages(g, sizes))
    softmax, weights = weigh(g, query, key, scoring)
    context = g.op("MatMul", weights, value)
    merge_heads(g, context, sizes.heads * sizes.value_dim, g.output(0))
    return softmax


def _refuse_unsupported(g: SubGraph) -> None:
    if g.is_used(3):
        raise g.refusal("its output qk, the scores, is used")
    g.refuse_inputs({8: "past_sequence_length", 9: "cache_indirection"})
    if element_type(g.needed(0)) == 0:
        raise g.refusal("the type of its query is unknown")
    for position, name in ((1, "key"), (2, "value")):
        if g.input(position) is None:
            raise g.refusal(f"{name} is packed into another input")
    if (g.input(_PAST_KEY) is None) != (g.input(_PAST_VALUE) is None):
        raise g.refusal("one of past_key and past_value is given without the other")
    if g.input(_PAST_KEY) is not None and (g.output(1) is None or g.output(2) is None):
        raise g.refusal("past_key is given without output present_key, and then ignored")


def _sizes(g: SubGraph) -> _Sizes:
    query, key, value = (g.dims(g.needed(i)) for i in range(3))
    ranks = len(query), len(key), len(value)
    if ranks not in ((3, 3, 3), (3, 4, 4)):
        raise g.refusal(f"query, key and value of ranks {ranks} (packed forms) are not supported")
    heads = g.attribute("num_heads", 0)
    is_headed = len(key) == 4
    past_key = g.input(_PAST_KEY)
    if is_headed and (past_key is not None or g.input(_BIAS) is not None):
        raise g.refusal("key of rank 4 is given beside past_key or bias")
    past = integer(0) if past_key is None else g.dims(past_key)[2]
    past_length = None if past_key is None else g.length(past_key, 2)
    return _Sizes(
        heads=heads,
        head_dim=g.quotient(query[2], heads, "the width of query"),
        value_dim=(
            g.fixed(value[3], "the head dim of value")
            if is_headed
            else g.quotient(value[2], heads, "the width of value")
        ),
        batch=query[0],
        queries=query[1],
        new_keys=key[-2],
        keys=add(past, key[-2]),
        query_length=g.length(g.needed(0), 1),
        past_length=past_length,
        key_length=g.total(past_length, g.length(g.needed(1), len(key) - 2)),
    )


def _operands(g: SubGraph, sizes: _Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as [B, H, S, D], the cache before them; writes the new cache."""
    rows = [g.needed(0), g.needed(1), g.needed(2)]
    if len(g.dims(rows[1])) == 4:
        for i in (1, 2):
            if (present := g.output(i)) is not None:
                g.op("Identity", rows[i], output=present)
        return split_heads(g, rows[0], sizes.heads, sizes.head_dim), rows[1], rows[2]
    bias = g.input(_BIAS)
    if bias is not None:
        rows = [
            g.op("Add", row, part) for row, part in zip(rows, _parts(g, bias, sizes), strict=True)
        ]
    query = split_heads(g, rows[0], sizes.heads, sizes.head_dim)
    cached = []
    for i, head_dim in ((1, sizes.head_dim), (2, sizes.value_dim)):
        past, present = g.input(_PAST_KEY - 1 + i), g.output(i)
        if past is None:
            cached.append(split_heads(g, rows[i], sizes.heads, head_dim, present))
        else:
            new = split_heads(g, rows[i], sizes.heads, head_dim)
            cached.append(g.op("Concat", past, new, axis=2, output=present))
    return query, cached[0], cached[1]


def _parts(g: SubGraph, bias: Tensor, sizes: _Sizes) -> list[Tensor]:
    """The biases of query, key and value."""
    width = sizes.heads * sizes.head_dim
    lengths = [width, width, sizes.heads * sizes.value_dim]
    if not isinstance(bias, gs.Constant):
        return g.split(bias, lengths, axis=0)
    values = bias.values
    starts = (0, width, 2 * width)
    return [
        g.constant(values[start : start + length], values.dtype)
        for start, length in zip(starts, lengths, strict=True)
    ]


def _stages(g: SubGraph, sizes: _Sizes) -> list[Stage]:
    kept = causal = None
    mask = g.input(_MASK)
    if mask is not None:
        keys = (sizes.keys, sizes.key_length)
        kept = kept_keys(g, mask, sizes.batch, keys, starts=False)
    if g.attribute("unidirectional", 0) == 1 and not is_one(sizes.queries):
        if sizes.queries != sizes.new_keys:
            raise g.refusal("unidirectional, and key is not known to be as long as query")
        causal = not_ahead(g, sizes.query_length, sizes.past_length, sizes.key_length)
    return mask_stages(g, kept, causal, g.input(_ATTENTION_BIAS))
