"""What all attention operators have in common, in standard operators.

    Y = Softmax(stages(cap(Q * scale x K^T))) x V

in the form that the matcher reads: heads split by Reshape and Transpose, key heads repeated
by Unsqueeze, Expand and Reshape, masks by Add and Where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.lowerings.subgraph import SubGraph, element_type

LAST_AXIS = 2**63 - 1


@dataclass(frozen=True)
class AddStage:
    """scores + tensor."""

    tensor: Tensor


@dataclass(frozen=True)
class KeepStage:
    """Where(condition, scores, fill)."""

    condition: Tensor
    fill: float


Stage = AddStage | KeepStage


@dataclass(frozen=True)
class Scoring:
    """How scores become weights.

    Attributes:
        scale: factor of the scores.
        stages: masks, in the order in which they are applied.
        score_type: ONNX type in which masks meet the scores.
        softmax_type: ONNX type of the softmax.
        softcap: c of c * tanh(scores / c), applied before the masks; 0 for none.
        sink: one more score a head, [H], that takes weight and has no value; None for none.
        nan_to_zero: NaN weights, those of a row without keys, become 0.
    """

    scale: float
    score_type: int
    softmax_type: int
    stages: Sequence[Stage] = field(default=())
    softcap: float = 0.0
    sink: Tensor | None = None
    nan_to_zero: bool = False


def split_heads(
    g: SubGraph, rows_BSE: Tensor, heads: int, head_dim: int, output: Tensor | None = None
) -> Tensor:
    """[B, S, H*D] as [B, H, S, D]."""
    heads_BSHD = g.reshape(rows_BSE, 0, 0, heads, head_dim)
    return g.op("Transpose", heads_BSHD, perm=[0, 2, 1, 3], output=output)


def merge_heads(g: SubGraph, heads_BHSD: Tensor, width: int, output: Tensor | None) -> Tensor:
    """[B, H, S, D] as [B, S, H*D]."""
    heads_BSHD = g.op("Transpose", heads_BHSD, perm=[0, 2, 1, 3])
    return g.reshape(heads_BSHD, 0, 0, width, output=output)


def repeat_heads(g: SubGraph, heads_BHSD: Tensor, held: int, heads: int, head_dim: int) -> Tensor:
    """Each of ``held`` heads for heads/held query heads in a row."""
    if held == heads:
        return heads_BHSD
    single = g.op("Unsqueeze", heads_BHSD, g.ints(2))
    wide = g.op("Expand", single, g.ints(1, 1, heads // held, 1, 1))
    return g.reshape(wide, 0, heads, -1, head_dim)


def weigh(
    g: SubGraph, query_BHSD: Tensor, key_BHSD: Tensor, scoring: Scoring
) -> tuple[Node, Tensor]:
    """The Softmax node and the weights [B, H, Sq, Sk] in query's type."""
    own_type = element_type(query_BHSD)
    # In half precision the scale itself would be rounded, which no operator does.
    query, key = (g.cast(heads, TensorProto.FLOAT) for heads in (query_BHSD, key_BHSD))
    scaled = g.op("Mul", query, g.number(scoring.scale, TensorProto.FLOAT))
    key_BHDS = g.op("Transpose", key, perm=[0, 1, 3, 2])
    scores = g.cast(g.op("MatMul", scaled, key_BHDS), scoring.score_type)
    if scoring.softcap:
        cap = g.number(scoring.softcap, scoring.score_type)
        scores = g.op("Mul", g.op("Tanh", g.op("Div", scores, cap)), cap)
    for stage in scoring.stages:
        if isinstance(stage, AddStage):
            scores = g.op("Add", scores, stage.tensor)
        else:
            fill = g.number(stage.fill, scoring.score_type)
            scores = g.op("Where", stage.condition, scores, fill)
    scores = g.cast(scores, scoring.softmax_type)
    if scoring.sink is not None:
        scores = g.op("Concat", scores, _sink_column(g, query_BHSD, scoring), axis=-1)
    weights = g.op("Softmax", scores, axis=-1)
    softmax = weights.inputs[0]
    if scoring.sink is not None:
        bounds = g.ints(0), g.ints(-1), g.ints(-1)
        weights = g.op("Slice", weights, *bounds)
    if scoring.nan_to_zero:
        zero = g.number(0.0, scoring.softmax_type)
        weights = g.op("Where", g.op("IsNaN", weights), zero, weights)
    return softmax, g.cast(weights, own_type)


def _sink_column(g: SubGraph, query_BHSD: Tensor, scoring: Scoring) -> Tensor:
    """The sink as one more column of the scores, [B, H, Sq, 1]."""
    assert scoring.sink is not None
    column = g.cast(g.reshape(scoring.sink, 1, -1, 1, 1), scoring.softmax_type)
    shape = g.common("Shape", query_BHSD)
    outer = g.common("Slice", shape, g.ints(0), g.ints(3), g.ints(0))
    return g.op("Expand", column, g.common("Concat", outer, g.ints(1), axis=0))


def default_scale(head_dim: int) -> float:
    """1/sqrt(D), rounded to float32 as the operators compute it."""
    return float(np.float32(1.0) / np.sqrt(np.float32(head_dim)))
