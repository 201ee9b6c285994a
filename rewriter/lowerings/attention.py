"""ONNX Attention (opsets 23, 24 and 25).

    Y = Softmax(softcap(Q K^T * scale) + attn_mask, causal, window, length) V

by the specification as clarified in onnx 1.23 (onnx/defs/nn): the softcap comes before the
masks; query i sits at key i + offset, where offset is past's length, or
nonpad_kv_seqlen - Sq, or 0; a row without keys is 0. The specification scales Q and K by
sqrt(scale) each, here Q is scaled, which rounds less.

Float masks: float_masks.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from stof_onnx.ir.expr import Const, Expr
from stof_onnx.ir.expr.build import add, integer
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.lowerings.float_masks import FloatMask, read_float_mask
from stof_onnx.rewriter.lowerings.scores import (
    AddStage,
    KeepStage,
    Scoring,
    Stage,
    default_scale,
    merge_heads,
    repeat_heads,
    split_heads,
    weigh,
)
from stof_onnx.rewriter.lowerings.subgraph import BOOL, SubGraph, element_type

_MASK, _PAST_KEY, _PAST_VALUE, _NONPAD = 3, 4, 5, 6
_SOFTMAX_TYPES = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
)


@dataclass(frozen=True)
class _Sizes:
    """Heads and dims as numbers; lengths as expressions and as scalar tensors.

    ``past`` is 0, and ``past_length`` None, without a cache.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    queries: Expr
    past: Expr
    keys: Expr
    query_length: Tensor
    past_length: Tensor | None
    key_length: Tensor


def lower(g: SubGraph) -> Node:
    """Build the sub-graph; returns its Softmax."""
    _refuse_unsupported(g)
    sizes = _sizes(g)
    is_flat = len(g.dims(g.needed(0))) == 3
    query, key, value = _operands(g, sizes, is_flat)
    stages, can_be_empty = _stages(g, sizes)
    own_type = element_type(query)
    scale = g.attribute("scale", None)
    softmax, weights = weigh(
        g,
        query,
        repeat_heads(g, key, sizes.kv_heads, sizes.heads, sizes.head_dim),
        Scoring(
            scale=default_scale(sizes.head_dim) if scale is None else float(scale),
            score_type=own_type,
            softmax_type=g.attribute("softmax_precision", own_type),
            stages=stages,
            softcap=float(g.attribute("softcap", 0.0)),
            nan_to_zero=can_be_empty,
        ),
    )
    values = repeat_heads(g, value, sizes.kv_heads, sizes.heads, sizes.value_dim)
    if is_flat:
        context = g.op("MatMul", weights, values)
        merge_heads(g, context, sizes.heads * sizes.value_dim, g.output(0))
    else:
        g.op("MatMul", weights, values, output=g.output(0))
    return softmax


def _refuse_unsupported(g: SubGraph) -> None:
    if g.is_used(3):
        raise g.refusal("its output qk_matmul_output, the scores, is used")
    if element_type(g.needed(0)) == 0:
        raise g.refusal("the type of its query is unknown")
    if len({element_type(g.needed(i)) for i in range(3)}) != 1:
        raise g.refusal("query, key and value have different types")
    scale, softcap = g.attribute("scale", 1.0), g.attribute("softcap", 0.0)
    if not (scale > 0 and math.isfinite(scale)):
        raise g.refusal(f"attribute scale is {scale}, whose square root it takes")
    if softcap < 0:
        raise g.refusal(f"attribute softcap is {softcap}")
    precision = g.attribute("softmax_precision", TensorProto.FLOAT)
    if precision not in _SOFTMAX_TYPES:
        raise g.refusal(f"attribute softmax_precision is {precision}, no float type it may be")
    for side in ("left_window_size", "right_window_size"):
        if g.attribute(side, -1) < -1:
            raise g.refusal(f"attribute {side} is {g.attribute(side, -1)}")
    if (g.input(_PAST_KEY) is None) != (g.input(_PAST_VALUE) is None):
        raise g.refusal("one of past_key and past_value is given without the other")
    if g.input(_NONPAD) is not None and g.input(_PAST_KEY) is not None:
        raise g.refusal("nonpad_kv_seqlen is given beside past_key")


def _sizes(g: SubGraph) -> _Sizes:
    query, key, value = (g.dims(g.needed(i)) for i in range(3))
    if {len(query), len(key), len(value)} not in ({3}, {4}):
        raise g.refusal("query, key and value are not all of rank 3 or all of rank 4")
    past_key = g.input(_PAST_KEY)
    past = integer(0) if past_key is None else g.dims(past_key)[2]
    if len(query) == 4:
        heads = g.fixed(query[1], "the number of query heads")
        kv_heads = g.fixed(key[1], "the number of key heads")
        head_dim, value_dim = (g.fixed(dims[3], "the head dim") for dims in (query, value))
    else:
        heads, kv_heads = g.attribute("q_num_heads", 0), g.attribute("kv_num_heads", 0)
        if heads < 1 or kv_heads < 1:
            raise g.refusal("inputs of rank 3 need the attributes q_num_heads and kv_num_heads")
        head_dim = g.quotient(query[2], heads, "the width of query")
        value_dim = g.quotient(value[2], kv_heads, "the width of value")
    if heads % kv_heads:
        raise g.refusal(f"{heads} query heads are not a multiple of {kv_heads} key heads")
    past_length = None if past_key is None else g.length(past_key, 2)
    return _Sizes(
        heads,
        kv_heads,
        head_dim,
        value_dim,
        queries=query[-2],
        past=past,
        keys=add(past, key[-2]),
        query_length=g.length(g.needed(0), len(query) - 2),
        past_length=past_length,
        key_length=g.total(past_length, g.length(g.needed(1), len(key) - 2)),
    )


