"""A small builder of standard ONNX operators, used by every `expand`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stof_onnx.ir.expr.ops import Array

DTYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


class ConstantPool:
    """Initializers shared by all expansions of one model, each content stored once."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._names: dict[str, str] = {}
        self.initializers: list[onnx.TensorProto] = []

    def add(self, array: Array) -> str:
        """Name of an initializer with this content."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        digest = hashlib.sha256(array.tobytes())
        digest.update(f"{array.dtype}{array.shape}".encode())
        key = digest.hexdigest()
        if key not in self._names:
            name = f"{self._prefix}const_{len(self._names)}"
            self._names[key] = name
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._names[key]


class Builder:
    """Appends operators of the default domain (opset 13 or newer) and names their outputs.

    Args:
        prefix: of every new name; unique in the model.
        pool: where constants go.
    """

    def __init__(self, prefix: str, pool: ConstantPool) -> None:
        self._prefix = prefix
        self._pool = pool
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append one operator with one output and return the output's name."""
        return self.ops(op_type, *inputs, outputs=[output], **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Append one operator; an empty output name is replaced by a new one."""
        index = len(self.nodes)
        names = [name or f"{self._prefix}{op_type}_{index}_{i}" for i, name in enumerate(outputs)]
        node = helper.make_node(
            op_type, inputs, names, name=f"{self._prefix}{op_type}_{index}", **attributes
        )
        self.nodes.append(node)
        return names

    def const(self, value: Any, dtype: Any = None) -> str:
        """A constant tensor."""
        return self._pool.add(np.asarray(value, dtype))

    def scalar_like(self, value: float, dtype: str) -> str:
        """A float scalar of the named type (numpy has no bfloat16, so it is cast)."""
        with np.errstate(over="ignore"):  # a number beyond the type's range is infinite there
            if dtype == "bfloat16":
                return self.cast(self.const(value, np.float32), dtype)
            return self.const(value, np.dtype(dtype))

    def cast(self, value: str, dtype: str) -> str:
        """Cast to a float type by name."""
        return self.op("Cast", value, to=DTYPES[dtype])

    def dim(self, value: str, axis: int) -> str:
        """One dimension as an INT64 tensor of shape [1]."""
        shape = self.op("Shape", value)
        return self.op("Gather", shape, self.const([axis], np.int64), axis=0)

    def reshape(self, value: str, *dims: int | str, output: str = "") -> str:
        """Reshape; a dimension is an int or the name of an INT64 tensor of shape [1]."""
        if all(isinstance(dim, int) for dim in dims):
            shape = self.const(list(dims), np.int64)
        else:
            parts = [self.const([d], np.int64) if isinstance(d, int) else d for d in dims]
            shape = self.op("Concat", *parts, axis=0)
        return self.op("Reshape", value, shape, output=output)

    def slice(self, value: str, axis: int, start: int | str, end: int | str) -> str:
        """value[start:end] on one axis; bounds are ints or INT64 tensors of shape [1]."""
        bounds = [self.const([x], np.int64) if isinstance(x, int) else x for x in (start, end)]
        return self.op("Slice", value, *bounds, self.const([axis], np.int64))

    def unsqueeze(self, value: str, *axes: int) -> str:
        """Insert axes of size 1 at these positions of the result."""
        return self.op("Unsqueeze", value, self.const(list(axes), np.int64)) if axes else value
