"""PyTorch's guard for rows without a key.

Where(IsNaN(P), 0, P)  ->  nan_to_zero        also with a Cast of the condition to bool
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from stof_onnx.ir.expr import Const
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.attention.weight_steps.step import WeightContext, WeightStep
from stof_onnx.rewriter.graph import Node, Tensor


def step(context: WeightContext, tensor: Tensor, users: Sequence[Node]) -> WeightStep | None:
    """Match IsNaN and Where as the only two users."""
    by_op = {user.op: user for user in users}
    if len(users) != 2 or set(by_op) != {"IsNaN", "Where"}:
        return None
    where = by_op["Where"]
    condition, yes, no = where.inputs
    nodes = _from_condition(condition, by_op["IsNaN"])
    if nodes is None or no is not tensor:
        return None
    # A longer tensor of zeros could enlarge the weights by broadcasting.
    sym = context.sym
    dims = sym.shape(yes)
    if len(dims) > len(sym.shape(tensor)) or any(dim != integer(1) for dim in dims):
        return None
    if sym.element(yes, (integer(0),) * len(dims)) != Const(0.0):
        return None
    return WeightStep(where.outputs[0], (*nodes, where), nan_to_zero=True)


def _from_condition(condition: Tensor, is_nan: Node) -> list[Node] | None:
    """The nodes from the Where's condition up to its IsNaN; each must serve nothing else."""
    nodes: list[Node] = []
    while condition.inputs and len(condition.outputs) == 1:
        node = condition.inputs[0]
        nodes.append(node)
        if node is is_nan:
            return nodes
        is_cast = node.op == "Cast" and node.attrs.get("to") == TensorProto.BOOL
        if not is_cast and node.op != "Identity":
            return None
        condition = node.inputs[0]
    return None
