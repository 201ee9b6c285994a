"""How query, key and value are read: back through views to the projections' layout.

The path from a product's operand back to the projection is followed as index
arithmetic; where the index ends up as ``(b, s, offset + h * stride + d)`` the tensor
can be read in place, whatever mixture of Reshape, Transpose, Split, Slice and Expand
lies between. Where it never does, the operand itself is brought into [B, heads, S, D] by a
Transpose and a Reshape.
"""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.ir.expr import Const, Expr, Poly
from stof_onnx.ir.expr.build import add, floordiv, integer, mul
from stof_onnx.ir.operators.masked_attention import TensorLayout
from stof_onnx.rewriter.attention.block import Arrangement, OperandRead
from stof_onnx.rewriter.attention.context import FLOAT_TYPES, ChainContext, float_type
from stof_onnx.rewriter.graph import Node, Tensor, producer
from stof_onnx.rewriter.symbolic.indexing import broadcast_index
from stof_onnx.rewriter.symbolic.registry import Index, Shape, Unliftable

# (b, h, s, d): batch, head, token and channel of an operand.
Variables = tuple[Expr, Expr, Expr, Expr]


@dataclass(frozen=True)
class Sizes:
    """What the variables of an operand run over.

    Attributes:
        batch: B.
        heads: query heads H.
        tokens: Sq or Sk.
        channels: head dim.
        held: heads that the tensor must hold; 0 for the fewest there are.
        dtype: float type that the tensor must have; "" for any.
        may_scale: whether a factor on the way can be moved into the scores.
    """

    batch: Expr
    heads: int
    tokens: Expr
    channels: int
    held: int = 0
    dtype: str = ""
    may_scale: bool = True

    def allows(self, tensor: Tensor, held: int) -> bool:
        """Whether this tensor of so many heads is wanted."""
        return self.held in (0, held) and self.dtype in ("", float_type(tensor))


def read_operand(
    context: ChainContext,
    tensor: Tensor,
    index: Index,
    variables: Variables,
    sizes: Sizes,
) -> tuple[OperandRead | None, list[Node]]:
    """Follow an operand back as far as its layout stays readable.

    Args:
        context: the graph.
        tensor: the operand of the product.
        index: its index, written with the variables.
        variables: b, h, s and d.
        sizes: what these run over.

    Returns:
        The deepest readable tensor (None if there is none) and the nodes above it that
        were walked through.
    """
    best = _arranged(context, tensor, index, variables, sizes)
    walked: list[Node] = []
    best_walked: list[Node] = []
    scale = 1.0
    while True:
        found = _layout(context, tensor, index, variables, sizes)
        if found is not None and sizes.allows(tensor, found[1]):
            best = OperandRead(tensor, found[0], found[1], scale)
            best_walked = list(walked)
        node = producer(tensor)
        step = context.sym.view(tensor, index)
        if step is not None:
            tensor, index = step
        else:
            scaled = _scaled(context, node, index) if node is not None else None
            if scaled is None or (scaled[2] != 1.0 and not sizes.may_scale):
                return best, best_walked
            tensor, index, factor = scaled
            scale *= factor
        walked.append(node)


def _scaled(context: ChainContext, node: Node, index: Index) -> tuple[Tensor, Index, float] | None:
    """(input, its index, factor) of a Mul or Div by one number, or of a Cast that is exact."""
    if node.op == "Cast":
        source, target = float_type(node.inputs[0]), float_type(node.outputs[0])
        is_exact = source in FLOAT_TYPES and target in {source, "float32"}
        return (node.inputs[0], index, 1.0) if is_exact else None
    if node.op not in ("Mul", "Div"):
        return None
    for position in (1, 0) if node.op == "Mul" else (1,):
        factor = context.factor(node, position)
        source = node.inputs[1 - position]
        if factor is None:
            continue
        dims = context.sym.shape(source)
        if len(dims) != len(index):
            return None
        return source, broadcast_index(index, dims), factor
    return None


