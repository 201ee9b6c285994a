"""Element type and shape of a stof node's input, as far as the model tells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import TensorProto

from stof_onnx.ir.plan.records import DataType

ONNX_TYPES: dict[int, DataType] = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.INT8: DataType.INT8,
    TensorProto.INT32: DataType.INT32,
    TensorProto.INT64: DataType.INT64,
}
"""The element types that inputs of stof nodes have."""


@dataclass(frozen=True)
class TensorInfo:
    """Element type and dimensions of an input.

    Attributes:
        dtype: element type.
        dims: one an axis; None for a dynamic dimension.
    """

    dtype: DataType
    dims: tuple[int | None, ...]

    def width(self) -> int | None:
        """Elements of a row: all axes after the second; None if one of them is dynamic."""
        sizes = [dim for dim in self.dims[2:] if dim is not None]
        return math.prod(sizes) if len(sizes) == len(self.dims) - 2 else None
