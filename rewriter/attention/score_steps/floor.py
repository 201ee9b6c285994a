"""Scores limited from below by a number that hides (OPT): minus infinity becomes finite.

Max(S, c)  ->  stage "floor" with c
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import MaskStage, Refused
from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Record the number; one that scores could reach is no mask."""
    if node.op != "Max":
        return None
    for position in (0, 1) if len(node.inputs) == 2 else ():
        limit = context.scalar(node.inputs[position])
        if limit is None:
            continue
        scores = node.inputs[1 - position]
        stage = MaskStage(node, "floor", node.inputs[position], fill=limit)
        context.record(stage, scores)
        return scores
    raise Refused(node, "the scores are limited by something that is not one number")
