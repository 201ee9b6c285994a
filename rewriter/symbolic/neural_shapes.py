"""Shape rules of larger operators: products by equation, selections, convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Expr, Var
from stof_onnx.ir.expr.build import add, floordiv, integer, mul, sub
from stof_onnx.rewriter.symbolic.indexing import attribute, axis_of, broadcast_shape, optional_input
from stof_onnx.rewriter.symbolic.registry import Node, Shape, Unliftable, shape

if TYPE_CHECKING:
    from stof_onnx.rewriter.symbolic.graph import SymbolicGraph


@shape("Einsum")
def einsum(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Dimensions by label; an ellipsis stands for the axes that the labels leave."""
    terms, arrow, out = node.attrs["equation"].replace(" ", "").partition("->")
    if not arrow:
        raise Unliftable("Einsum without an output term")
    sizes: dict[str, Expr] = {}
    stack: Shape = ()
    for term, tensor in zip(terms.split(","), node.inputs, strict=True):
        dims = sym.shape(tensor)
        before, ellipsis, after = term.partition("...")
        middle = len(dims) - len(after) if ellipsis else len(before)
        stack = broadcast_shape(stack, dims[len(before) : middle])
        for label, dim in zip(before + after, (*dims[: len(before)], *dims[middle:]), strict=True):
            if sizes.get(label, integer(1)) == integer(1):
                sizes[label] = dim
    before, ellipsis, after = out.partition("...")
    inner = stack if ellipsis else ()
    return (*(sizes[x] for x in before), *inner, *(sizes[x] for x in after))


@shape("TopK")
def top_k(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The axis has k elements."""
    dims = list(sym.shape(node.inputs[0]))
    (count,) = sym.values(node.inputs[1])
    dims[axis_of(attribute(node, "axis", -1), len(dims))] = count
    return tuple(dims)


@shape("ArgMax", "ArgMin")
def arg_max(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The axis becomes 1 or disappears."""
    dims = sym.shape(node.inputs[0])
    axis = axis_of(attribute(node, "axis", 0), len(dims))
    kept: Shape = (integer(1),) if attribute(node, "keepdims", 1) else ()
    return (*dims[:axis], *kept, *dims[axis + 1 :])


@shape("NonZero")
def non_zero(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """[rank, a number that the data decide]."""
    rank = len(sym.shape(node.inputs[0]))
    return (integer(rank), Var(f"{node.outputs[0].name}.1"))


@shape("OneHot")
def one_hot(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """A new axis of the given depth."""
    dims = sym.shape(node.inputs[0])
    axis = axis_of(attribute(node, "axis", -1), len(dims) + 1)
    (depth,) = sym.values(node.inputs[1])
    return (*dims[:axis], depth, *dims[axis:])


@shape("Pad")
def pad(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Each padded axis grows at both ends."""
    dims = list(sym.shape(node.inputs[0]))
    pads = sym.values(node.inputs[1])
    axes_input = optional_input(node, 3)
    axes = sym.integers(axes_input) if axes_input is not None else tuple(range(len(dims)))
    for i, written in enumerate(axes):
        axis = axis_of(written, len(dims))
        dims[axis] = add(dims[axis], add(pads[i], pads[i + len(axes)]))
    return tuple(dims)


@shape("Conv")
def conv(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """[N, M, spatial...] with explicit padding."""
    dims, weight = sym.shape(node.inputs[0]), sym.shape(node.inputs[1])
    kernel = [int(d.value) for d in weight[2:] if isinstance(d, Const)]
    if len(kernel) != len(dims) - 2:
        raise Unliftable("Conv with a kernel of unknown size")
    return (dims[0], weight[0], *_slid(node, dims[2:], kernel))


@shape("AveragePool", "MaxPool", "LpPool")
def pool(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """[N, C, spatial...] with explicit padding."""
    dims = sym.shape(node.inputs[0])
    if attribute(node, "ceil_mode", 0):
        raise Unliftable(f"{node.op} that rounds up")
    return (*dims[:2], *_slid(node, dims[2:], list(node.attrs["kernel_shape"])))


@shape("GlobalAveragePool", "GlobalMaxPool")
def global_pool(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Spatial axes become 1."""
    dims = sym.shape(node.inputs[0])
    return (*dims[:2], *(integer(1) for _ in dims[2:]))


def _slid(node: Node, dims: Shape, kernel: list[int]) -> Shape:
    """How often a window fits on each axis."""
    count = len(dims)
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unliftable(f"{node.op} that pads by itself")
    pads = attribute(node, "pads", [0] * 2 * count)
    strides = attribute(node, "strides", [1] * count)
    dilations = attribute(node, "dilations", [1] * count)
    result = []
    for axis, dim in enumerate(dims):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        room = sub(add(dim, integer(pads[axis] + pads[axis + count])), integer(extent))
        result.append(add(floordiv(room, integer(strides[axis])), integer(1)))
    return tuple(result)


@shape(
    "InstanceNormalization", "GroupNormalization", "LpNormalization", "MeanVarianceNormalization"
)
def normalization(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The input's shape."""
    return sym.shape(node.inputs[0])


@shape("Resize")
def resize(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The sizes, or dimensions times known factors rounded down."""
    dims = list(sym.shape(node.inputs[0]))
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unliftable("Resize that keeps an aspect ratio")
    axes = attribute(node, "axes", list(range(len(dims))))
    sizes, scales = optional_input(node, 3), optional_input(node, 2)
    if sizes is not None:
        for axis, value in zip(axes, sym.values(sizes), strict=True):
            dims[axis_of(axis, len(dims))] = value
        return tuple(dims)
    if not isinstance(scales, gs.Constant):
        raise Unliftable("Resize by factors computed at run time")
    for axis, factor in zip(axes, scales.values.reshape(-1).tolist(), strict=True):
        at = axis_of(axis, len(dims))
        dims[at] = _resized(dims[at], float(factor))
    return tuple(dims)


def _resized(dim: Expr, factor: float) -> Expr:
    if factor == int(factor):
        return mul(dim, integer(int(factor)))
    if isinstance(dim, Const):
        return integer(int(int(dim.value) * factor))
    raise Unliftable(f"Resize of an unknown dimension by {factor}")


@shape("DepthToSpace")
def depth_to_space(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Channels become larger height and width."""
    batch, channels, height, width = sym.shape(node.inputs[0])
    block = integer(node.attrs["blocksize"])
    return (batch, floordiv(channels, mul(block, block)), mul(height, block), mul(width, block))
