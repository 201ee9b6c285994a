"""Writes a mask program as a C++ struct for the kernels.

The struct has the members that the templates of plugins/kernels ask for:

    Index                     integer type that elements are computed in
    kTables                   how many table loads remember their tile
    kHasBias                  whether bias() is to be added
    kHasAgain                 whether some hidden pairs get the fill twice, which again() tells
    keep<T>(b, h, q, k, cursors)   bool for integers, stof::Maybe for stof::Range
    bias<T>(b, h, q, k)            float
    again<T>(b, h, q, k)           bool, for integers: of a pair that isn't kept, whether the fill
                                   is added to it a second time

Names in it are numbered: no text of a model gets into the source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stof_onnx.ir.block_table import ARRAY_NAMES
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import Const, Expr, Load, Op, Var, loads, variables
from stof_onnx.ir.expr.build import FALSE
from stof_onnx.ir.expr.ops import OPS
from stof_onnx.ir.mask.program import K_INDEX, Q_INDEX, MaskProgram, Operand
from stof_onnx.ir.operators.mask_table import OUTPUT_NAMES
from stof_onnx.ir.operators.masked_attention import TableInput
from stof_onnx.ir.plan import Cover, DataType, Quantity, Symbol
from stof_onnx.templates.integer_range import fits_int32
from stof_onnx.templates.signature import C_TYPES, Parameter, int32, pointer

_INDICES = ("b", "h", "q", "k")
_SIZES = ("B", "H", "Sq", "Sk")
_LOADERS = {
    "bool": ("boolean", (DataType.INT8,)),
    "int": ("integer", (DataType.INT8, DataType.INT32, DataType.INT64)),
    "float": ("real", (DataType.FLOAT, DataType.HALF, DataType.BF16)),
}


@dataclass(frozen=True)
class MaskSource:
    """A mask as C++.

    Attributes:
        text: the definition of ``struct Mask``.
        parameters: kernel parameters that its members are made of.
        value: expression that makes a Mask of them, and of ``B``, ``H``, ``Sq`` and ``Sk``.
        symbols: what the parameters' quantities and the covers use, besides B, Sq and Sk.
        tables: how many table loads remember their tile (kTables).
        reads: which axes are read from their first element on: the symbol of the axis's size,
            and which of B, H, Sq and Sk says how many elements.
    """

    text: str
    parameters: tuple[Parameter, ...]
    value: str
    symbols: tuple[Symbol, ...]
    tables: int
    reads: tuple[tuple[str, str], ...]

    def covers(self, sizes: Mapping[str, Quantity]) -> tuple[Cover, ...]:
        """What must hold of the operands' shapes.

        The kernels clamp indices to the tensor, so that an axis of size 1 broadcasts; without
        this, another one that is too short would silently repeat its last element.

        Args:
            sizes: B, H, Sq and Sk.
        """
        return tuple(Cover(symbol, sizes[name]) for symbol, name in self.reads)


def mask_source(
    program: MaskProgram,
    types: tuple[DataType, ...],
    first_input: int,
    *,
    use_bias: bool = True,
    use_again: bool = False,
    table: TableInput | None = None,
    table_input: int | None = None,
) -> MaskSource:
    """The C++ of a mask program.

    Args:
        program: the mask.
        types: element types of the node's inputs.
        first_input: number of the input that holds the first operand.
        use_bias: False to leave the program's bias out.
        use_again: whether hidden pairs count, and with them the program's `again`.
        table: the run-time table, which keep() then reads in place of what the program says.
        table_input: number of the input that holds its first array; the one behind the operands
            if None.

    Raises:
        MalformedNodeError: an operand's type isn't one that the program's loads can read.
    """
    bias = program.bias if use_bias else None
    again = program.again if use_again and program.again != FALSE else None
    others = [part for part in (bias, again) if part is not None]
    parts = others if table is not None else [program.keep, *others]
    used = {load.source for part in parts for load in loads(part)}
    # Behind a run-time table, too, keep's operands are inputs of the node: what the table was
    # made from.
    reads = [load for part in (program.keep, *others) for load in loads(part)]
    members = _Members(program, types, first_input, used, table, table_input)
    keep = _Function(members)
    keep_result = keep.emit(program.keep) if table is None else keep.read_table(table)
    narrow = all(fits_int32(part, members.types) for part in parts)
    lines = [
        "struct Mask {",
        f"  using Index = {'int' if narrow else 'long long'};",
        f"  static constexpr int kTables = {keep.cursors};",
        f"  static constexpr bool kHasBias = {'true' if bias is not None else 'false'};",
        f"  static constexpr bool kHasAgain = {'true' if again is not None else 'false'};",
        *(f"  {declaration};" for declaration in members.declarations),
        "  int B, H, Sq, Sk;",
        "",
        *_method("auto keep(T b, T h, T q, T k, int* cursors) const", keep, keep_result),
    ]
    for head, part in (("float bias", bias), ("bool again", again)):
        if part is not None:
            function = _Function(members, is_element=True)
            result = function.emit(part)
            lines += ["", *_method(f"{head}(T b, T h, T q, T k) const", function, result)]
    values = [*members.values, *_SIZES]
    covered = members.covered(reads)
    return MaskSource(
        "\n".join([*lines, "};"]),
        tuple(members.parameters),
        f"Mask{{{', '.join(values)}}}",
        tuple(dict.fromkeys([*members.symbols, *(symbol for symbol, _ in covered)])),
        keep.cursors,
        tuple((symbol.name, size) for symbol, size in covered),
    )


def _method(head: str, function: _Function, result: str) -> list[str]:
    return [
        "  template <class T>",
        f"  __device__ __forceinline__ {head} {{",
        *(f"    {line}" for line in function.lines),
        f"    return {result};",
        "  }",
    ]


@dataclass
class _Members:
    """The operands of a program as members of the struct; unused ones are left out."""

    program: MaskProgram
    input_types: tuple[DataType, ...]
    first_input: int
    used: set[str]
    table: TableInput | None
    table_input: int | None
    names: dict[str, str] = field(default_factory=dict)
    types: dict[str, DataType] = field(default_factory=dict)
    operands: dict[str, Operand] = field(default_factory=dict)
    declarations: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    symbols: list[Symbol] = field(default_factory=list)
    axes: dict[str, tuple[Symbol, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        position = self.first_input
        for number, operand in enumerate(self.program.operands):
            self.operands[operand.name] = operand
            self.names[operand.name] = f"operand{number}"
            is_table = operand.kind == "block_table"
            if not is_table:
                self.axes[operand.name] = tuple(
                    Symbol(f"operand{number}_size{axis}", "input", position, (axis,))
                    for axis in range(operand.rank)
                )
            if operand.name in self.used:
                (self._add_table if is_table else self._add_tensor)(operand, position)
            position += len(ARRAY_NAMES) if is_table else 1
        if self.table is not None:
            first = position if self.table_input is None else self.table_input
            self._add_run_time_table(self.table, first)

    def covered(self, reads: Sequence[Load]) -> list[tuple[Symbol, str]]:
        """The axes of tensors that are read at exactly b, h, q or k, and how far these run.

        Other indices, such as gathered ones, are the model's own business.
        """
        found: dict[tuple[Symbol, str], None] = {}
        for load in reads:
            for symbol, index in zip(self.axes.get(load.source, ()), load.index, strict=False):
                if isinstance(index, Var) and index.name in _INDICES:
                    found[symbol, _SIZES[_INDICES.index(index.name)]] = None
        return list(found)

    def _add_tensor(self, operand: Operand, position: int) -> None:
        name = self.names[operand.name]
        dtype = self.input_types[position]
        if dtype not in C_TYPES:
            raise MalformedNodeError(
                f"mask operand {operand.name!r} of type {dtype.name}",
                f"one of {', '.join(t.name for t in C_TYPES)}",
            )
        self.types[operand.name] = dtype
        self.declarations.append(f"stof::Tensor<{C_TYPES[dtype]}, {operand.rank}> {name}")
        self.parameters.append(pointer(name, dtype, "input", position))
        sizes = [symbol.name for symbol in self.axes[operand.name]]
        self.symbols += self.axes[operand.name]
        self.parameters += [int32(size, size) for size in sizes]
        self.values.append(f"{{{name}, {{{', '.join(sizes)}}}}}")

    def _add_table(self, operand: Operand, position: int) -> None:
        name = self.names[operand.name]
        numbers = ", ".join(str(n) for n in (*operand.shape, *operand.tile))
        self.declarations.append(f"stof::BlockTable<{numbers}> {name}")
        arrays = []
        for offset, array in enumerate(ARRAY_NAMES):
            parameter = pointer(f"{name}_{array}", DataType.INT32, "input", position + offset)
            self.parameters.append(parameter)
            arrays.append(parameter.name)
        arrays[-1] = f"reinterpret_cast<const unsigned*>({arrays[-1]})"
        self.values.append(f"{{{{}}, {', '.join(arrays)}}}")

    def _add_run_time_table(self, table: TableInput, position: int) -> None:
        counts, columns, bitmaps = range(position, position + len(OUTPUT_NAMES))
        self.declarations.append(f"stof::RunTimeTable<{table.tile[0]}, {table.tile[1]}> table")
        arrays = []
        for name, number in zip(OUTPUT_NAMES, (counts, columns, bitmaps), strict=True):
            self.parameters.append(pointer(f"table_{name}", DataType.INT32, "input", number))
            arrays.append(f"table_{name}")
        arrays[-1] = f"reinterpret_cast<const unsigned*>({arrays[-1]})"
        sizes = {"table_groups": 0, "table_rows": 1, "table_columns": 2}
        for name, axis in sizes.items():
            self.symbols.append(Symbol(name, "input", columns, (axis,)))
            self.parameters.append(int32(f"{name}_size", name))
        self.values.append(
            f"{{{{}}, {', '.join(arrays)}, {{{', '.join(f'{name}_size' for name in sizes)}}}}}"
        )


class _Function:
    """Statements that compute an expression; each distinct sub-expression once."""

    def __init__(self, members: _Members, is_element: bool = False) -> None:
        self._members = members
        self._is_element = is_element
        self._names: dict[Expr, str] = {}
        self.lines: list[str] = []
        self.cursors = 0

    def read_table(self, table: TableInput) -> str:
        """What holds whether a run-time table keeps the pair."""
        self.cursors += 1
        group = {
            (False, False): "T(0)",
            (False, True): "h",
            (True, False): "b",
            (True, True): "b * T(H) + h",
        }[table.by_batch, table.by_head]
        self.lines.append(f"const auto group = {group};")
        return "stof::TileLoads<T>::of(table, cursors[0], group, q, k)"

    def emit(self, expr: Expr) -> str:
        """Name or literal that holds the expression's value."""
        if expr not in self._names:
            text = self._text(expr)
            if not isinstance(expr, Const | Var):
                name = f"t{len(self.lines)}"
                self.lines.append(f"const auto {name} = {text};")
                text = name
            self._names[expr] = text
        return self._names[expr]

    def _text(self, expr: Expr) -> str:
        if isinstance(expr, Const):
            return _literal(expr)
        if isinstance(expr, Var):
            return expr.name if expr.name in _INDICES else f"T({expr.name})"
        if isinstance(expr, Load):
            return self._load(expr)
        assert isinstance(expr, Op)
        args = [self.emit(arg) for arg in expr.args]
        info = OPS[expr.name]
        if not info.infix:
            return info.cuda.format(*args)
        text = args[0]
        for arg in args[1:]:
            text = info.cuda.format(text, arg)
        return text

    def _load(self, load: Load) -> str:
        name = self._members.names[load.source]
        index = [self.emit(i) for i in load.index]
        operand = self._members.operands[load.source]
        if operand.kind == "tensor":
            loader, accepted = _LOADERS[load.kind]
            dtype = self._members.types[load.source]
            if dtype not in accepted:
                raise MalformedNodeError(
                    f"mask operand {load.source!r} of type {dtype.name}, loaded as {load.kind}",
                    " or ".join(t.name for t in accepted),
                )
            return f"stof::Loads<T>::{loader}({', '.join([name, *index])})"
        group, *pair = load.index
        is_fixed = not loads(group) and not {"q", "k"} & variables(group)
        if tuple(pair) == (Q_INDEX, K_INDEX) and is_fixed and not self._is_element:
            self.cursors += 1
            cursor = f"cursors[{self.cursors - 1}]"
            return f"stof::TileLoads<T>::of({', '.join([name, cursor, *index])})"
        return f"stof::TableLoads<T>::of({', '.join([name, *index])})"


def _literal(expr: Const) -> str:
    if expr.kind == "bool":
        return f"stof::Literal<T>::of({'true' if expr.value else 'false'})"
    if expr.kind == "int":
        return f"T({int(expr.value)}LL)"
    return float_literal(float(expr.value))


def float_literal(value: float) -> str:
    """A float32 literal of C++ with this value, rounded to float32."""
    with np.errstate(over="ignore"):  # a number beyond float32's range is infinite there
        value = float(np.float32(value))
    if math.isinf(value):
        return "stof::kInfinity" if value > 0 else "-stof::kInfinity"
    return f"{value.hex()}f"
