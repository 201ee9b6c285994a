"""Masks of com.microsoft Attention and MultiHeadAttention, as ONNX Runtime's CPU kernels do.

    mask = key is hidden ? mask_filter_value : 0          (from mask_index, key_padding_mask)
    mask = query may not look ahead to key ? lowest : mask                  (unidirectional)
    scores = (Q K^T * scale + attention_bias) + mask

A row whose keys are all hidden so yields the mean of all values where the filter value is
the lowest number, nearly the unmasked softmax where it is the default -10000, and NaN where
it is -inf.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from stof_onnx.ir.expr import Expr
from stof_onnx.ir.expr.build import integer, mul
from stof_onnx.rewriter.graph import Tensor
from stof_onnx.rewriter.lowerings.scores import AddStage, KeepStage, Stage
from stof_onnx.rewriter.lowerings.subgraph import FLOAT, SubGraph, is_one

LOWEST = float(np.finfo(np.float32).min)
DEFAULT_FILTER = -10000.0


def kept_keys(
    g: SubGraph, mask: Tensor, batch: Expr, keys: tuple[Expr, Tensor], starts: bool
) -> Tensor | None:
    """What a mask input keeps, to be broadcast to [B, H, Sq, Sk]; None where it says nothing.

    Args:
        g: the sub-graph.
        mask: [B] (ends), [2*B] (ends, then starts), [B, Sk] or [B, Sq, Sk].
        batch: B.
        keys: Sk as an expression and as a scalar tensor.
        starts: whether the form [2*B] exists.
    """
    dims = g.dims(mask)
    if len(dims) == 1:
        return _between(g, mask, batch, keys[1], starts)
    if len(dims) == 2 and is_one(dims[1]) and not is_one(keys[0]):
        return None
    if len(dims) not in (2, 3):
        raise g.refusal(f"its mask {mask.name!r} has rank {len(dims)}")
    kept = g.common("Greater", mask, g.constant(0, np.int32))
    axes = (1, 2) if len(dims) == 2 else (1,)
    return g.common("Unsqueeze", kept, g.ints(*axes))


def _between(g: SubGraph, mask: Tensor, batch: Expr, key_length: Tensor, starts: bool) -> Tensor:
    """start <= key < end for each batch, [B, 1, 1, Sk]."""
    (length,) = g.dims(mask)
    columns = g.common("Cast", g.positions(key_length), to=TensorProto.INT32)
    each = g.common("Reshape", mask, g.ints(-1, 1, 1, 1))
    if length == batch:
        return g.common("Less", columns, each)
    if not starts or length != mul(integer(2), batch):
        known = "the batch size" + (" or twice that" if starts else "")
        raise g.refusal(f"the length of its mask {mask.name!r} is not known to be {known}")
    pairs = g.common("Reshape", mask, g.ints(2, -1, 1, 1, 1))
    ends, begins = (g.common("Gather", pairs, g.constant(i, np.int64), axis=0) for i in (0, 1))
    before = g.common("Less", columns, ends)
    return g.common("And", before, g.common("GreaterOrEqual", columns, begins))


def not_ahead(
    g: SubGraph, query_length: Tensor, past_length: Tensor | None, keys: Tensor
) -> Tensor:
    """key <= query + past, [Sq, Sk]."""
    rows = g.common("Unsqueeze", g.positions(query_length), g.ints(1))
    if past_length is not None:
        rows = g.common("Add", rows, past_length)
    return g.common("LessOrEqual", g.positions(keys), rows)


def mask_stages(
    g: SubGraph, kept: Tensor | None, causal: Tensor | None, bias: Tensor | None
) -> list[Stage]:
    """Padding, causality and attention_bias in the kernels' order, for float32 scores."""
    filter_value = float(np.float32(g.attribute("mask_filter_value", DEFAULT_FILTER)))
    stages: list[Stage] = [] if bias is None else [AddStage(g.cast(bias, FLOAT))]
    if kept is None or filter_value == LOWEST:
        keep = g.all_of([condition for condition in (causal, kept) if condition is not None])
        return stages if keep is None else [*stages, KeepStage(keep, LOWEST)]
    stages.append(_filtered(g, kept, filter_value))
    return stages if causal is None else [*stages, KeepStage(causal, LOWEST)]


def _filtered(g: SubGraph, kept: Tensor, value: float) -> Stage:
    """The filter value added to hidden keys."""
    if math.isinf(value):
        return KeepStage(kept, value)
    return AddStage(g.common("Where", kept, g.number(0.0, FLOAT), g.number(value, FLOAT)))
