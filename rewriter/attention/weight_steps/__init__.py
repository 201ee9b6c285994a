"""Steps between the Softmax and the product with value, walked downwards.

Each file offers ``step(tensor, users) -> WeightStep | None`` for the users of a tensor
of probabilities. Another variation costs one file and one line in :data:`WEIGHT_STEPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stof_onnx.rewriter.attention.weight_steps import nan_guard, passed
from stof_onnx.rewriter.attention.weight_steps.step import WeightStep
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.symbolic import SymbolicGraph

WEIGHT_STEPS: tuple[Callable[[SymbolicGraph, Tensor, Sequence[Node]], WeightStep | None], ...] = (
    passed.step,
    nan_guard.step,
)
