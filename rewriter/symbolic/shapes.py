"""Shape rules. Operators whose output has the shape of an input are one word each."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from stof_onnx.ir.expr import Const, Expr, Op, walk
from stof_onnx.ir.expr.build import add, floordiv, integer, mul, sub
from stof_onnx.rewriter.symbolic.indexing import (
    attribute,
    axis_of,
    broadcast_shape,
    optional_input,
    product,
    slice_parts,
    split_sizes,
)
from stof_onnx.rewriter.symbolic.registry import Node, Shape, Unliftable, shape
from stof_onnx.rewriter.symbolic.sources import range_values

if TYPE_CHECKING:
    from stof_onnx.rewriter.symbolic.graph import SymbolicGraph

_SAME = (
    "Abs",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Ceil",
    "Clip",
    "Cos",
    "CumSum",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSwish",
    "Identity",
    "IsNaN",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Mish",
    "Neg",
    "Not",
    "RMSNormalization",
    "Reciprocal",
    "Relu",
    "RotaryEmbedding",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Sigmoid",
    "Sign",
    "SimplifiedLayerNormalization",
    "Sin",
    "Softmax",
    "Softplus",
    "Sqrt",
    "Swish",
    "Tanh",
    "Trilu",
)
_BROADCAST = (
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Where",
    "Xor",
)


@shape(*_SAME)
def same(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The first input's shape."""
    return sym.shape(node.inputs[0])


