"""Match one attention block around a Softmax."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Expr, Var, to_text
from stof_onnx.ir.expr.build import integer
from stof_onnx.ir.operators.masked_attention import TensorLayout
from stof_onnx.rewriter.attention.block import (
    AttentionBlock,
    MaskStage,
    OperandRead,
    Refused,
    ScoreChain,
    ScoreIndex,
)
from stof_onnx.rewriter.attention.context import FLOAT_TYPES, SEEN_THROUGH, ChainContext, float_type
from stof_onnx.rewriter.attention.operands import Sizes, read_operand
from stof_onnx.rewriter.attention.outputs import find_output, shapes_die
from stof_onnx.rewriter.attention.score_steps import SCORE_STEPS
from stof_onnx.rewriter.attention.weight_steps import WEIGHT_STEPS
from stof_onnx.rewriter.graph import Node, Tensor, consumers, is_graph_output, node_name, producer
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from stof_onnx.rewriter.symbolic.indexing import broadcast_index

Role = Literal["query", "key", "value"]

_RANK = 4


def is_attention_like(graph: gs.Graph, sym: SymbolicGraph, softmax: Node) -> bool:
    """Whether a Softmax lies between two products of run-time tensors."""
    context = ChainContext(sym, ScoreChain())
    if not context.reaches_product(softmax.inputs[0], passed=SEEN_THROUGH):
        return False
    frontier = [softmax.outputs[0]]
    for _ in range(6):
        users = [user for tensor in frontier for user in consumers(graph, tensor)]
        if any(user.op == "MatMul" for user in users):
            return True
        frontier = [output for user in users for output in user.outputs]
    return False


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
    while context.reaches_product(tensor, passed=SEEN_THROUGH):
        node = producer(tensor)
        if node is None or node.op == "MatMul":
            return node
        tensor = next(t for t in node.inputs if context.reaches_product(t, passed=SEEN_THROUGH))
    return None


def match_block(graph: gs.Graph, sym: SymbolicGraph, softmax: Node) -> AttentionBlock:
    """Read one block.

    Raises:
        Refused: naming the node that doesn't fit and why.
    """
    chain = ScoreChain()
    context = ChainContext(sym, chain)
    with contextlib.suppress(Unliftable):  # an unknown shape has a better reason further up
        _require_rank(softmax, len(sym.shape(softmax.inputs[0])))
    product = _walk_scores(graph, context, softmax)
    dims, assumptions = _score_dims(sym, softmax, product, chain.stages)
    weights, guarded, weight_nodes = _walk_weights(graph, sym, softmax)
    value_product = _value_product(graph, weights)
    index = ScoreIndex(*(_index(n, dim) for n, dim in zip("bhqk", dims, strict=True)))
    heads = _heads(softmax, dims)
    head_dim = _size(sym, product, product.inputs[0], -1)
    value_dim = _size(sym, value_product, value_product.inputs[1], -1)
    reads = [
        _read(context, (index, dims), "query", product, head_dim),
        _read(context, (index, dims), "key", product, head_dim),
        _read(context, (index, dims), "value", value_product, value_dim),
    ]
    query, key, value = (read for read, _ in reads)
    _check_heads(product, query, key, value, heads)
    output = find_output(graph, sym, value_product.outputs[0], index, (heads, value_dim))
    dtype = _common_type(product, [query.tensor, key.tensor, value.tensor, output.tensor])
    inner = [softmax, value_product, *chain.nodes, *weight_nodes]
    if not shapes_die(graph, [*inner, *output.nodes], output.tensor):
        raise Refused(softmax, "the shape of the scores or weights is needed elsewhere")
    walked = [*inner, *output.nodes, *(node for _, nodes in reads for node in nodes)]
    chain.score_dtype = chain.score_dtype or dtype
    if chain.score_dtype not in FLOAT_TYPES:
        raise Refused(softmax, f"masks meet the scores as {chain.score_dtype or 'unknown type'}")
    return AttentionBlock(
        name=node_name(softmax),
        softmax=softmax,
        dims=dims,
        index=index,
        query=query,
        key=key,
        value=value,
        output=output,
        chain=chain,
        nan_to_zero=guarded,
        head_dim=head_dim,
        value_head_dim=value_dim,
        dtype=dtype,
        nodes=len({id(node) for node in walked}),
        assumptions=assumptions,
    )


def _common_type(product: Node, tensors: list[Tensor]) -> str:
    types = {float_type(tensor) for tensor in tensors}
    if len(types) != 1 or not types <= set(FLOAT_TYPES):
        found = ", ".join(sorted(t or "unknown" for t in types))
        raise Refused(product, f"query, key, value and output have types {found}")
    return types.pop()


def _index(name: str, dim: Expr) -> Expr:
    return integer(0) if dim == integer(1) else Var(name, dim)


def _score_dims(
    sym: SymbolicGraph, softmax: Node, product: Node, stages: Sequence[MaskStage]
) -> tuple[tuple[Expr, Expr, Expr, Expr], tuple[str, ...]]:
    """(B, H, Sq, Sk) of the score product, and equalities taken for granted.

    A mask may not enlarge the scores; where it brings a dimension of another name, the
    two are taken to be equal.
    """
    try:
        dims = sym.shape(product.outputs[0])
        shapes = [sym.shape(stage.tensor) for stage in stages]
    except Unliftable as reason:
        raise Refused(softmax, f"the shape of the scores is unknown: {reason}") from reason
    _require_rank(softmax, len(dims))
    if softmax.attrs.get("axis", -1) not in (-1, _RANK - 1):
        raise Refused(softmax, f"softmax over axis {softmax.attrs['axis']}, not over the keys")
    assumed: dict[str, None] = {}
    for stage, shape in zip(stages, shapes, strict=True):
        _require_rank(softmax, max(_RANK, len(shape)))
        for own, other in zip(reversed(dims), reversed(shape), strict=False):
            if other in (own, integer(1)):
                continue
            a, b = to_text(own), to_text(other)
            if not (isinstance(own, Var) and isinstance(other, Var)):
                raise Refused(stage.node, f"the mask makes {a} of the scores {b}")
            assumed[f"dimensions {a!r} and {b!r} are taken to be equal"] = None
    return (dims[0], dims[1], dims[2], dims[3]), tuple(assumed)


def _require_rank(softmax: Node, rank: int) -> None:
    if rank != _RANK:
        raise Refused(softmax, f"scores have rank {rank}; only [B, H, Sq, Sk] is supported")


def _heads(softmax: Node, dims: tuple[Expr, ...]) -> int:
    if not isinstance(dims[1], Const):
        raise Refused(softmax, f"the number of heads is not fixed ({dims[1]!r})")
    return int(dims[1].value)


def _size(sym: SymbolicGraph, node: Node, tensor: Tensor, axis: int) -> int:
    try:
        dim = sym.shape(tensor)[axis]
    except Unliftable as reason:
        raise Refused(node, f"an operand's shape is unknown: {reason}") from reason
    if not isinstance(dim, Const):
        raise Refused(node, "the head dimension is not fixed")
    return int(dim.value)


def _walk_scores(graph: gs.Graph, context: ChainContext, softmax: Node) -> Node:
    """From the Softmax up to the product of query and key."""
    tensor, below = softmax.inputs[0], softmax
    while True:
        users = [user for user in consumers(graph, tensor) if user.op != "Shape"]
        if len(users) != 1 or is_graph_output(graph, tensor):
            raise Refused(below, f"the scores {tensor.name!r} are also used elsewhere")
        node = producer(tensor)
        if node is None:
            raise Refused(below, f"the scores {tensor.name!r} are an input of the graph")
        context.chain.nodes.append(node)
        if node.op == "MatMul":
            return node
        tensor, below = _score_step(context, node), node


def _score_step(context: ChainContext, node: Node) -> Tensor:
    for step in SCORE_STEPS:
        found = step(context, node)
        if found is not None:
            return found
    raise Refused(node, f"operator {node.op} between the scores and the softmax is not supported")


def _walk_weights(
    graph: gs.Graph, sym: SymbolicGraph, softmax: Node
) -> tuple[Tensor, bool, list[Node]]:
    """From the Softmax down to the tensor of weights that value is multiplied with."""
    tensor, guarded = softmax.outputs[0], False
    walked: list[Node] = []
    while True:
        if is_graph_output(graph, tensor):
            raise Refused(softmax, "the attention weights are an output of the model")
        users = list(consumers(graph, tensor))
        for step in WEIGHT_STEPS:
            found = step(sym, tensor, users)
            if found is not None:
                break
        else:
            return tensor, guarded, walked
        for output in (output for node in found.nodes for output in node.outputs):
            if output is not found.tensor and is_graph_output(graph, output):
                raise Refused(softmax, f"{output.name!r} below it is an output of the model")
        tensor, guarded = found.tensor, guarded or found.nan_to_zero
        walked += found.nodes


def _value_product(graph: gs.Graph, weights: Tensor) -> Node:
    users = list(consumers(graph, weights))
    products = [u for u in users if u.op == "MatMul" and u.inputs[0] is weights]
    if len(users) != 1 or len(products) != 1 or products[0].inputs[1] is weights:
        names = ", ".join(f"{user.op} {user.name!r}" for user in users) or "nothing"
        raise Refused(
            producer(weights), f"the attention weights are used by {names}, not by one MatMul alone"
        )
    return products[0]


def _read(
    context: ChainContext,
    scores: tuple[ScoreIndex, tuple[Expr, Expr, Expr, Expr]],
    role: Role,
    product: Node,
    dim: int,
) -> tuple[OperandRead, list[Node]]:
    """How an operand of the score product (query, key) or of the other (value) is read."""
    index, dims = scores
    tensor = product.inputs[0 if role == "query" else 1]
    channel = Var("d", integer(dim)) if dim > 1 else integer(0)
    token = index.q if role == "query" else index.k
    matrix = (channel, token) if role == "key" else (token, channel)
    try:
        shape = context.sym.shape(tensor)
    except Unliftable as reason:
        raise Refused(product, f"the shape of {role} is unknown: {reason}") from reason
    sizes = Sizes(dims[0], _heads(product, dims), dims[2 if role == "query" else 3], dim)
    read, nodes = read_operand(
        context,
        tensor,
        broadcast_index((index.b, index.h, *matrix), shape),
        (index.b, index.h, token, channel),
        sizes,
    )
    if read is None:
        raise Refused(product, f"the layout of {role} ({tensor.name!r}) can't be read")
    return _with_stride(read, dim), nodes


def _with_stride(read: OperandRead, dim: int) -> OperandRead:
    """One head has no stride of its own; write the head dimension for it."""
    layout = read.layout
    if layout.order == "BSHD" and layout.head_stride == 0:
        layout = TensorLayout("BSHD", layout.offset, dim)
    return OperandRead(read.tensor, layout, read.heads, read.scale)


def _check_heads(
    product: Node, query: OperandRead, key: OperandRead, value: OperandRead, heads: int
) -> None:
    if query.heads != heads:
        raise Refused(product, f"query has {query.heads} heads where the scores have {heads}")
    if key.heads != value.heads:
        raise Refused(product, f"key has {key.heads} heads and value {value.heads}")
    if value.scale != 1.0:
        raise Refused(product, "value is multiplied by a number on its way")
