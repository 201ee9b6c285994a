"""What a kernel template knows of one StofMaskedAttention node: its attributes and its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import loads
from stof_onnx.ir.mask.program import K_INDEX, Q_INDEX
from stof_onnx.ir.operators.builder import DTYPES
from stof_onnx.ir.operators.masked_attention import OP_TYPE, MaskedAttention, TensorLayout
from stof_onnx.ir.operators.tensor_info import ONNX_TYPES, TensorInfo
from stof_onnx.ir.plan import DataType, Quantity, Range, Symbol
from stof_onnx.templates.integer_range import LARGEST_DIMENSION
from stof_onnx.templates.signature import SIZES, Parameter, int64, pointer

ELEMENT_TYPES = {name: ONNX_TYPES[number] for name, number in DTYPES.items()}
FIRST_OPERAND = 3
WIDEST_COPY = 16
"""Bytes of the widest load and store; tensors start at multiples of it."""


@dataclass(frozen=True)
class StridedTensor:
    """How a kernel addresses query, key, value or output: ``stof::Strided`` in C++.

    Attributes:
        name: "query", "key", "value" or "output".
        parameters: pointer and strides, in elements, of batch, head and row.
        copy_bytes: widest access that every row of every head is aligned for.
    """

    name: str
    parameters: tuple[Parameter, ...]
    copy_bytes: int

    @property
    def value(self) -> str:
        """The C++ initializer."""
        return f"{{{', '.join(parameter.name for parameter in self.parameters)}}}"


@dataclass(frozen=True)
class AttentionNode:
    """A node as kernels see it.

    Attributes:
        record: the node's attributes.
        inputs: type and shape of each input.
    """

    record: MaskedAttention
    inputs: tuple[TensorInfo, ...]

    @property
    def operator(self) -> str:
        """The node's operator."""
        return OP_TYPE

    @property
    def output_types(self) -> tuple[DataType, ...]:
        """Element types of the outputs."""
        return (self.element_type,)

    @property
    def element_type(self) -> DataType:
        """Type of query, key, value and output."""
        return ELEMENT_TYPES[self.record.dtype]

    @property
    def input_types(self) -> tuple[DataType, ...]:
        """Element types of the inputs."""
        return tuple(tensor.dtype for tensor in self.inputs)

    @property
    def sizes(self) -> dict[str, Quantity]:
        """What the mask program's indices run to: B, H, Sq and Sk."""
        heads = Quantity.of(self.record.num_heads)
        return {"H": heads, **{name: Quantity.of(name) for name in ("B", "Sq", "Sk")}}

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """B, Sq, Sk, widths of rows (BSHD), heads and head dims (BHSD), number of sinks."""
        symbols = [
            Symbol("B", "input", 0, (0,)),
            Symbol("Sq", "input", 0, (_length_axis(self.record.query),)),
            Symbol("Sk", "input", 1, (_length_axis(self.record.key),)),
        ]
        for read in self._reads():
            if read.layout.order == "BHSD":
                symbols.append(Symbol(f"{read.name}_heads", "input", read.number, (1,)))
                symbols.append(Symbol(f"{read.name}_dim", "input", read.number, (3,)))
                continue
            axes = tuple(range(2, len(self.inputs[read.number].dims)))
            if not axes:
                raise MalformedNodeError(f"{read.name} of unknown rank", "3 or more for BSHD")
            symbols.append(Symbol(f"{read.name}_width", "input", read.number, axes))
        position = self.record.sinks_position()
        if position is not None:
            symbols.append(Symbol("sinks_size", "input", position, (0,)))
        return tuple(symbols)

    @property
    def checks(self) -> tuple[Range, ...]:
        """What the kernels rely on: no overflow of index arithmetic, bounds, alignment."""
        checks = [Range(name, 0, largest) for name, largest in self._largest_sizes().items()]
        for read in self._reads():
            if read.layout.order == "BHSD":
                checks.append(Range(f"{read.name}_heads", read.heads, read.heads))
                checks.append(Range(f"{read.name}_dim", read.dim, read.dim))
                continue
            width = self.inputs[read.number].width()
            end = read.layout.offset + (read.heads - 1) * read.layout.head_stride + read.dim
            bounds = (end, LARGEST_DIMENSION) if width is None else (width, width)
            checks.append(Range(f"{read.name}_width", *bounds))
        if self.record.sinks:
            checks.append(Range("sinks_size", self.record.num_heads, self.record.num_heads))
        return tuple(checks)

    def _largest_sizes(self) -> dict[str, int]:
        """Bounds of B, Sq and Sk; a constant table says nothing of pairs beyond it."""
        largest = dict.fromkeys(("B", "Sq", "Sk"), LARGEST_DIMENSION)
        mask = self.record.mask
        tables = {o.name: o.shape for o in mask.operands if o.kind == "block_table"}
        parts = (mask.keep, mask.again, *([] if mask.bias is None else [mask.bias]))
        for load in (load for part in parts for load in loads(part)):
            if load.source in tables:
                _, queries, keys = tables[load.source]
                if load.index[1] == Q_INDEX:
                    largest["Sq"] = min(largest["Sq"], queries)
                if load.index[2] == K_INDEX:
                    largest["Sk"] = min(largest["Sk"], keys)
        return largest

    def strided(self) -> tuple[StridedTensor, ...]:
        """Query, key, value and output."""
        return (*(self._input(read) for read in self._reads()), self._output())

    def sinks(self) -> Parameter | None:
        """Where a kernel finds the sinks, float32 [H], if there are any.

        Raises:
            MalformedNodeError: the input is of another type.
        """
        position = self.record.sinks_position()
        if position is None:
            return None
        dtype = self.inputs[position].dtype
        if dtype != DataType.FLOAT:
            raise MalformedNodeError(f"sinks of type {dtype.name}", "FLOAT")
        return pointer("sinks", dtype, "input", position)

    def _reads(self) -> tuple[_Read, ...]:
        record = self.record
        kv_heads = record.kv_num_heads
        return (
            _Read("query", 0, record.query, record.num_heads, record.head_dim, "Sq"),
            _Read("key", 1, record.key, kv_heads, record.head_dim, "Sk"),
            _Read("value", 2, record.value, kv_heads, record.value_head_dim, "Sk"),
        )

    def _input(self, read: _Read) -> StridedTensor:
        length, layout, dim = Quantity.of(read.length), read.layout, read.dim
        width = Quantity.of(f"{read.name}_width")
        if layout.order == "BHSD":
            strides = (length * (read.heads * dim), length * dim, Quantity.of(dim))
            multiples: tuple[int, ...] = (dim,)
        else:
            strides = (length * width, Quantity.of(layout.head_stride), width)
            # Without a known width a row may start anywhere.
            known = self.inputs[read.number].width() or 1
            multiples = (dim, layout.offset, layout.head_stride, known)
        copy = self._copy_bytes(*multiples)
        address = pointer(
            read.name,
            self.element_type,
            "input",
            read.number,
            offset=layout.offset,
            alignment=copy,
        )
        return StridedTensor(read.name, (address, *_strides(read.name, strides)), copy)

    def _output(self) -> StridedTensor:
        """The output is dense in either order."""
        heads, dim, queries = self.record.num_heads, self.record.value_head_dim, Quantity.of("Sq")
        if self.record.output == "BSHD":
            head, row = Quantity.of(dim), Quantity.of(heads * dim)
        else:
            head, row = queries * dim, Quantity.of(dim)
        copy = self._copy_bytes(dim)
        address = pointer("output", self.element_type, "output", 0, alignment=copy)
        strides = (queries * (heads * dim), head, row)
        return StridedTensor("output", (address, *_strides("output", strides)), copy)

    def _copy_bytes(self, *multiples: int) -> int:
        """Widest access where rows start at sums of multiples of these element counts."""
        return math.gcd(WIDEST_COPY, *(n * SIZES[self.element_type] for n in multiples))


@dataclass(frozen=True)
class _Read:
    """One of query, key and value: input number, layout, sizes, symbol of its length."""

    name: str
    number: int
    layout: TensorLayout
    heads: int
    dim: int
    length: str


def _length_axis(layout: TensorLayout) -> int:
    return 1 if layout.order == "BSHD" else 2


def _strides(name: str, strides: tuple[Quantity, Quantity, Quantity]) -> tuple[Parameter, ...]:
    axes = ("batch", "head", "row")
    return tuple(int64(f"{name}_{axis}", s) for axis, s in zip(axes, strides, strict=True))
