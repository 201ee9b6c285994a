"""Mul or Div of the scores by one number.

Mul(S, c)  ->  scale * c        Div(S, c)  ->  scale / c
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import Refused
from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Fold the factor into the scale; a factor that varies is refused."""
    if node.op not in ("Mul", "Div"):
        return None
    positions = (0, 1) if node.op == "Mul" else (1,)
    for position in positions:
        factor = context.factor(node, position)
        if factor is None:
            continue
        scores = node.inputs[1 - position]
        context.enter(node, scores)
        context.chain.scale *= factor
        return scores
    raise Refused(node, "the scores are scaled by something that is not one finite number")
