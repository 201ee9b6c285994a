"""Attention sinks (GPT-OSS): one more logit in each row of the softmax, without a key.

Softmax(Concat(S, sinks, axis=-1))  ->  scores S, sinks
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Expr, substitute, variables
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.attention.block import Refused, ScoreIndex, SinkRead
from stof_onnx.rewriter.attention.context import FLOAT_TYPES, ChainContext, float_type
from stof_onnx.rewriter.attention.score_steps.max_shift import shifts_by_maximum
from stof_onnx.rewriter.graph import Node, Tensor, producer
from stof_onnx.rewriter.symbolic.indexing import attribute, axis_of, broadcast_index
from stof_onnx.rewriter.symbolic.registry import Index


@dataclass(frozen=True)
class SinkColumn:
    """The Concat that brings sinks, and the nodes between it and the Softmax.

    Attributes:
        scores: of the keys.
        sinks: [..., 1] behind them.
        nodes: from the Softmax up to the Concat.
    """

    scores: Tensor
    sinks: Tensor
    nodes: tuple[Node, ...]


def find_sinks(context: ChainContext, softmax: Node) -> SinkColumn | None:
    """The column of sinks in what a Softmax reads; None where there is none."""
    tensor: Tensor = softmax.inputs[0]
    nodes: list[Node] = []
    while (node := producer(tensor)) is not None:
        nodes.append(node)
        if node.op == "Concat":
            return _column(context, node, tuple(nodes))
        if node.op == "Sub" and shifts_by_maximum(context, node):
            nodes.append(producer(node.inputs[1]))
        elif (
            node.op == "Cast" and float_type(node.inputs[0]) not in FLOAT_TYPES
        ) or node.op not in ("Identity", "Cast"):
            return None
        tensor = node.inputs[0]
    return None


def _column(context: ChainContext, concat: Node, nodes: tuple[Node, ...]) -> SinkColumn:
    scores = concat.inputs[0]
    rank = len(context.sym.shape(scores))
    if axis_of(attribute(concat, "axis", 0), rank) != rank - 1 or len(concat.inputs) != 2:
        raise Refused(concat, "scores are joined otherwise than with one column of sinks")
    sinks = concat.inputs[1]
    if context.sym.shape(sinks)[-1] != integer(1):
        raise Refused(concat, "scores are joined with more than one column")
    return SinkColumn(scores, sinks, nodes)


def read_sinks(
    context: ChainContext, column: SinkColumn, at: Index, index: ScoreIndex, heads: Expr
) -> SinkRead:
    """Where the sink of a query head is read.

    Args:
        context: the graph.
        column: the sinks.
        at: index of score (b, h, q, k) in the tensor of scores.
        index: b, h, q and k.
        heads: H.

    Raises:
        Refused: they depend on more than the head.
    """

    def without_key(expr: Expr) -> Expr:
        return substitute(expr, lambda node: integer(0) if node == index.k else None)

    tensor, position = column.sinks, tuple(map(without_key, at))
    position = broadcast_index(position, context.sym.shape(tensor))
    while True:
        step = context.sym.view(tensor, position)
        if step is None:
            node = producer(tensor)
            if node is None or node.op != "Cast" or float_type(node.inputs[0]) not in FLOAT_TYPES:
                break
            step = (node.inputs[0], position)
        tensor, position = step
    used = set().union(*(variables(expr) for expr in position)) if position else set()
    if used - {"h"}:
        raise Refused(column.nodes[-1], "the sinks depend on more than the head")
    is_vector = context.sym.shape(tensor) == (heads,) and position == (index.h,)
    if not is_vector and not isinstance(tensor, gs.Constant):
        raise Refused(column.nodes[-1], f"the sinks {tensor.name!r} are not a vector over heads")
    return SinkRead(tensor, position)
