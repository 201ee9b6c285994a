"""What can go wrong while TensorRT builds."""

from __future__ import annotations

from stof_onnx.ir.errors import StofError


class EngineBuildError(StofError):
    """TensorRT refused a model, or ended before it had an engine."""
