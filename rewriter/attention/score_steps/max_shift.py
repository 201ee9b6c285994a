"""The row's maximum subtracted before the Softmax, which does so itself.

Sub(S, ReduceMax(S, axis=-1, keepdims=1))  ->  S
"""

from __future__ import annotations

from dataclasses import replace

from stof_onnx.ir.expr import variables
from stof_onnx.rewriter.attention.block import Refused
from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.graph import Node, Tensor, producer
from stof_onnx.rewriter.symbolic.indexing import attribute, axis_of, optional_input


def step(context: ChainContext, node: Node) -> Tensor | None:
    """A number that is the same for all keys of a row changes no weight."""
    if node.op != "Sub" or not shifts_by_maximum(context, node):
        return None
    scores, shift = node.inputs
    if context.chain.softcap:
        raise Refused(node, "the maximum is subtracted before the scores are capped")
    if context.has_sinks:
        raise Refused(node, "the maximum is subtracted from the scores and not from the sinks")
    if any(stage.mode != "add" for stage in context.chain.stages):
        # A row of -inf is NaN from here on, and no number that is written over it mends that.
        raise Refused(node, "the maximum is subtracted before scores are written over")
    used = [variables(expr) for expr in context.index]
    if used and (not used[-1] <= {"k"} or any("k" in names for names in used[:-1])):
        raise Refused(node, "the maximum that is subtracted isn't that of all keys")
    context.chain.nodes.append(producer(shift))
    stages = context.chain.stages
    stages[:] = [replace(stage, is_shifted=True) for stage in stages]
    return scores


def shifts_by_maximum(context: ChainContext, node: Node) -> bool:
    """Whether a Sub subtracts its left operand's maximum over the last axis."""
    scores, shift = node.inputs
    maximum = producer(shift)
    if maximum is None or maximum.op != "ReduceMax" or maximum.inputs[0] is not scores:
        return False
    given = optional_input(maximum, 1)
    axes = context.sym.integers(given) if given is not None else attribute(maximum, "axes", ())
    rank = len(context.sym.shape(scores))
    is_last = [axis_of(axis, rank) for axis in axes or ()] == [rank - 1]
    return is_last and bool(attribute(maximum, "keepdims", 1))