def _layout(
    context: ChainContext, tensor: Tensor, index: Index, variables: Variables, sizes: Sizes
) -> tuple[TensorLayout, int] | None:
    """(layout, number of heads in the tensor) if the index is one of the layouts.

    The tensor must hold exactly the batches and tokens that are read: an index alone
    doesn't show that a Slice cut something off.
    """
    try:
        dims = context.sym.shape(tensor)
    except Unliftable:
        return None
    if len(dims) != len(index) or not dims or dims[0] != sizes.batch:
        return None
    return _match_bhsd(dims, index, variables, sizes) or _match_bshd(dims, index, variables, sizes)


def _match_bhsd(
    dims: Shape, index: Index, variables: Variables, sizes: Sizes
) -> tuple[TensorLayout, int] | None:
    batch, head, token, channel = variables
    if len(dims) != 4 or (index[0], index[2], index[3]) != (batch, token, channel):
        return None
    if (dims[2], dims[3]) != (sizes.tokens, integer(sizes.channels)):
        return None
    if not isinstance(dims[1], Const):
        return None
    held = int(dims[1].value)
    if held == 0 or sizes.heads % held:
        return None
    if index[1] != floordiv(head, integer(sizes.heads // held)):
        return None
    return TensorLayout("BHSD"), held


def _match_bshd(
    dims: Shape, index: Index, variables: Variables, sizes: Sizes
) -> tuple[TensorLayout, int] | None:
    batch, head, token, channel = variables
    if len(dims) < 3 or (index[0], index[1]) != (batch, token) or dims[1] != sizes.tokens:
        return None
    row: Expr = integer(0)
    for dim, i in zip(dims[2:], index[2:], strict=True):
        if not isinstance(dim, Const):
            return None
        row = add(mul(row, dim), i)
    for held in _divisors(sizes.heads):
        group = floordiv(head, integer(sizes.heads // held))
        layout = _match_row(Poly.of(row), group, channel)
        if layout is not None:
            return layout, held
    return None


def _match_row(row: Poly, head: Expr, channel: Expr) -> TensorLayout | None:
    """The layout of a row position ``offset + head_stride * head + channel``."""
    rest = row - Poly.of(channel)
    stride = 0
    if not isinstance(head, Const):
        parts = rest.split(head)
        if parts is None or parts[0].constant is None:
            return None
        stride, rest = parts[0].constant, parts[1]
        if stride == 0:
            return None
    offset = rest.constant
    if offset is None or offset < 0 or stride < 0:
        return None
    return TensorLayout("BSHD", offset, stride)


def _divisors(heads: int) -> list[int]:
    """Possible numbers of key heads, the largest first."""
    return [n for n in range(heads, 0, -1) if heads % n == 0]


def _arranged(
    context: ChainContext, tensor: Tensor, index: Index, variables: Variables, sizes: Sizes
) -> OperandRead | None:
    """The operand as it is, put in order by Transpose and Reshape; None if that can't be."""
    batch, head, token, channel = variables
    dims = context.sym.shape(tensor)
    last = [_axis(dims, index, token, sizes.tokens)]
    last.append(_axis(dims, index, channel, integer(sizes.channels), taken=last[0]))
    if None in last:
        return None
    lead = [axis for axis in range(len(dims)) if axis not in last]
    flat: Expr = integer(0)
    count: Expr = integer(1)
    for axis in lead:
        flat, count = add(mul(flat, dims[axis]), index[axis]), mul(count, dims[axis])
    for held in _divisors(sizes.heads):
        group = floordiv(head, integer(sizes.heads // held))
        is_whole = count == mul(sizes.batch, integer(held))
        is_flat = flat == add(mul(batch, integer(held)), group)
        if sizes.allows(tensor, held) and is_whole and is_flat:
            perm = (*lead, *(axis for axis in last if axis is not None))
            is_split = [dims[axis] for axis in lead] == [sizes.batch, integer(held)]
            arrangement = Arrangement(perm, None if is_split else held)
            return OperandRead(tensor, TensorLayout("BHSD"), held, 1.0, arrangement)
    return None


def _axis(
    dims: Shape, index: Index, variable: Expr, size: Expr, taken: int | None = None
) -> int | None:
    """The axis that a variable alone runs over; the last one, for variables that are 0."""
    for axis in range(len(dims) - 1, -1, -1):
        if axis != taken and index[axis] == variable and dims[axis] == size:
            return axis
    return None
