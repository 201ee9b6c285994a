"""Where that writes a number over masked scores.

Where(keep, S, fill)  ->  stage "keep"        Where(drop, fill, S)  ->  stage "drop"
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import MaskStage, Refused
from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Record the condition and the number."""
    if node.op != "Where":
        return None
    condition, yes, no = node.inputs
    for scores, other, mode in ((yes, no, "keep"), (no, yes, "drop")):
        fill = context.scalar(other)
        if fill is None or not context.reaches_product(scores, anyhow=True):
            continue
        stage = MaskStage(node, "keep" if mode == "keep" else "drop", condition, fill=fill)
        context.record(stage, scores)
        return scores
    raise Refused(node, "neither side of the Where is one number")
