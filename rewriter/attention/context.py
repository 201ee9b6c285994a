"""What the steps of a chain may ask and what they record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Expr, Var, to_text
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.attention.block import MaskStage, Refused, ScoreChain
from stof_onnx.rewriter.attention.products import PRODUCT_OPS
from stof_onnx.rewriter.graph import Node, Tensor, producer
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from stof_onnx.rewriter.symbolic.indexing import broadcast_index
from stof_onnx.rewriter.symbolic.registry import Index, Shape

# Operators a score passes through on its way to the Softmax, for telling the score
# side of a binary operator from its mask side.
_PASSED = frozenset(
    {
        "Add",
        "Cast",
        "Div",
        "Expand",
        "Flatten",
        "Identity",
        "Max",
        "Mul",
        "Reshape",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
# And those that make a Softmax attention-like although no step reads them: it is
# reported, with the operator as the reason.
SEEN_THROUGH = _PASSED | {"Clip", "Concat", "Dropout", "Min", "Neg", "Pow", "Slice"}
_DEPTH = 14
FLOAT_TYPES = ("float32", "float16", "bfloat16")


@dataclass
class ChainContext:
    """The graph being read and the chain being filled.

    Attributes:
        sym: reading of the graph.
        chain: filled on the way.
        index: of score (b, h, q, k) in the tensor that the walk has reached.
        has_sinks: whether the Softmax also runs over sinks, which the scores are joined with.
        reaches: what :meth:`reaches_product` found, by tensor and operators.
    """

    sym: SymbolicGraph
    chain: ScoreChain
    index: Index = ()
    has_sinks: bool = False
    reaches: dict[tuple[int, bool], bool] = field(default_factory=dict)

    def scalar(self, tensor: Tensor) -> float | None:
        """The value of a tensor that is one known number, whatever its rank."""
        try:
            dims = self.sym.shape(tensor)
        except Unliftable:
            return None
        if any(dim != integer(1) for dim in dims):
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

    def enter(self, node: Node, scores: Tensor) -> None:
        """Go from an elementwise node to its score operand, which it may not enlarge.

        Raises:
            Refused: the node's other operands make the scores larger.
        """
        self.require_same_size(node, scores)
        self.index = broadcast_index(self.index, self.sym.shape(scores))

    def require_same_size(self, node: Node, scores: Tensor) -> None:
        """Check that a node's output has the size of its score operand.

        Where another operand brings a dimension of another name, the two are taken to be equal.
        """
        own = self.sym.shape(scores)
        for tensor in node.inputs:
            if tensor is scores:
                continue
            other = self.sym.shape(tensor)
            for dim in other[: max(0, len(other) - len(own))]:
                if dim != integer(1):
                    raise Refused(node, f"the mask makes scores of rank {len(own)} larger")
            for ours, theirs in zip(reversed(own), reversed(other), strict=False):
                self._require_equal(node, ours, theirs)

    def _require_equal(self, node: Node, ours: Expr, theirs: Expr) -> None:
        """Equal dimensions, or such as must be equal for the graph to run."""
        if theirs in (ours, integer(1)):
            return
        a, b = to_text(ours), to_text(theirs)
        if ours == integer(1) or (isinstance(ours, Const) and isinstance(theirs, Const)):
            raise Refused(node, f"the mask makes {a} of the scores {b}")
        self.chain.assumptions[f"dimensions {a!r} and {b!r} are taken to be equal"] = None
        if isinstance(theirs, Var):
            self.chain.equal.setdefault(theirs.name, ours)

    def record(self, stage: MaskStage, scores: Tensor) -> None:
        """Add a mask above the ones found so far; all must meet the scores in one type."""
        if self.chain.softcap:
            raise Refused(stage.node, "the scores are masked before they are capped")
        self.round_scores(stage.node, float_type(stage.node.outputs[0]))
        self.require_same_size(stage.node, scores)
        dims = self.sym.shape(stage.tensor)
        index = self._mask_index(dims)
        factor = self.chain.scale * stage.factor
        self.chain.stages.insert(
            0, MaskStage(stage.node, stage.mode, stage.tensor, index, stage.fill, factor)
        )
        self.index = broadcast_index(self.index, self.sym.shape(scores))

    def _mask_index(self, dims: Shape) -> Index:
        """Leading axes of size 1 may make the mask's rank greater than that of the scores."""
        index = self.index
        if len(dims) > len(index):
            index = (*(integer(0),) * (len(dims) - len(index)), *index)
        return broadcast_index(index, dims)

    def round_scores(self, node: Node, dtype: str) -> None:
        """Note the type that the scores have here; below they may only have been widened."""
        if self.chain.score_dtype not in ("", dtype):
            raise Refused(node, "the scores change their type between the masks")
        self.chain.score_dtype = dtype

    def reaches_product(self, tensor: Tensor, anyhow: bool = False, depth: int = _DEPTH) -> bool:
        """Whether a tensor is a product of two run-time tensors, scaled and masked.

        Args:
            tensor: to look above.
            anyhow: also through operators that no step reads.
            depth: how many operators to look at, at most.
        """
        node = producer(tensor)
        if node is None or depth == 0:
            return False
        if node.op in PRODUCT_OPS:
            return not any(isinstance(t, gs.Constant) for t in node.inputs)
        if node.op not in (SEEN_THROUGH if anyhow else _PASSED):
            return False
        key = (id(tensor), anyhow)
        if key not in self.reaches:
            inputs = node.inputs[:1] if node.op in _ONE_SOURCE else node.inputs
            self.reaches[key] = any(self.reaches_product(t, anyhow, depth - 1) for t in inputs)
        return self.reaches[key]


# Their other inputs are shapes and numbers.
_ONE_SOURCE = frozenset({"Expand", "Reshape", "Slice", "Squeeze", "Unsqueeze", "Dropout", "Clip"})


def float_type(tensor: Tensor) -> str:
    """Name of a tensor's type, such as "float32" or "bfloat16"; empty if it has none."""
    if tensor.dtype is None:
        return ""
    try:
        return str(np.dtype(tensor.dtype).name)
    except TypeError:
        from onnx import TensorProto

        return "bfloat16" if tensor.dtype == TensorProto.BFLOAT16 else ""
