"""Views of the weights, such as heads merged into the batch for a batched product.

Reshape(P), Transpose(P), Squeeze(P), Unsqueeze(P)  ->  the same weights at another index
"""

from __future__ import annotations

from collections.abc import Sequence

from stof_onnx.rewriter.attention.weight_steps.step import WeightContext, WeightStep
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.symbolic import Unliftable
from stof_onnx.rewriter.symbolic.indexing import index_below


def step(context: WeightContext, tensor: Tensor, users: Sequence[Node]) -> WeightStep | None:
    """Go on behind a view that is the only user; Shape nodes don't count."""
    users = [user for user in users if user.op != "Shape"]
    if len(users) != 1 or users[0].inputs[0] is not tensor:
        return None
    try:
        index = index_below(context.sym, users[0], context.index)
    except Unliftable:
        return None
    return None if index is None else WeightStep(users[0].outputs[0], (users[0],), index)
