"""Steps between the Softmax and the product with value, walked downwards.

Each file offers ``step(context, tensor, users) -> WeightStep | None`` for the users of a
tensor of probabilities. Another variation costs one file and one line in
:data:`WEIGHT_STEPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stof_onnx.rewriter.attention.weight_steps import drop_sinks, nan_guard, passed, view
from stof_onnx.rewriter.attention.weight_steps.step import WeightContext, WeightStep
from stof_onnx.rewriter.graph import Node, Tensor

WEIGHT_STEPS: tuple[Callable[[WeightContext, Tensor, Sequence[Node]], WeightStep | None], ...] = (
    passed.step,
    nan_guard.step,
    view.step,
    drop_sinks.step,
)
