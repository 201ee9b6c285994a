"""Where the block's output goes: down through the merging of heads."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Var
from stof_onnx.ir.expr.build import floordiv, integer, mod
from stof_onnx.rewriter.attention.block import OutputWrite, ScoreIndex
from stof_onnx.rewriter.graph import Node, Tensor, consumers, is_graph_output
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from stof_onnx.rewriter.symbolic.registry import Index

_STEPS = 4
_VIEWS = ("Transpose", "Reshape", "Identity")


def find_output(
    graph: gs.Graph,
    sym: SymbolicGraph,
    product: Tensor,
    index: ScoreIndex,
    size: tuple[int, int],
) -> OutputWrite:
    """The deepest tensor below the product that holds the output in a known layout.

    Args:
        graph: the graph.
        sym: its reading.
        product: output of the product with value, [B, H, Sq, D].
        index: of the scores.
        size: (heads, head dim) of the output.
    """
    heads, head_dim = size
    column = Var("e", integer(heads * head_dim)) if heads * head_dim > 1 else integer(0)
    head = integer(0) if heads == 1 else Var("h", integer(heads))
    channel = integer(0) if head_dim == 1 else Var("d", integer(head_dim))
    layouts: tuple[tuple[Index, Index], ...] = (
        (
            (index.b, index.q, column),
            (
                index.b,
                floordiv(column, integer(head_dim)),
                index.q,
                mod(column, integer(head_dim)),
            ),
        ),
        ((index.b, index.q, head, channel), (index.b, head, index.q, channel)),
    )
    best = OutputWrite(product, "BHSD", 4, ())
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
        for at, wanted in layouts:
            if _reads(sym, tensor, at, product) == wanted:
                best = OutputWrite(tensor, "BSHD", len(at), tuple(walked))
    return best


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
            if any(user.op in ("MatMul", "Range", "Expand") for user in users):
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
