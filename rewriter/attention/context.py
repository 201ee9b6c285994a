"""What the steps of a chain may ask and what they record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Var
from stof_onnx.rewriter.attention.block import Refused, ScoreChain
from stof_onnx.rewriter.graph import Node, Tensor, producer
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

# Operators a score passes through on its way to the Softmax, for telling the score
# side of a binary operator from its mask side.
_PASSED = {"Add", "Mul", "Div", "Where", "Cast", "Identity", "Sub"}
_DEPTH = 10


@dataclass
class ChainContext:
    """The graph being read and the chain being filled."""

    sym: SymbolicGraph
    chain: ScoreChain

    def scalar(self, tensor: Tensor) -> float | None:
        """The value of a tensor all of whose elements are one known number."""
        try:
            dims = self.sym.shape(tensor)
        except Unliftable:
            return None
        index = tuple(Var(f"i{axis}", dim) for axis, dim in enumerate(dims))
        value = self.sym.element(tensor, index)
        if isinstance(value, Const) and value.kind != "bool":
            return float(value.value)
        return None

    def require_unscaled(self, node: Node) -> None:
        """Refuse a mask below which the walk has already met a factor."""
        if self.chain.scale != 1.0:
            raise Refused(node, "the scores are scaled after they were masked here")

    def reaches_product(self, tensor: Tensor, depth: int = _DEPTH) -> bool:
        """Whether a tensor is a product of two run-time tensors, scaled and masked."""
        node = producer(tensor)
        if node is None or depth == 0:
            return False
        if node.op == "MatMul":
            return not any(isinstance(t, gs.Constant) for t in node.inputs)
        if node.op not in _PASSED:
            return False
        return any(self.reaches_product(t, depth - 1) for t in node.inputs)


def float_type(tensor: Tensor) -> str:
    """Name of a tensor's type, such as "float32" or "bfloat16"; empty if it has none."""
    if tensor.dtype is None:
        return ""
    try:
        return str(np.dtype(tensor.dtype).name)
    except TypeError:
        from onnx import TensorProto

        return "bfloat16" if tensor.dtype == TensorProto.BFLOAT16 else ""