@shape(*_BROADCAST)
def broadcast(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """All inputs broadcast."""
    result: Shape = ()
    for tensor in node.inputs:
        result = broadcast_shape(result, sym.shape(tensor))
    return result


@shape("MatMul")
def matmul(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Batched product of operands of rank 2 or more."""
    left, right = (sym.shape(tensor) for tensor in node.inputs)
    if len(left) < 2 or len(right) < 2:
        raise Unliftable("MatMul with a vector")
    return (*broadcast_shape(left[:-2], right[:-2]), left[-2], right[-1])


@shape("Gemm")
def gemm(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """[M, N]."""
    left, right = sym.shape(node.inputs[0]), sym.shape(node.inputs[1])
    rows = left[1] if attribute(node, "transA", 0) else left[0]
    columns = right[0] if attribute(node, "transB", 0) else right[1]
    return (rows, columns)


@shape("Transpose")
def transpose(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Permuted."""
    dims = sym.shape(node.inputs[0])
    perm = attribute(node, "perm", list(reversed(range(len(dims)))))
    return tuple(dims[axis] for axis in perm)


@shape("Reshape")
def reshape(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The target, with 0 copied and -1 solved for."""
    dims = sym.shape(node.inputs[0])
    target = list(sym.values(node.inputs[1]))
    if not attribute(node, "allowzero", 0):
        target = [dims[i] if d == integer(0) else d for i, d in enumerate(target)]
    unknown = [i for i, d in enumerate(target) if d == integer(-1)]
    if unknown:
        target[unknown[0]] = _quotient(list(dims), [d for d in target if d != integer(-1)])
    return _by_count(dims, target)


def _by_count(dims: Shape, target: list[Expr]) -> Shape:
    """The target with a dimension that the graph clamps as the number of elements has it.

    Source and target hold as many elements, however the graph computed a dimension.
    """
    for i, dim in enumerate(target):
        if not any(isinstance(node, Op) and node.name in ("min", "max") for node in walk(dim)):
            continue
        with contextlib.suppress(Unliftable):
            found = _quotient(list(dims), [*target[:i], *target[i + 1 :]])
            if found.size < dim.size:
                target[i] = found
    return tuple(target)


def _quotient(total: list[Expr], known: list[Expr]) -> Expr:
    """Product of ``total`` over product of ``known``."""
    remaining = list(total)
    left = []
    for dim in known:
        if dim in remaining:
            remaining.remove(dim)  # sums divide by themselves, not as polynomials
        else:
            left.append(dim)
    quotient, rest = product(remaining).divide(product(left))
    if rest.terms or not quotient.terms:
        raise Unliftable("a Reshape to -1 whose size doesn't divide")
    return quotient.expr()


@shape("Flatten")
def flatten(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """[product before the axis, product from it on]."""
    dims = sym.shape(node.inputs[0])
    axis = attribute(node, "axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return (product(dims[:axis]).expr(), product(dims[axis:]).expr())


@shape("Unsqueeze")
def unsqueeze(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """1 on each new axis."""
    dims = sym.shape(node.inputs[0])
    axes = sym.integers(node.inputs[1])
    rank = len(dims) + len(axes)
    inserted = {axis_of(axis, rank) for axis in axes}
    kept = iter(dims)
    return tuple(integer(1) if axis in inserted else next(kept) for axis in range(rank))


@shape("Squeeze")
def squeeze(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Without the named axes, or without every axis of size 1."""
    dims = sym.shape(node.inputs[0])
    axes_input = optional_input(node, 1)
    if axes_input is None:
        return tuple(dim for dim in dims if dim != integer(1))
    removed = {axis_of(axis, len(dims)) for axis in sym.integers(axes_input)}
    return tuple(dim for axis, dim in enumerate(dims) if axis not in removed)


@shape("Expand")
def expand(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Broadcast against the target."""
    return broadcast_shape(sym.shape(node.inputs[0]), sym.values(node.inputs[1]))


@shape("Tile")
def tile(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Each axis times its repeats."""
    repeats = sym.values(node.inputs[1])
    return tuple(
        mul(dim, repeat) for dim, repeat in zip(sym.shape(node.inputs[0]), repeats, strict=True)
    )


@shape("Slice")
def slice_(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Sliced axes have their length."""
    dims = list(sym.shape(node.inputs[0]))
    for axis, (_, length, _) in slice_parts(sym, node).items():
        dims[axis] = length
    return tuple(dims)


@shape("Split")
def split(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """One part."""
    axis, sizes = split_sizes(sym, node)
    dims = sym.shape(node.inputs[0])
    return (*dims[:axis], sizes[position], *dims[axis + 1 :])


@shape("Concat")
def concat(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The joined axis adds up."""
    first = sym.shape(node.inputs[0])
    axis = axis_of(attribute(node, "axis", 0), len(first))
    total: Expr = integer(0)
    for tensor in node.inputs:
        total = add(total, sym.shape(tensor)[axis])
    return (*first[:axis], total, *first[axis + 1 :])


@shape("Gather")
def gather(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The gathered axis is replaced by the indices' axes."""
    dims = sym.shape(node.inputs[0])
    axis = axis_of(attribute(node, "axis", 0), len(dims))
    return (*dims[:axis], *sym.shape(node.inputs[1]), *dims[axis + 1 :])


@shape("GatherElements")
def gather_elements(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The indices' shape."""
    return sym.shape(node.inputs[1])


@shape("GatherND")
def gather_nd(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The indices' outer axes and what they leave of the data."""
    indices = sym.shape(node.inputs[1])
    depth = indices[-1]
    if not isinstance(depth, Const):
        raise Unliftable("GatherND with an unknown index depth")
    batch = attribute(node, "batch_dims", 0)
    return (*indices[:-1], *sym.shape(node.inputs[0])[batch + int(depth.value) :])


@shape("Shape")
def shape_of(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """One number for each axis from start to end."""
    rank = len(sym.shape(node.inputs[0]))
    start, end = attribute(node, "start", 0), attribute(node, "end", rank)
    start, end = (max(0, x + rank) if x < 0 else min(x, rank) for x in (start, end))
    return (integer(max(0, end - start)),)


@shape("Size")
def size(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """A scalar."""
    return ()


@shape("Range")
def range_(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """(limit - start) / step, rounded up, for a known positive step."""
    start, limit, step = range_values(sym, node)
    if not isinstance(step, Const):
        raise Unliftable("Range with an unknown step")
    if isinstance(start, Const) and isinstance(limit, Const):
        return (integer(len(range(int(start.value), int(limit.value), int(step.value)))),)
    if step.value < 1:
        raise Unliftable(f"Range with step {step.value}")
    return (floordiv(add(sub(limit, start), integer(int(step.value) - 1)), step),)


@shape("ConstantOfShape")
def constant_of_shape(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The input's values."""
    if sym.shape(node.inputs[0]) == (integer(0),):
        return ()
    return sym.values(node.inputs[0])


@shape("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2")
def reduce(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Reduced axes become 1 or disappear."""
    dims = sym.shape(node.inputs[0])
    axes_input = optional_input(node, 1)
    axes = sym.integers(axes_input) if axes_input is not None else attribute(node, "axes", None)
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return dims
    if not axes:
        axes = range(len(dims))
    reduced = {axis_of(axis, len(dims)) for axis in axes}
    if attribute(node, "keepdims", 1):
        return tuple(integer(1) if axis in reduced else dim for axis, dim in enumerate(dims))
    return tuple(dim for axis, dim in enumerate(dims) if axis not in reduced)
