"""Element rules of operators that make values from shapes and indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from stof_onnx.ir.expr import Const, Expr, Op, Var, loads, walk
from stof_onnx.ir.expr.build import (
    TRUE,
    add,
    and_,
    eq,
    ge0,
    integer,
    maximum,
    minimum,
    mul,
    sub,
    to_float,
    where,
)
from stof_onnx.rewriter.symbolic.indexing import attribute, axis_of, optional_input
from stof_onnx.rewriter.symbolic.registry import Index, Node, Tensor, Unliftable, element

if TYPE_CHECKING:
    from stof_onnx.rewriter.symbolic.graph import SymbolicGraph

# How many positions of a short Concat part are compared with the long part's formula.
_MAX_CONTINUED = 8
# More parts than this aren't written as a selection.
_MAX_PARTS = 4


@element("Shape")
def shape(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """One dimension of the input."""
    dims = sym.shape(node.inputs[0])
    start = attribute(node, "start", 0)
    start = max(start + len(dims), 0) if start < 0 else start
    (at,) = index
    if not isinstance(at, Const):
        raise Unliftable("a shape read at an unknown position")
    if not 0 <= start + int(at.value) < len(dims):
        raise Unliftable("a shape read beyond its end")
    dim: Expr = dims[start + int(at.value)]
    return dim


@element("Size")
def size(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """Product of the dimensions."""
    result: Expr = integer(1)
    for dim in sym.shape(node.inputs[0]):
        result = mul(result, dim)
    return result


def range_values(sym: SymbolicGraph, node: Node) -> tuple[Expr, Expr, Expr]:
    """Start, limit and step as ints, of whatever type they are.

    Raises:
        Unliftable: they are floats that aren't whole numbers.
    """
    start, limit, step = (_whole(sym.element(tensor, ())) for tensor in node.inputs)
    return start, limit, step


def _whole(value: Expr) -> Expr:
    """The int that a float was made of."""
    if value.kind == "int":
        return value
    if isinstance(value, Const) and value.value == int(value.value):
        return integer(int(value.value))
    if isinstance(value, Op) and value.name == "float":
        return value.args[0]
    raise Unliftable("Range over floats")


@element("Range")
def range_(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """start + i * step."""
    start, _, step = range_values(sym, node)
    value = add(start, mul(index[0], step))
    return value if sym.element(node.inputs[0], ()).kind == "int" else to_float(value)


@element("ConstantOfShape")
def constant_of_shape(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """One value everywhere; float 0 by default."""
    value = attribute(node, "value", None)
    if value is None:
        return Const(0.0)
    scalar = np.asarray(value.values).reshape(-1)[0]
    if isinstance(scalar, np.bool_):
        return Const(bool(scalar))
    return Const(int(scalar) if isinstance(scalar, np.integer) else float(scalar))


@element("Trilu")
def trilu(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """Keep the triangle, write zero elsewhere."""
    k_input = optional_input(node, 1)
    (offset,) = sym.integers(k_input) if k_input is not None else (0,)
    row, column = index[-2:]
    distance = sub(sub(column, row), integer(offset))
    inside = ge0(distance) if attribute(node, "upper", 1) else ge0(mul(integer(-1), distance))
    value = sym.element(node.inputs[0], index)
    zero: dict[str, Const] = {"bool": Const(False), "int": Const(0), "float": Const(0.0)}
    return where(inside, value, zero[value.kind])


@element("OneHot")
def one_hot(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """The on-value where the new axis is at the index, the off-value elsewhere."""
    indices, depth, values = node.inputs
    axis = axis_of(attribute(node, "axis", -1), len(index))
    at = sym.element(indices, (*index[:axis], *index[axis + 1 :]))
    (size,) = sym.values(depth)
    off, on = sym.values(values)
    # Negative indices count from the end.
    wrapped = where(ge0(at), at, add(at, size)) if at.kind == "int" else at
    return where(eq(wrapped, index[axis]), on, off)


@element("Concat")
def concat(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """The part that holds a position.

    ``Concat([p - 1, p, p + 1, ...])`` over ranges is one range: the formula of the
    longest part, continued to the others' positions, gives their elements. Otherwise it is a
    selection by the position.
    """
    axis = axis_of(attribute(node, "axis", 0), len(index))
    parts: list[tuple[Tensor, Expr, Expr]] = []
    start: Expr = integer(0)
    for tensor in node.inputs:
        length = sym.shape(tensor)[axis]
        parts.append((tensor, start, length))
        start = add(start, length)

    def read(tensor: Tensor, begin: Expr, at: Expr) -> Expr:
        return sym.element(tensor, (*index[:axis], sub(at, begin), *index[axis + 1 :]))

    if isinstance(index[axis], Const) or len(parts) == 1:
        for tensor, begin, length in parts:
            inside = ge0(sub(sub(add(begin, length), integer(1)), index[axis]))
            if inside == Const(True):
                return read(tensor, begin, index[axis])
            if inside != Const(False):
                break
        raise Unliftable("Concat read at a position whose part isn't known")
    whole = _continued(parts, index[axis], read)
    if whole is not None:
        return whole
    if len(parts) > _MAX_PARTS:
        raise Unliftable(f"Concat of {len(parts)} parts read at an index that depends on them")

    def read_inside(tensor: Tensor, begin: Expr, length: Expr) -> Expr:
        """What is loaded where another part is meant must exist nevertheless."""
        found = read(tensor, begin, index[axis])
        if not loads(found):
            return found
        return read(tensor, integer(0), _clamped(sub(index[axis], begin), length))

    result = read_inside(*parts[-1])
    for tensor, begin, length in reversed(parts[:-1]):
        is_before = ge0(sub(sub(add(begin, length), integer(1)), index[axis]))
        result = where(is_before, read_inside(tensor, begin, length), result)
    return result


def _clamped(index: Expr, length: Expr) -> Expr:
    """The nearest index inside a length."""
    return maximum(minimum(index, sub(length, integer(1))), integer(0))


def _continued(
    parts: list[tuple[Tensor, Expr, Expr]], index: Expr, read: Callable[[Tensor, Expr, Expr], Expr]
) -> Expr | None:
    """The formula of the longest part, if it gives the elements of the others too."""
    long = [part for part in parts if not isinstance(part[2], Const)]
    if len(long) != 1 or loads(read(*long[0][:2], index)):
        return None
    main, main_start, _ = long[0]
    for tensor, begin, length in parts:
        if tensor is main:
            continue
        assert isinstance(length, Const)
        for i in range(min(int(length.value), _MAX_CONTINUED + 1)):
            at = add(begin, integer(i))
            if i == _MAX_CONTINUED or read(tensor, begin, at) != read(main, main_start, at):
                return None
    return read(main, main_start, index)


@element("CumSum")
def cumsum(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """A running sum of zeros is zero; other sums are computed at run time."""
    (axis,) = (axis_of(n, len(index)) for n in sym.integers(node.inputs[1]))
    dims = sym.shape(node.inputs[0])
    summed = integer(0) if dims[axis] == integer(1) else Var("cumsum", dims[axis])
    if sym.element(node.inputs[0], (*index[:axis], summed, *index[axis + 1 :])) != integer(0):
        raise Unliftable("CumSum of values that aren't all 0")
    return integer(0)


@element("ScatterND")
def scatter_nd(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """A region overwritten: ``data[a:b, c:d] = updates``, as PyTorch's exporter writes it.

    The indices must be ``(i0 + c0, i1 + c1, ...)`` at position ``(i0, i1, ...)``.
    """
    if attribute(node, "reduction", "none") != "none":
        raise Unliftable("ScatterND that reduces")
    data, indices, updates = node.inputs
    dims = sym.shape(indices)
    if not isinstance(dims[-1], Const) or int(dims[-1].value) != len(dims) - 1:
        raise Unliftable("ScatterND of rows")
    counters = tuple(
        integer(0) if dim == integer(1) else Var(f"i{axis}", dim)
        for axis, dim in enumerate(dims[:-1])
    )
    inside: Expr = TRUE
    at: list[Expr] = []
    for axis, counter in enumerate(counters):
        written: Expr = sym.element(indices, (*counters, integer(axis)))
        shift = sub(written, counter)
        if loads(shift) or any(v.bound is not None for v in walk(shift) if isinstance(v, Var)):
            raise Unliftable("ScatterND to positions that aren't a region")
        moved = sub(index[axis], shift)
        last = sub(sub(dims[axis], integer(1)), moved)
        inside = and_(inside, ge0(moved), ge0(last))
        at.append(moved)
    new = sym.element(updates, (*at, *index[len(at) :]))
    if inside != TRUE and loads(new):
        at = [_clamped(i, dim) for i, dim in zip(at, dims, strict=False)]
        new = sym.element(updates, (*at, *index[len(at) :]))
    return where(inside, new, sym.element(data, index))
