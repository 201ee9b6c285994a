"""Parameters of a generated kernel: each with the plan's argument that fills it.

Keeping both in one record is what keeps a kernel's parameter list and its launch record from
drifting apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.ir.plan import Argument, DataType, Int32, Int64, Quantity, TensorPointer
from stof_onnx.ir.plan.records import Source

C_TYPES: dict[DataType, str] = {
    DataType.FLOAT: "float",
    DataType.HALF: "stof::Half",
    DataType.BF16: "stof::BFloat16",
    DataType.INT8: "signed char",
    DataType.INT32: "int",
    DataType.INT64: "long long",
}
SIZES: dict[DataType, int] = {
    DataType.FLOAT: 4,
    DataType.HALF: 2,
    DataType.BF16: 2,
    DataType.INT8: 1,
    DataType.INT32: 4,
    DataType.INT64: 8,
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        declaration: its type in C++, e.g. "const int*".
        name: in the kernel's parameter list; unique.
        argument: what the plugin passes.
    """

    declaration: str
    name: str
    argument: Argument


def pointer(
    name: str, dtype: DataType, source: Source, tensor: int, *, offset: int = 0, alignment: int = 0
) -> Parameter:
    """The address of a tensor.

    Args:
        name: of the parameter.
        dtype: element type; inputs are passed as pointers to const.
        source: "input" or "output".
        tensor: its number.
        offset: elements from the tensor's first.
        alignment: of the address, in bytes; that of an element if 0.
    """
    size = SIZES[dtype]
    const = "const " if source == "input" else ""
    argument = TensorPointer(source, tensor, offset * size, max(alignment, size))
    return Parameter(f"{const}{C_TYPES[dtype]}* __restrict__", name, argument)


def int32(name: str, value: Quantity | int | str) -> Parameter:
    """A 32-bit integer."""
    return Parameter("int", name, Int32(Quantity.of(value)))


def int64(name: str, value: Quantity | int | str) -> Parameter:
    """A 64-bit integer."""
    return Parameter("long long", name, Int64(Quantity.of(value)))


def declare(parameters: tuple[Parameter, ...]) -> str:
    """The parameter list of a kernel."""
    return ",\n    ".join(f"{p.declaration} {p.name}" for p in parameters)
