"""What the steps below the Softmax may ask, and what one yields."""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.ir.expr import Expr
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.symbolic import SymbolicGraph
from stof_onnx.rewriter.symbolic.registry import Index


@dataclass(frozen=True)
class WeightContext:
    """Where the walk from the Softmax down is.

    Attributes:
        sym: reading of the graph.
        index: of weight (b, h, q, k) in the tensor.
        keys: Sk.
        has_sinks: whether the tensor has a column for the sinks behind its keys.
    """

    sym: SymbolicGraph
    index: Index
    keys: Expr
    has_sinks: bool


@dataclass(frozen=True)
class WeightStep:
    """What a step read.

    Attributes:
        tensor: to go on with.
        nodes: passed.
        index: of weight (b, h, q, k) in the tensor, where it isn't the one before.
        nan_to_zero: whether NaN became 0.
        drops_sinks: whether the sinks' column was cut off.
    """

    tensor: Tensor
    nodes: tuple[Node, ...]
    index: Index | None = None
    nan_to_zero: bool = False
    drops_sinks: bool = False
