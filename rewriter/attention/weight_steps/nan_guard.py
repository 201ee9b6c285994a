"""PyTorch's guard for rows without a key.

Where(IsNaN(P), 0, P)  ->  nan_to_zero
"""

from __future__ import annotations

from collections.abc import Sequence

from stof_onnx.ir.expr import Const
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.attention.weight_steps.step import WeightContext, WeightStep
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: WeightContext, tensor: Tensor, users: Sequence[Node]) -> WeightStep | None:
    """Match IsNaN and Where as the only two users."""
    by_op = {user.op: user for user in users}
    if len(users) != 2 or set(by_op) != {"IsNaN", "Where"}:
        return None
    is_nan, where = by_op["IsNaN"], by_op["Where"]
    condition, yes, no = where.inputs
    if condition is not is_nan.outputs[0] or no is not tensor or len(condition.outputs) != 1:
        return None
    # A longer tensor of zeros could enlarge the weights by broadcasting.
    sym = context.sym
    dims = sym.shape(yes)
    if len(dims) > len(sym.shape(tensor)) or any(dim != integer(1) for dim in dims):
        return None
    if sym.element(yes, (integer(0),) * len(dims)) != Const(0.0):
        return None
    return WeightStep(where.outputs[0], (is_nan, where), nan_to_zero=True)
