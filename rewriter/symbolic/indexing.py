"""Index arithmetic shared by the rules: axes, reshapes, slices, broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Expr, Op, Poly
from stof_onnx.ir.expr.bounds import is_nonnegative, is_positive
from stof_onnx.ir.expr.build import add, floordiv, integer, maximum, minimum, mod, mul, sub
from stof_onnx.rewriter.symbolic.registry import Index, Node, Shape, Tensor, Unliftable

if TYPE_CHECKING:
    from stof_onnx.rewriter.symbolic.graph import SymbolicGraph

_HUGE = 2**31 - 2
_PARTS = frozenset({"Cast", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def attribute(node: Node, name: str, default: Any) -> Any:
    """A node's attribute or its default."""
    return node.attrs.get(name, default)


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis."""
    if not -rank <= axis < rank:
        raise Unliftable(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def optional_input(node: Node, position: int) -> Any:
    """An input tensor, or None where it is absent or empty."""
    if position >= len(node.inputs) or node.inputs[position].is_empty():
        return None
    return node.inputs[position]


def is_inference_dropout(node: Node) -> bool:
    """Whether a Dropout is known to pass its input on."""
    mode = optional_input(node, 2)
    return mode is None or (isinstance(mode, gs.Constant) and not np.any(mode.values))


def product(dims: Sequence[Expr]) -> Poly:
    """Product of dimensions."""
    result = Poly.const(1)
    for dim in dims:
        result = result * Poly.of(dim)
    return result


def broadcast_shape(left: Shape, right: Shape) -> Shape:
    """ONNX multidirectional broadcasting.

    Two different symbols are taken to be equal (a model in which one of them were 1
    would break that; the check on real inputs covers it).
    """
    rank = max(len(left), len(right))
    ones: tuple[Expr, ...] = (integer(1),)
    left = ones * (rank - len(left)) + tuple(left)
    right = ones * (rank - len(right)) + tuple(right)
    return tuple(_broadcast_dim(a, b) for a, b in zip(left, right, strict=True))


def _broadcast_dim(left: Expr, right: Expr) -> Expr:
    if left == integer(1):
        return right
    if right == integer(1) or left == right:
        return left
    if isinstance(left, Const) != isinstance(right, Const):
        return left if isinstance(left, Const) else right
    # A name says more than what a graph computes the same number by.
    return right if right.size < left.size else left


def broadcast_index(index: Index, dims: Shape) -> Index:
    """Index of an operand of shape ``dims`` for an index of the broadcast result."""
    tail = index[len(index) - len(dims) :] if dims else ()
    return tuple(integer(0) if dim == integer(1) else i for i, dim in zip(tail, dims, strict=True))


def regroup(index: Index, new_shape: Shape, old_shape: Shape) -> Index:
    """Index into ``old_shape`` of the element at ``index`` of a reshape to ``new_shape``.

    Both shapes are cut into the shortest groups of axes with equal products, so that
    only axes that are really merged or split meet division.
    """
    result: list[Expr] = []
    new_at = old_at = 0
    while new_at < len(new_shape) or old_at < len(old_shape):
        new_end, old_end = _next_group(new_shape, new_at, old_shape, old_at)
        result += _regroup_axes(
            index[new_at:new_end], new_shape[new_at:new_end], old_shape[old_at:old_end]
        )
        new_at, old_at = new_end, old_end
    return tuple(result)


def _next_group(new: Shape, new_at: int, old: Shape, old_at: int) -> tuple[int, int]:
    for new_end in range(new_at, len(new) + 1):
        for old_end in range(old_at, len(old) + 1):
            if (new_end, old_end) == (new_at, old_at):
                continue
            if product(new[new_at:new_end]) == product(old[old_at:old_end]):
                return new_end, old_end
    raise Unliftable("a Reshape whose dimensions can't be matched")


def _regroup_axes(index: Index, new: Shape, old: Shape) -> list[Expr]:
    flat: Expr = integer(0)
    for i, dim in zip(index, new, strict=True):
        flat = add(mul(flat, dim), i)
    result: list[Expr] = []
    for axis, dim in enumerate(old):
        stride = product(old[axis + 1 :]).expr()
        inner = floordiv(flat, stride)
        result.append(inner if axis == 0 else mod(inner, dim))
    return result


def index_below(sym: SymbolicGraph, node: Node, index: Index) -> Index | None:
    """Index in a view's output of the element at ``index`` of its input.

    None for a node that isn't a view of the whole tensor.

    Raises:
        Unliftable: a shape is unknown.
    """
    source, target = node.inputs[0], node.outputs[0]
    if node.op == "Identity":
        return index
    if node.op == "Transpose":
        perm = attribute(node, "perm", list(reversed(range(len(index)))))
        return tuple(index[axis] for axis in perm)
    if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return regroup(index, sym.shape(source), sym.shape(target))
    return None


def slice_parts(sym: SymbolicGraph, node: Node) -> dict[int, tuple[Expr, Expr, int]]:
    """For each sliced axis (start, length, step)."""
    source = sym.shape(node.inputs[0])
    starts, ends = (sym.values(node.inputs[i]) for i in (1, 2))
    axes_input, steps_input = optional_input(node, 3), optional_input(node, 4)
    axes = sym.integers(axes_input) if axes_input is not None else tuple(range(len(starts)))
    steps = sym.integers(steps_input) if steps_input is not None else (1,) * len(starts)
    parts: dict[int, tuple[Expr, Expr, int]] = {}
    for start, end, written_axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = axis_of(written_axis, len(source))
        if step > 0:
            is_buffer = _is_of_constant(node.inputs[0])
            first, last = (_slice_bound(b, source[axis], is_buffer) for b in (start, end))
        else:
            first, last = (_backward_bound(bound, source[axis]) for bound in (start, end))
        # The last element may be closer than a step: round the number of steps up.
        reach = sub(last, first) if step > 0 else sub(first, last)
        length = floordiv(add(reach, integer(abs(step) - 1)), integer(abs(step)))
        parts[axis] = (first, length, step)
    return parts


def _is_of_constant(tensor: Tensor) -> bool:
    """Whether a tensor is a constant, or a part of one."""
    while not isinstance(tensor, gs.Constant):
        if not tensor.inputs or tensor.inputs[0].op not in _PARTS:
            return False
        tensor = tensor.inputs[0].inputs[0]
    return True


def _slice_bound(bound: Expr, dim: Expr, is_buffer: bool) -> Expr:
    """A start or end inside 0..dim.

    A symbolic end on a buffer (a constant mask or position table) is taken to fit: where it
    didn't, the original graph would fail on the shapes that follow.
    """
    if isinstance(bound, Const):
        value = int(bound.value)
        if value > _HUGE:
            return dim
        if value < -_HUGE:
            return integer(0)
        return maximum(add(bound, dim), integer(0)) if value < 0 else minimum(bound, dim)
    if is_buffer and isinstance(bound, Op) and bound.name == "min" and dim in bound.args:
        # The graph clamps the bound itself.
        (bound,) = (arg for arg in bound.args if arg != dim)
    if is_positive(-Poly.of(bound)):
        return maximum(add(bound, dim), integer(0))
    # "The last n of 64" with n > 64 would select other elements, and too few of them.
    counts_back = isinstance(dim, Const) and is_nonnegative(Poly.of(dim) - Poly.of(bound))
    if not counts_back and not is_nonnegative(Poly.of(bound)):
        raise Unliftable("a Slice bound that may count from either end")
    return bound if is_buffer else minimum(bound, dim)


def _backward_bound(bound: Expr, dim: Expr) -> Expr:
    """A start or end inside -1..dim-1, for steps below 0."""
    if not isinstance(bound, Const):
        raise Unliftable("a Slice backwards from an unknown position")
    value, last = int(bound.value), sub(dim, integer(1))
    if value >= 0:
        return minimum(bound, last)
    return integer(-1) if value < -_HUGE else maximum(add(bound, dim), integer(-1))


def split_sizes(sym: SymbolicGraph, node: Node) -> tuple[int, tuple[Expr, ...]]:
    """(axis, size of each output) of a Split."""
    dims = sym.shape(node.inputs[0])
    axis = axis_of(attribute(node, "axis", 0), len(dims))
    sizes = optional_input(node, 1)
    if sizes is not None:
        return axis, sym.values(sizes)
    dim = dims[axis]
    if not isinstance(dim, Const):
        raise Unliftable("Split of an unknown dimension into equal parts")
    count = attribute(node, "num_outputs", len(node.outputs))
    chunk = -(-int(dim.value) // count)
    return axis, tuple(
        integer(min(chunk, int(dim.value) - chunk * i)) for i in range(len(node.outputs))
    )
