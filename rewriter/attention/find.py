"""Find what looks like attention, before it is read."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Var
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.attention.axes import head_hints
from stof_onnx.rewriter.attention.block import ScoreChain
from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.attention.products import PRODUCT_OPS, read_product
from stof_onnx.rewriter.graph import Node, Tensor, consumers, node_name, producer
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from stof_onnx.rewriter.symbolic.registry import Index, Shape

# How many operators may lie between a Softmax and the product with value.
_REACH = 8
_POINTWISE = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Sub", "Tanh", "Where"})


def is_attention_like(graph: gs.Graph, sym: SymbolicGraph, softmax: Node) -> bool:
    """Whether a Softmax lies between two products of run-time tensors."""
    context = ChainContext(sym, ScoreChain())
    if not context.reaches_product(softmax.inputs[0], anyhow=True):
        return False
    frontier = [softmax.outputs[0]]
    for _ in range(_REACH):
        users = [user for tensor in frontier for user in consumers(graph, tensor)]
        if any(user.op in PRODUCT_OPS and _is_of_values(user) for user in users):
            return True
        frontier = [output for user in users for output in user.outputs]
    return False


def find_in_bodies(graph: gs.Graph) -> Iterator[tuple[Node, str]]:
    """(Softmax, what it is in) of attention in the bodies of If, Loop and Scan."""
    for node in graph.nodes:
        for value in node.attrs.values():
            for body in value if isinstance(value, list) else [value]:
                if not isinstance(body, gs.Graph):
                    continue
                sym = SymbolicGraph(body)
                for inner in body.nodes:
                    if inner.op == "Softmax" and is_attention_like(body, sym, inner):
                        yield inner, f"{node.op} {node_name(node)!r}"
                yield from find_in_bodies(body)


def _is_of_values(node: Node) -> bool:
    return not any(isinstance(tensor, gs.Constant) for tensor in node.inputs)


def score_symbols(graph: gs.Graph, sym: SymbolicGraph) -> frozenset[str]:
    """Names of the dimensions that are a whole dimension of some block's scores."""
    names = set()
    for node in graph.nodes:
        product = score_product(sym, node) if node.op == "Softmax" else None
        try:
            dims = sym.shape(product.outputs[0]) if product is not None else ()
        except Unliftable:
            continue
        names |= {dim.name for dim in dims if isinstance(dim, Var)}
    return frozenset(names)


def score_product(sym: SymbolicGraph, softmax: Node) -> Node | None:
    """The product of run-time tensors that the scores come from, found roughly."""
    context = ChainContext(sym, ScoreChain())
    tensor = softmax.inputs[0]
    while context.reaches_product(tensor, anyhow=True):
        node = producer(tensor)
        if node is None or node.op in PRODUCT_OPS:
            return node
        tensor = next(t for t in node.inputs if context.reaches_product(t, anyhow=True))
    return None


def own_shape(context: ChainContext, tensor: Tensor) -> Shape:
    """Shape of the scores by their own names, not by those that a mask gives its dimensions."""
    shape = context.sym.shape(tensor)
    while (node := producer(tensor)) is not None and node.op in _POINTWISE:
        sides = [t for t in node.inputs if context.reaches_product(t, anyhow=True)]
        if len(sides) != 1 or len(context.sym.shape(sides[0])) != len(shape):
            break
        (tensor,) = sides
        shape = context.sym.shape(tensor)
    return shape


def merged_heads(sym: SymbolicGraph, softmax: Node) -> list[int]:
    """Divisors of the indices at which the score product reads its sources."""
    node = score_product(sym, softmax)
    product = read_product(sym, node) if node is not None else None
    if product is None:
        return []
    found: list[Index] = []
    for side in (0, 1):
        tensor = product.operand(side)
        index: Index = tuple(
            integer(0) if dim == integer(1) else Var(f"x{axis}", dim)
            for axis, dim in enumerate(sym.shape(tensor))
        )
        step: tuple[Tensor, Index] | None = (tensor, index)
        while step is not None:
            tensor, index = step
            found.append(index)
            step = sym.view(tensor, index) or _through_pointwise(sym, tensor, index)
    return head_hints(*found)


def _through_pointwise(
    sym: SymbolicGraph, tensor: Tensor, index: Index
) -> tuple[Tensor, Index] | None:
    """Past a scale, which keeps the index."""
    node = producer(tensor)
    if node is None or node.op not in ("Mul", "Div", "Cast"):
        return None
    source = node.inputs[0]
    try:
        same = sym.shape(source) == sym.shape(tensor)
    except Unliftable:
        return None
    return (source, index) if same else None
