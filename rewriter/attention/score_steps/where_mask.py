"""Where that writes a number over masked scores.

Where(keep, S, fill)  ->  stage "keep"        Where(drop, fill, S)  ->  stage "drop"
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import MaskStage, Refused
from stof_onnx.rewriter.attention.context import ChainContext, float_type
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Record the condition and the number."""
    if node.op != "Where":
        return None
    condition, yes, no = node.inputs
    for scores, other, mode in ((yes, no, "keep"), (no, yes, "drop")):
        fill = context.scalar(other)
        if fill is None or not context.reaches_product(scores):
            continue
        context.require_unscaled(node)
        stage = MaskStage(node, "keep" if mode == "keep" else "drop", condition, fill)
        context.chain.stages.insert(0, stage)
        context.chain.score_dtype = float_type(node.outputs[0]) or context.chain.score_dtype
        return scores
    raise Refused(node, "neither side of the Where is one number")
