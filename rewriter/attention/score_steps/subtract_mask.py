"""A mask or bias subtracted from the scores.

Sub(S, A)  ->  stage "add" with -A
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import MaskStage, Refused
from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Record what is subtracted, unless it depends on the scores itself."""
    if node.op != "Sub":
        return None
    scores, mask = node.inputs
    if context.reaches_product(mask, anyhow=True):
        raise Refused(node, "something that depends on the scores is subtracted from them")
    context.record(MaskStage(node, "add", mask, factor=-1.0), scores)
    return scores
