"""Cast between float types, Identity, and Dropout at inference: the score's value stays.

Softmax(Cast(S, to=FLOAT))  ->  Softmax(S), computed in float32 in any case
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import Refused
from stof_onnx.rewriter.attention.context import FLOAT_TYPES, ChainContext, float_type
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.symbolic.indexing import is_inference_dropout


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Go on through Identity and Cast; a narrowing one sets the type of the masks."""
    if node.op == "Identity" or (node.op == "Dropout" and is_inference_dropout(node)):
        return node.inputs[0]
    if node.op != "Cast":
        return None
    source, target = float_type(node.inputs[0]), float_type(node.outputs[0])
    if target not in FLOAT_TYPES:
        raise Refused(node, f"the scores are cast to {target or 'an unknown type'}")
    if target not in {source, "float32"}:
        context.round_scores(node, target)
    return node.inputs[0]
