"""Softcapping (Gemma 2): scores are squeezed into (-c, c).

Mul(Tanh(Div(S, c)), c)  ->  softcap c
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import Refused
from stof_onnx.rewriter.attention.context import ChainContext, float_type
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: ChainContext, node: Node) -> Tensor | None:
    """The factor below the Tanh is the cap; those above it are part of the scale."""
    if node.op != "Tanh":
        return None
    if context.chain.softcap:
        raise Refused(node, "the scores are capped twice")
    if context.chain.scale <= 0:
        raise Refused(node, f"the scores are capped at {context.chain.scale}")
    # c * tanh(f * s) is a cap of c on scores of scale f * c.
    context.chain.softcap = context.chain.scale
    context.round_scores(node, float_type(node.outputs[0]))
    return node.inputs[0]
