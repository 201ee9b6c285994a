"""Cast between float types, and Identity: the score's value stays.

Softmax(Cast(S, to=FLOAT))  ->  Softmax(S), computed in float32 in any case
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import Refused
from stof_onnx.rewriter.attention.context import ChainContext, float_type
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Go on through Identity and widening or equal casts."""
    if node.op == "Identity":
        return node.inputs[0]
    if node.op != "Cast":
        return None
    source, target = float_type(node.inputs[0]), float_type(node.outputs[0])
    if target not in {source, "float32"}:
        raise Refused(node, f"scores are cast from {source or 'an unknown type'} to {target}")
    return node.inputs[0]
