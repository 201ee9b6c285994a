"""Lowering a float32 model to float16 or bfloat16, and measuring what that changes."""

from stof_onnx.precision.autocast import require_autocast
from stof_onnx.precision.lowering import Lowered, lower
from stof_onnx.precision.target import PrecisionName

__all__ = ["Lowered", "PrecisionName", "lower", "require_autocast"]
