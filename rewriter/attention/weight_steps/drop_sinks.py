"""The sinks' column cut off the weights (GPT-OSS).

Slice(P, 0, -1, axis=-1)  ->  the weights of the keys alone
"""

from __future__ import annotations

from collections.abc import Sequence

from stof_onnx.rewriter.attention.weight_steps.step import WeightContext, WeightStep
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: WeightContext, tensor: Tensor, users: Sequence[Node]) -> WeightStep | None:
    """Match a Slice that keeps every key and nothing else."""
    users = [user for user in users if user.op != "Shape"]
    if not context.has_sinks or len(users) != 1 or users[0].op != "Slice":
        return None
    output = users[0].outputs[0]
    found = context.sym.view(output, context.index)
    if found is None or found[1] != context.index:
        return None
    kept, whole = context.sym.shape(output), context.sym.shape(tensor)
    if kept[:-1] != whole[:-1] or kept[-1] != context.keys:
        return None
    return WeightStep(output, (users[0],), drops_sinks=True)
