"""Add of a mask or bias to the scores.

Add(S, A)  ->  stage "add" with A
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import MaskStage, Refused
from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Record the side that isn't the score."""
    if node.op != "Add":
        return None
    sides = [tensor for tensor in node.inputs if context.reaches_product(tensor)]
    if not sides:
        # Behind an operator that no step reads: it will be named as the reason.
        sides = [t for t in node.inputs if context.reaches_product(t, anyhow=True)]
    if len(sides) != 1:
        what = "two products are added" if sides else "no product of query and key is added to"
        raise Refused(node, f"{what}; only one score product is supported")
    scores = sides[0]
    mask = node.inputs[1] if node.inputs[0] is scores else node.inputs[0]
    context.record(MaskStage(node, "add", mask), scores)
    return scores
