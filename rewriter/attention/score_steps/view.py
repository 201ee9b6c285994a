"""Views of the scores: heads merged into the batch, groups and windows kept apart.

Reshape(S), Transpose(S), Squeeze(S), Unsqueeze(S)  ->  the same scores at another index
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.block import Refused
from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.graph import Node, Tensor

_VIEWS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


def step(context: ChainContext, node: Node) -> Tensor | None:
    """Go on at the index that the view reads; only views that keep every score."""
    if node.op not in _VIEWS:
        return None
    found = context.sym.view(node.outputs[0], context.index)
    if found is None:
        raise Refused(node, "how it arranges the scores can't be read")
    tensor, context.index = found
    return tensor
