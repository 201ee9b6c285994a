"""com.microsoft GroupQueryAttention, as ONNX Runtime's CPU kernel computes it.

With T = seqlens_k + 1 tokens of a batch after this step and S new ones, the first
    P = max(T - S, 0)
were there before. New keys and values are written to the cache at P, rotary embedding counts
from P, and query q sees key k if

    k <= P + q  and  k < T  and  P + q - k < local_window_size

Without a cache all of them are new. T and P are run-time vectors over the batch.
Rows behind T (a padded prompt) are unspecified; without a window they are as ONNX Runtime's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stof_onnx.ir.expr import Const, to_text
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.lowerings.ms_masks import LOWEST
from stof_onnx.rewriter.lowerings.rotary import Rotation, rotate, rotation
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
from stof_onnx.rewriter.lowerings.subgraph import FLOAT, INT64, SubGraph, element_type

_PAST_KEY, _PAST_VALUE, _SEQLENS, _TOTAL, _COS, _SIN, _POSITIONS = range(3, 10)
_ATTENTION_BIAS, _SINK = 10, 11
_REFUSED_INPUTS = {
    12: "k_scale (a quantized cache)",
    13: "v_scale (a quantized cache)",
    14: "q_norm_weight",
    15: "k_norm_weight",
    16: "query_seqlens",
}


@dataclass(frozen=True)
class _Sizes:
    """Heads and head dim, and as tensors what is known at run time only.

    Attributes:
        length: S, a scalar.
        tokens: T, [B, 1, 1, 1].
        before: P, [B, 1, 1, 1]; None without a cache, where it is 0.
    """

    heads: int
    kv_heads: int
    head_dim: int
    length: Tensor
    tokens: Tensor
    before: Tensor | None


def lower(g: SubGraph) -> Node:
    """Build the sub-graph; returns its Softmax."""
    _refuse_unsupported(g)
    sizes = _sizes(g)
    query, key, value = _new_heads(g, sizes)
    if g.attribute("do_rotary", 0) == 1:
        turn = _rotation(g, sizes)
        query, key = (rotate(g, tensor, sizes.head_dim, turn) for tensor in (query, key))
    key, value = _cached(g, sizes, 1, key), _cached(g, sizes, 2, value)
    key_length = sizes.length if sizes.before is None else g.length(key, 2)
    bias = g.input(_ATTENTION_BIAS)
    sink = g.input(_SINK)
    if sink is None and g.attribute("smooth_softmax", 0) == 1:
        sink = g.constant(np.zeros(sizes.heads), np.float32)
    scoring = Scoring(
        scale=float(g.attribute("scale", 0.0)) or default_scale(sizes.head_dim),
        score_type=FLOAT,
        softmax_type=FLOAT,
        stages=[
            *_bias_stages(g, sizes, key_length),
            KeepStage(_keep(g, sizes, key_length), -math.inf),
        ],
        softcap=float(g.attribute("softcap", 0.0)),
        sink=sink,
        nan_to_zero=sink is None and (bias is not None or _window(g) > 0),
    )
    held = sizes.kv_heads, sizes.heads, sizes.head_dim
    softmax, weights = weigh(g, query, repeat_heads(g, key, *held), scoring)
    context = g.op("MatMul", weights, repeat_heads(g, value, *held))
    merge_heads(g, context, sizes.heads * sizes.head_dim, g.output(0))
    return softmax


def _window(g: SubGraph) -> int:
    return int(g.attribute("local_window_size", -1))


def _refuse_unsupported(g: SubGraph) -> None:
    if g.is_used(3):
        raise g.refusal("its output output_qk, the scores, is used")
    g.refuse_inputs(_REFUSED_INPUTS)
    for name in ("k_quant_type", "v_quant_type"):
        if g.attribute(name, "NONE") not in ("NONE", b"NONE", ""):
            raise g.refusal(f"attribute {name} is {g.attribute(name, '')!r} (a quantized cache)")
    if g.attribute("sliding_window_cache", 0):
        raise g.refusal("attribute sliding_window_cache is set")
    window, is_causal = _window(g), g.attribute("causal", 1) == 1
    if window == 0 or window < -1:
        raise g.refusal(f"attribute local_window_size is {window}")
    if window > 0 and not is_causal:
        raise g.refusal("attribute local_window_size is given beside causal = 0")
    if g.attribute("softcap", 0.0) < 0:
        raise g.refusal(f"attribute softcap is {g.attribute('softcap', 0.0)}")
    if element_type(g.needed(0)) == 0:
        raise g.refusal("the type of its query is unknown")
    for names, first in (("key and value", 1), ("past_key and past_value", _PAST_KEY)):
        if (g.input(first) is None) != (g.input(first + 1) is None):
            raise g.refusal(f"one of {names} is given without the other")
    if g.input(_PAST_KEY) is not None and (g.output(1) is None or g.output(2) is None):
        raise g.refusal("past_key is given without output present_key")
    if g.attribute("do_rotary", 0) == 1 and (g.input(_COS) is None or g.input(_SIN) is None):
        raise g.refusal("do_rotary without cos_cache and sin_cache")


def _sizes(g: SubGraph) -> _Sizes:
    heads, kv_heads = g.attribute("num_heads", 0), g.attribute("kv_num_heads", 0)
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise g.refusal(f"{heads} query heads are not a multiple of {kv_heads} key heads")
    rows = g.dims(g.needed(0))
    if len(rows) != 3:
        raise g.refusal(f"its query has rank {len(rows)}")
    packed = heads + 2 * kv_heads if g.input(1) is None else heads
    length = g.length(g.needed(0), 1)
    one = g.constant(1, np.int64)
    ends = g.common("Add", g.common("Cast", g.needed(_SEQLENS), to=INT64), one)
    tokens = g.common("Reshape", ends, g.ints(-1, 1, 1, 1))
    before = None
    if g.input(_PAST_KEY) is not None:
        difference = g.common("Sub", tokens, length)
        before = g.common("Max", difference, g.constant(0, np.int64))
    return _Sizes(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=g.quotient(rows[2], packed, "the width of query"),
        length=length,
        tokens=tokens,
        before=before,
    )


def _new_heads(g: SubGraph, sizes: _Sizes) -> list[Tensor]:
    """Query, key and value of the new tokens, [B, H, S, D]."""
    held = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    if g.input(1) is None:
        rows = g.split(g.needed(0), [n * sizes.head_dim for n in held], axis=2)
    else:
        rows = [g.needed(0), g.needed(1), g.needed(2)]
    return [
        split_heads(g, row, heads, sizes.head_dim) for row, heads in zip(rows, held, strict=True)
    ]


def _rotation(g: SubGraph, sizes: _Sizes) -> Rotation:
    """The cosines and sines of the new tokens.

    Of position_ids a prompt (S new tokens of S in all) reads the first alone.
    """
    steps, given = g.positions(sizes.length), g.input(_POSITIONS)
    per_batch = sizes.before is not None
    if given is not None:
        flat = g.common("Reshape", given, g.ints(-1))
        first = g.common("Gather", flat, g.constant(0, np.int64))
        positions = g.common("Add", steps, first)
        if per_batch:
            is_prompt = g.common("Equal", _total(g), sizes.length)
            positions = g.common("Where", is_prompt, positions, given)
    elif sizes.before is None:
        positions = steps
    else:
        starts = g.common("Reshape", sizes.before, g.ints(-1, 1))
        positions = g.common("Add", starts, steps)
    return rotation(
        g,
        (g.needed(_COS), g.needed(_SIN)),
        positions,
        per_batch=per_batch,
        interleaved=g.attribute("rotary_interleaved", 0) == 1,
    )


def _total(g: SubGraph) -> Tensor:
    """total_sequence_length as an INT64 vector of length 1."""
    return g.common("Cast", g.common("Reshape", g.needed(_TOTAL), g.ints(1)), to=INT64)


def _rows(g: SubGraph, sizes: _Sizes) -> Tensor:
    """Where the new tokens are: [S, 1], or [B, 1, S, 1] with a cache."""
    rows = g.common("Unsqueeze", g.positions(sizes.length), g.ints(1))
    return rows if sizes.before is None else g.common("Add", rows, sizes.before)


def _cached(g: SubGraph, sizes: _Sizes, which: int, new: Tensor) -> Tensor:
    """The cache after this step, which is an output too: new tokens at P, zeros behind them.

    It is as long as the longer of past_key and total_sequence_length.
    """
    past, present = g.input(_PAST_KEY - 1 + which), g.output(which)
    if past is None or sizes.before is None:
        if present is not None:
            g.op("Identity", new, output=present)
        return new
    missing = g.common("Sub", _total(g), g.length(past, 2))
    missing = g.common("Max", missing, g.ints(0))
    pads = g.common("Concat", g.ints(0, 0, 0, 0, 0, 0), missing, g.ints(0), axis=0)
    zero = g.number(0.0, element_type(new))
    room = g.op("Pad", past, pads, zero)
    room.shape = _cache_shape(g, past)
    columns = g.common("Unsqueeze", g.positions(g.length(room, 2)), g.ints(1))
    old = g.op("Where", g.common("Less", columns, sizes.before), room, zero)
    indices = g.op("Expand", _rows(g, sizes), g.op("Shape", new))
    return g.op("ScatterElements", old, indices, new, axis=2, output=present)


def _cache_shape(g: SubGraph, past: Tensor) -> list[int | str]:
    """One symbol for the length of all caches that are equally long.

    Index arithmetic ends at total_sequence_length, a run-time value.
    """
    dims = [int(dim.value) if isinstance(dim, Const) else to_text(dim) for dim in g.dims(past)]
    total = g.needed(_TOTAL).name
    return [dims[0], dims[1], f"max({total}, {dims[2]})", dims[3]]


def _bias_stages(g: SubGraph, sizes: _Sizes, key_length: Tensor) -> list[Stage]:
    """attention_bias, [B or 1, H or 1, S, total].

    ONNX Runtime takes the lowest number for -inf: a row that holds nothing else is 0.
    """
    bias = g.input(_ATTENTION_BIAS)
    if bias is None:
        return []
    bias = g.cast(bias, FLOAT)
    hidden = g.number(-math.inf, FLOAT)
    is_number = g.common("Greater", bias, g.number(LOWEST, FLOAT))
    bias = g.common("Where", is_number, bias, hidden)
    if sizes.before is not None:
        missing = g.common("Sub", key_length, g.length(g.needed(_ATTENTION_BIAS), 3))
        bias = g.common("Pad", bias, g.vector(0, 0, 0, 0, 0, 0, 0, missing), hidden)
    return [AddStage(bias)]


def _keep(g: SubGraph, sizes: _Sizes, key_length: Tensor) -> Tensor:
    columns = g.positions(key_length)
    conditions = []
    if g.attribute("causal", 1) == 1:
        rows = _rows(g, sizes)
        conditions.append(g.common("LessOrEqual", columns, rows))
        if _window(g) > 0:
            distance = g.common("Sub", rows, columns)
            conditions.append(g.common("Less", distance, g.constant(_window(g), np.int64)))
    conditions.append(g.common("Less", columns, sizes.tokens))
    keep = g.all_of(conditions)
    assert keep is not None
    return keep
