"""What one step below the Softmax yields."""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.rewriter.graph import Node, Tensor


@dataclass(frozen=True)
class WeightStep:
    """Attributes: the tensor to go on with, the nodes passed, whether NaN became 0."""

    tensor: Tensor
    nodes: tuple[Node, ...]
    nan_to_zero: bool = False
