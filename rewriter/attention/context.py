"""What the steps of a chain may ask and what they record."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.attention.block import MaskStage, Refused, ScoreChain
from stof_onnx.rewriter.graph import Node, Tensor, producer
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

# Operators a score passes through on its way to the Softmax, for telling the score
# side of a binary operator from its mask side.
_PASSED = frozenset({"Add", "Mul", "Div", "Where", "Cast", "Identity", "Sub"})
# And those that make a Softmax attention-like although no step reads them: it is
# reported, with the operator as the reason.
SEEN_THROUGH = _PASSED | {
    "Clip",
    "Concat",
    "Dropout",
    "Max",
    "Min",
    "Neg",
    "Pow",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tanh",
    "Transpose",
    "Unsqueeze",
}
_DEPTH = 10
FLOAT_TYPES = ("float32", "float16", "bfloat16")
_SCORE_RANK = 4


@dataclass
class ChainContext:
    """The graph being read and the chain being filled."""

    sym: SymbolicGraph
    chain: ScoreChain

    def scalar(self, tensor: Tensor) -> float | None:
        """The value of a tensor that is one known number, whatever its rank."""
        try:
            dims = self.sym.shape(tensor)
        except Unliftable:
            return None
        # A longer tensor of equal numbers could enlarge the scores by broadcasting.
        if len(dims) > _SCORE_RANK or any(dim != integer(1) for dim in dims):
            return None
        value = self.sym.element(tensor, (integer(0),) * len(dims))
        if isinstance(value, Const) and value.kind != "bool":
            return float(value.value)
        return None

    def factor(self, node: Node, position: int) -> float | None:
        """The factor that input ``position`` of a Mul or Div is; None if it is no usable one."""
        value = self.scalar(node.inputs[position])
        if value is None or value == 0.0 or not math.isfinite(value):
            return None
        return value if node.op == "Mul" else 1.0 / value

    def require_unscaled(self, node: Node) -> None:
        """Refuse a mask below which the walk has already met a factor."""
        if self.chain.is_scaled:
            raise Refused(node, "the scores are scaled after they were masked here")

    def record(self, stage: MaskStage) -> None:
        """Add a mask above the ones found so far; all must meet the scores in one type."""
        self.round_scores(stage.node, float_type(stage.node.outputs[0]))
        self.chain.stages.insert(0, stage)

    def round_scores(self, node: Node, dtype: str) -> None:
        """Note the type that the scores have here; below they may only have been widened."""
        if self.chain.score_dtype not in ("", dtype):
            raise Refused(node, "the scores change their type between the masks")
        self.chain.score_dtype = dtype

    def reaches_product(
        self, tensor: Tensor, depth: int = _DEPTH, passed: frozenset[str] = _PASSED
    ) -> bool:
        """Whether a tensor is a product of two run-time tensors, scaled and masked."""
        node = producer(tensor)
        if node is None or depth == 0:
            return False
        if node.op == "MatMul":
            return not any(isinstance(t, gs.Constant) for t in node.inputs)
        if node.op not in passed:
            return False
        return any(self.reaches_product(t, depth - 1, passed) for t in node.inputs)


def float_type(tensor: Tensor) -> str:
    """Name of a tensor's type, such as "float32" or "bfloat16"; empty if it has none."""
    if tensor.dtype is None:
        return ""
    try:
        return str(np.dtype(tensor.dtype).name)
    except TypeError:
        from onnx import TensorProto

        return "bfloat16" if tensor.dtype == TensorProto.BFLOAT16 else ""
