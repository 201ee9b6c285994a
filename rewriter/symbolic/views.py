"""View rules: operators that only move elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Expr, Poly
from stof_onnx.ir.expr.bounds import is_nonnegative, is_positive
from stof_onnx.ir.expr.build import add, ge0, integer, mod, mul, where
from stof_onnx.rewriter.symbolic.indexing import (
    attribute,
    axis_of,
    broadcast_index,
    is_inference_dropout,
    optional_input,
    regroup,
    slice_parts,
    split_sizes,
)
from stof_onnx.rewriter.symbolic.registry import Index, Node, Tensor, Unliftable, view

if TYPE_CHECKING:
    from stof_onnx.rewriter.symbolic.graph import SymbolicGraph


@view("Identity")
def identity(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """The input."""
    return node.inputs[0], index


@view("Dropout")
def dropout(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """The input, at inference."""
    if position != 0 or not is_inference_dropout(node):
        raise Unliftable("a Dropout that drops, or its mask")
    return node.inputs[0], index


@view("Transpose")
def transpose(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """out[i] = in[i permuted back]."""
    perm = attribute(node, "perm", list(reversed(range(len(index)))))
    moved = [index[0]] * len(index)
    for axis, source_axis in enumerate(perm):
        moved[source_axis] = index[axis]
    return node.inputs[0], tuple(moved)


@view("Reshape", "Flatten")
def reshape(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """Row-major order is kept."""
    new, old = sym.shape(node.outputs[0]), sym.shape(node.inputs[0])
    return node.inputs[0], regroup(index, new, old)


@view("Unsqueeze")
def unsqueeze(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """Drop the inserted axes."""
    axes = {axis_of(axis, len(index)) for axis in sym.integers(node.inputs[1])}
    return node.inputs[0], tuple(i for axis, i in enumerate(index) if axis not in axes)


@view("Squeeze")
def squeeze(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """Put index 0 on the removed axes."""
    dims = sym.shape(node.inputs[0])
    axes_input = optional_input(node, 1)
    if axes_input is None:
        axes = {axis for axis, dim in enumerate(dims) if dim == integer(1)}
    else:
        axes = {axis_of(axis, len(dims)) for axis in sym.integers(axes_input)}
    kept = iter(index)
    return node.inputs[0], tuple(
        integer(0) if axis in axes else next(kept) for axis in range(len(dims))
    )


@view("Expand")
def expand(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """Broadcast axes read index 0."""
    return node.inputs[0], broadcast_index(index, sym.shape(node.inputs[0]))


@view("Tile")
def tile(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """Each repeat reads the same elements."""
    dims = sym.shape(node.inputs[0])
    repeats = sym.values(node.inputs[1])
    return node.inputs[0], tuple(
        i if repeat == integer(1) else mod(i, dim)
        for i, dim, repeat in zip(index, dims, repeats, strict=True)
    )


@view("Slice")
def slice_(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """Shift by the start of each sliced axis, in its steps."""
    moved = list(index)
    for axis, (start, _, step) in slice_parts(sym, node).items():
        moved[axis] = add(start, mul(integer(step), moved[axis]))
    return node.inputs[0], tuple(moved)


@view("Split")
def split(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """Shift by the sizes of the outputs before this one."""
    axis, sizes = split_sizes(sym, node)
    moved = list(index)
    for size in sizes[:position]:
        moved[axis] = add(moved[axis], size)
    return node.inputs[0], tuple(moved)


def from_front(indices: Tensor, at: Expr, dim: Expr) -> Expr:
    """An index that may count from the end, counted from the front.

    Args:
        indices: the tensor that it is an element of.
        at: the index.
        dim: length of the axis.
    """
    values = indices.values if isinstance(indices, gs.Constant) else None
    if is_nonnegative(Poly.of(at)) or (values is not None and np.all(values >= 0)):
        return at
    if is_positive(-Poly.of(at)) or (values is not None and np.all(values < 0)):
        return add(at, dim)
    return where(ge0(at), at, add(at, dim))


@view("Gather")
def gather(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """The gathered axis is indexed by the indices tensor's element."""
    data, indices = node.inputs
    dims = sym.shape(data)
    axis = axis_of(attribute(node, "axis", 0), len(dims))
    rank = len(sym.shape(indices))
    at = from_front(indices, sym.element(indices, index[axis : axis + rank]), dims[axis])
    return data, (*index[:axis], at, *index[axis + rank :])


@view("GatherElements")
def gather_elements(
    sym: SymbolicGraph, node: Node, position: int, index: Index
) -> tuple[Tensor, Index]:
    """out[i] = data[i with one axis replaced by indices[i]]."""
    data, indices = node.inputs
    axis = axis_of(attribute(node, "axis", 0), len(index))
    at = from_front(indices, sym.element(indices, index), sym.shape(data)[axis])
    return data, (*index[:axis], at, *index[axis + 1 :])


@view("GatherND")
def gather_nd(sym: SymbolicGraph, node: Node, position: int, index: Index) -> tuple[Tensor, Index]:
    """The last axis of the indices tensor holds an index into the data."""
    if attribute(node, "batch_dims", 0) != 0:
        raise Unliftable("GatherND with batch_dims")
    data, indices = node.inputs
    rank = len(sym.shape(indices))
    depth = sym.shape(indices)[-1]
    if not isinstance(depth, Const):
        raise Unliftable("GatherND with an unknown index depth")
    outer = index[: rank - 1]
    dims = sym.shape(data)
    at = tuple(
        from_front(indices, sym.element(indices, (*outer, integer(i))), dims[i])
        for i in range(int(depth.value))
    )
    return data, (*at, *index[rank - 1 :])
