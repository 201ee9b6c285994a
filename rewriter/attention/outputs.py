"""Where the block's output goes: down through the merging of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Expr, Var, substitute
from stof_onnx.ir.expr.build import add, floordiv, integer, mod, mul
from stof_onnx.rewriter.attention.block import OutputWrite, ScoreIndex
from stof_onnx.rewriter.graph import Node, Tensor, consumers, is_graph_output
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from stof_onnx.rewriter.symbolic.indexing import product as product_of
from stof_onnx.rewriter.symbolic.registry import Index

_STEPS = 6
_VIEWS = ("Transpose", "Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class OutputSizes:
    """What a block's output runs over.

    Attributes:
        index: b, h and q (k is not used).
        channel: the variable over the head dim of value.
        batch, queries: dimensions.
        heads, head_dim: numbers.
    """

    index: ScoreIndex
    channel: Expr
    batch: Expr
    queries: Expr
    heads: int
    head_dim: int

    @property
    def bhsd(self) -> tuple[Expr, Expr, Expr, Expr]:
        """Dimensions of the output with its heads apart."""
        return (self.batch, integer(self.heads), self.queries, integer(self.head_dim))


def find_output(
    graph: gs.Graph, sym: SymbolicGraph, product: Tensor, at: Index, sizes: OutputSizes
) -> OutputWrite | None:
    """The deepest tensor below the product that holds the output in a known layout.

    Args:
        graph: the graph.
        sym: its reading.
        product: output of the product with value.
        at: index in it of output (b, h, q, d), written with the variables of ``sizes``.
        sizes: of the output.

    Returns:
        None if not even the product's own output has a layout that a Reshape gives.
    """
    index = sizes.index
    heads, head_dim = sizes.heads, sizes.head_dim
    column = Var("e", integer(heads * head_dim)) if heads * head_dim > 1 else integer(0)
    at_column = _at(at, sizes, floordiv(column, integer(head_dim)), mod(column, integer(head_dim)))
    layouts: tuple[tuple[Index, Index], ...] = (
        ((index.b, index.q, column), at_column),
        ((index.b, index.q, index.h, sizes.channel), at),
    )
    best = _own_layout(sym, product, at, sizes)
    walked: list[Node] = []
    tensor = product
    for _ in range(_STEPS):
        user = _only_view(graph, tensor, walked)
        if user is None:
            break
        walked.append(user)
        tensor = user.outputs[0]
        # The shape of the last tensor stays available: the stof node makes that tensor.
        if not shapes_die(graph, [*product.inputs, *walked], tensor):
            continue
        for below, wanted in layouts:
            if _reads(sym, tensor, below, product) == wanted and _holds(sym, tensor, sizes):
                best = OutputWrite(tensor, "BSHD", len(below), tuple(walked))
    return best


def _own_layout(
    sym: SymbolicGraph, product: Tensor, at: Index, sizes: OutputSizes
) -> OutputWrite | None:
    """The product's output itself: as it is, or as a Reshape of [B, H, Sq, D]."""
    index, dims = sizes.index, sym.shape(product)
    tail = (index.q, sizes.channel)
    if at == (index.b, index.h, *tail):
        return OutputWrite(product, "BHSD", 4, ())
    if at == (index.b, index.q, index.h, sizes.channel):
        return OutputWrite(product, "BSHD", 4, ())
    order = (index.b, index.h, *tail)
    if len(at) == 4 and sorted(map(repr, at)) == sorted(map(repr, order)):
        perm = _permutation(at, order)
        if tuple(dims[axis] for axis in _inverse(perm)) == sizes.bhsd:
            return OutputWrite(product, "BHSD", 4, (), perm=perm)
    lead = dims[:-2]
    flat: Expr = integer(0)
    for dim, i in zip(lead, at[:-2], strict=True):
        flat = add(mul(flat, dim), i)
    wanted = add(mul(index.b, integer(sizes.heads)), index.h)
    # A Reshape solves for one unknown dimension.
    solvable = sum(not isinstance(dim, Const) for dim in lead) <= 1
    if at[-2:] == tail and flat == wanted and solvable:
        return OutputWrite(product, "BHSD", 4, (), lead)
    return None


def _permutation(at: Index, order: Index) -> tuple[int, ...]:
    """``perm`` of the Transpose that puts axes of ``order`` where ``at`` has them."""
    left = list(range(len(order)))
    perm = []
    for expr in at:
        axis = next(axis for axis in left if order[axis] == expr)
        left.remove(axis)
        perm.append(axis)
    return tuple(perm)


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(perm.index(axis) for axis in range(len(perm)))


def _at(at: Index, sizes: OutputSizes, head: Expr, channel: Expr) -> Index:
    """The product's index with other expressions for head and channel."""

    def moved(node: Expr) -> Expr | None:
        if not isinstance(node, Var):
            return None
        return {sizes.index.h: head, sizes.channel: channel}.get(node)

    return tuple(substitute(expr, moved) for expr in at)


def _holds(sym: SymbolicGraph, tensor: Tensor, sizes: OutputSizes) -> bool:
    """Whether a [B, Sq, ...] tensor has room for the output and nothing else."""
    dims = sym.shape(tensor)
    row = product_of(dims[2:]).constant
    return dims[:2] == (sizes.batch, sizes.queries) and row == sizes.heads * sizes.head_dim


def _only_view(graph: gs.Graph, tensor: Tensor, walked: list[Node]) -> Node | None:
    """The view that is a tensor's only user; Shape nodes don't count as users."""
    if is_graph_output(graph, tensor):
        return None
    users = [user for user in consumers(graph, tensor) if user.op != "Shape"]
    if len(users) != 1 or users[0].op not in _VIEWS or users[0].inputs[0] is not tensor:
        return None
    return users[0]


def shapes_die(graph: gs.Graph, walked: Sequence[Node], kept: Tensor) -> bool:
    """Whether the shapes of the nodes' outputs, ``kept`` excepted, serve only these nodes.

    Were one of them needed elsewhere, the original product would have to stay.
    """
    gone = {id(node) for node in walked}
    frontier = [
        user
        for node in walked
        for output in node.outputs
        if output is not kept
        for user in consumers(graph, output)
        if user.op == "Shape"
    ]
    seen: set[int] = set()
    while frontier:
        node = frontier.pop()
        if id(node) in seen or id(node) in gone:
            continue
        seen.add(id(node))
        for output in node.outputs:
            if is_graph_output(graph, output):
                return False
            users = list(consumers(graph, output))
            if any(user.op in ("MatMul", "Range") for user in users):
                return False
            frontier += users
        if len(seen) > 64:
            return False
    return True


def _reads(sym: SymbolicGraph, tensor: Tensor, index: Index, source: Tensor) -> Index | None:
    """The index of ``source`` that element ``index`` of a view of it is."""
    try:
        if len(sym.shape(tensor)) != len(index):
            return None
    except Unliftable:
        return None
    while tensor is not source:
        step = sym.view(tensor, index)
        if step is None:
            return None
        tensor, index = step
    return index