def _operands(g: SubGraph, sizes: _Sizes, is_flat: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as [B, H, S, D], the cache before them; writes the new cache."""
    query = g.needed(0)
    if is_flat:
        query = split_heads(g, query, sizes.heads, sizes.head_dim)
    cached = []
    for i, head_dim in ((1, sizes.head_dim), (2, sizes.value_dim)):
        new, past, present = g.needed(i), g.input(_MASK + i), g.output(i)
        if past is not None:
            if is_flat:
                new = split_heads(g, new, sizes.kv_heads, head_dim)
            cached.append(g.op("Concat", past, new, axis=2, output=present))
        elif is_flat:
            cached.append(split_heads(g, new, sizes.kv_heads, head_dim, present))
        else:
            if present is not None:
                g.op("Identity", new, output=present)
            cached.append(new)
    return query, cached[0], cached[1]


def _stages(g: SubGraph, sizes: _Sizes) -> tuple[list[Stage], bool]:
    """The masks, and whether a row may see no key."""
    stages: list[Stage] = []
    conditions: list[Tensor] = []
    mask = g.input(_MASK)
    if mask is not None:
        mask = _padded(g, mask, sizes)
        if element_type(mask) == BOOL:
            conditions.append(mask)
        else:
            read = read_float_mask(g, mask) if mask is g.input(_MASK) else FloatMask([], [mask])
            conditions += read.conditions
            own_type = element_type(g.needed(0))
            stages += [AddStage(g.cast(bias, own_type)) for bias in read.biases]
    bounds, sees_own = _bounds(g, sizes)
    lengths = g.input(_NONPAD)
    if lengths is not None:
        columns = g.positions(sizes.key_length)
        each = g.common("Reshape", lengths, g.ints(-1, 1, 1, 1))
        conditions.append(g.common("Less", columns, each))
    keep = g.all_of([*conditions, *bounds])
    if keep is not None:
        stages.append(KeepStage(keep, -math.inf))
    return stages, bool(stages) and (mask is not None or bool(conditions) or not sees_own)


def _bounds(g: SubGraph, sizes: _Sizes) -> tuple[list[Tensor], bool]:
    """What is_causal and the windows keep, and whether every row then sees a key."""
    is_causal = g.attribute("is_causal", 0) == 1
    left, right = g.attribute("left_window_size", -1), g.attribute("right_window_size", -1)
    if not is_causal and left < 0 and right < 0:
        return [], True
    rows = g.common("Unsqueeze", g.positions(sizes.query_length), g.ints(1))
    lengths = g.input(_NONPAD)
    if sizes.past_length is not None:
        rows = g.common("Add", rows, sizes.past_length)
    elif lengths is not None:
        offset = g.common("Sub", lengths, sizes.query_length)
        rows = g.common("Add", rows, g.common("Reshape", offset, g.ints(-1, 1, 1, 1)))
    columns = g.positions(sizes.key_length)
    bounds = []
    if is_causal:
        bounds.append(g.common("LessOrEqual", columns, rows))
    for size, ends in ((left, (rows, columns)), (right, (columns, rows))):
        if size >= 0:
            distance = g.common("Sub", *ends)
            limit = g.constant(size, np.int64)
            bounds.append(g.common("LessOrEqual", distance, limit))
    starts_inside = lengths is None and left < 0
    has_own_key = lengths is None and sizes.keys == add(sizes.past, sizes.queries)
    return bounds, starts_inside or has_own_key


def _padded(g: SubGraph, mask: Tensor, sizes: _Sizes) -> Tensor:
    """The mask at all keys: from opset 24 on the missing last ones are not attended."""
    dims = g.dims(mask)
    if len(dims) > 4:
        raise g.refusal(f"attn_mask has rank {len(dims)}")
    if g.opset < 24 or not dims or dims[-1] == sizes.keys:
        return mask
    if isinstance(dims[-1], Const) and isinstance(sizes.keys, Const):
        missing: int | Tensor = int(sizes.keys.value) - int(dims[-1].value)
    else:
        missing = g.common("Sub", sizes.key_length, g.length(mask, len(dims) - 1))
    pads = g.vector(*[0] * (2 * len(dims) - 1), missing)
    if element_type(mask) == BOOL:
        return g.common("Pad", mask, pads, g.constant(False, np.bool_))
    hidden = g.cast(g.number(-math.inf, TensorProto.FLOAT), element_type(mask))
    return g.common("Pad", mask, pads, hidden)
