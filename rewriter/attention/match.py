"""Match one attention block around a Softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Expr, Var, variables
from stof_onnx.ir.expr.build import integer
from stof_onnx.ir.operators.masked_attention import TensorLayout
from stof_onnx.rewriter.attention.axes import ScoreAxes, split_axes
from stof_onnx.rewriter.attention.block import (
    AttentionBlock,
    OperandRead,
    OutputWrite,
    Refused,
    ScoreChain,
    SinkRead,
)
from stof_onnx.rewriter.attention.context import FLOAT_TYPES, ChainContext, float_type
from stof_onnx.rewriter.attention.find import merged_heads, own_shape
from stof_onnx.rewriter.attention.operands import Sizes, Variables, read_operand
from stof_onnx.rewriter.attention.outputs import OutputSizes, find_output, shapes_die
from stof_onnx.rewriter.attention.products import PRODUCT_OPS, Product, read_product
from stof_onnx.rewriter.attention.score_steps import SCORE_STEPS
from stof_onnx.rewriter.attention.sinks import SinkColumn, find_sinks, read_sinks
from stof_onnx.rewriter.attention.weight_steps import WEIGHT_STEPS
from stof_onnx.rewriter.attention.weight_steps.step import WeightContext
from stof_onnx.rewriter.graph import Node, Tensor, consumers, is_graph_output, node_name, producer
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from stof_onnx.rewriter.symbolic.indexing import axis_of
from stof_onnx.rewriter.symbolic.registry import Index

Role = Literal["query", "key", "value"]


def match_block(graph: gs.Graph, sym: SymbolicGraph, softmax: Node) -> AttentionBlock:
    """Read one block.

    Raises:
        Refused: naming the node that doesn't fit and why; where the axes of the scores can be
            seen in several ways, for the way that was read furthest.
    """
    context = ChainContext(sym, ScoreChain())
    column = find_sinks(context, softmax)
    scores = softmax.inputs[0] if column is None else column.scores
    try:
        shape = own_shape(context, scores)
    except Unliftable as reason:
        # The walk may know a better reason than an unknown shape.
        _Matcher(graph, sym, softmax, column).walk_without_axes()
        raise Refused(softmax, f"the shape of the scores is unknown: {reason}") from reason
    if len(shape) < 2:
        raise Refused(softmax, f"scores have rank {len(shape)}")
    key_axis = axis_of(softmax.attrs.get("axis", -1), len(shape))
    if column is not None and key_axis != len(shape) - 1:
        raise Refused(softmax, f"softmax over axis {key_axis}, and sinks on the last one")
    furthest: Refused | None = None
    hints = merged_heads(sym, softmax)
    for axes in split_axes(shape, key_axis, hints):
        matcher = _Matcher(graph, sym, softmax, column)
        try:
            return matcher.match(axes)
        except Refused as refusal:
            refusal.progress = len(matcher.walked)
            refusal.read = tuple(node.op for node in matcher.walked)
            if furthest is None or refusal.progress > furthest.progress:
                furthest = refusal
    raise furthest or Refused(softmax, f"the number of heads is not fixed ({shape[:-2]!r})")


@dataclass(frozen=True)
class _ValueSide:
    """Value in its product.

    Attributes:
        product: of weights and value.
        side: which operand value is.
        at: index expression of each label.
        channel: variable over value's head dim.
        size: of that.
    """

    product: Product
    side: int
    at: dict[str, Expr]
    channel: Expr
    size: int


@dataclass(frozen=True)
class _ScoreSide:
    """The score product, the index of score (b, h, q, k) in it, and the head dim."""

    product: Product
    index: Index
    size: int


@dataclass(frozen=True)
class _Operand:
    """One operand of a product, read where the labels have the values ``at``."""

    product: Product
    side: int
    at: dict[str, Expr]


@dataclass
class _Matcher:
    """Reads one block with the scores' axes seen in one way.

    Attributes:
        graph: the graph.
        sym: its reading.
        softmax: of the block.
        column: its sinks.
        inner: nodes read so far that the block replaces.
        above: nodes between the projections and the products.
        dtype: of the block's output, which its operands must have too; "" if it isn't known.
    """

    graph: gs.Graph
    sym: SymbolicGraph
    softmax: Node
    column: SinkColumn | None
    inner: list[Node] = field(default_factory=list)
    above: list[Node] = field(default_factory=list)
    dtype: str = ""

    @property
    def walked(self) -> list[Node]:
        """Every node that was read."""
        return [*self.inner, *self.above]

    def match(self, axes: ScoreAxes) -> AttentionBlock:
        chain = ScoreChain()
        context = ChainContext(self.sym, chain, axes.at, has_sinks=self.column is not None)
        self.inner.append(self.softmax)
        score_node = self._walk_scores(context)
        self.inner = [self.softmax, *chain.nodes]
        weights, index, guarded = self._walk_weights(axes)
        value_side = self._value_side(*self._value_product(weights), axes, index)
        self.dtype = float_type(value_side.product.node.outputs[0])
        product, query_side = self._score_product(context, score_node, axes)
        size = self._number(product, query_side, product.contracted)
        score_side = _ScoreSide(product, context.index, size)
        query = self._read(context, "query", score_side, query_side, axes)
        key, value = self._key_and_value(context, score_side, 1 - query_side, value_side, axes)
        if query.heads != axes.heads:
            what = f"query has {query.heads} heads where the scores have {axes.heads}"
            raise Refused(score_node, what)
        output = self._output(value_side, axes)
        dtype = self._common_type(score_node, [query, key, value], output)
        self._require_closed(output)
        chain.scale *= product.factor
        chain.score_dtype = chain.score_dtype or dtype
        if chain.score_dtype not in FLOAT_TYPES:
            what = chain.score_dtype or "unknown type"
            raise Refused(self.softmax, f"masks meet the scores as {what}")
        return AttentionBlock(
            name=node_name(self.softmax),
            softmax=self.softmax,
            dims=axes.dims,
            index=axes.index,
            query=query,
            key=key,
            value=value,
            output=output,
            chain=chain,
            nan_to_zero=guarded,
            head_dim=size,
            value_head_dim=value_side.size,
            dtype=dtype,
            nodes=len({id(node) for node in self.walked}),
            sinks=self._sinks(context, axes),
            assumptions=tuple(chain.assumptions),
        )

    def walk_without_axes(self) -> None:
        """Refuse for the first operator that no step reads, if there is one."""
        context = ChainContext(self.sym, ScoreChain())
        try:
            self._walk_scores(context)
        except Unliftable:
            return

    def _sinks(self, context: ChainContext, axes: ScoreAxes) -> SinkRead | None:
        if self.column is None:
            return None
        return read_sinks(context, self.column, axes.at, axes.index, axes.dims[1])

    # ------------------------------------------------------------------------------ the scores

    def _walk_scores(self, context: ChainContext) -> Node:
        """From the Softmax up to the product of query and key."""
        tensor, below = self.softmax.inputs[0], self.softmax
        if self.column is not None:
            tensor, below = self.column.scores, self.column.nodes[-1]
            context.chain.nodes.extend(self.column.nodes)
            self.inner.extend(self.column.nodes)
        while True:
            self._require_lone(context, tensor, below)
            node = producer(tensor)
            if node is None:
                raise Refused(below, f"the scores {tensor.name!r} are an input of the graph")
            context.chain.nodes.append(node)
            if node.op in PRODUCT_OPS:
                self.inner.append(node)
                return node
            tensor, below = _score_step(context, node), node
            self.inner.append(node)

    def _require_lone(self, context: ChainContext, tensor: Tensor, below: Node) -> None:
        known = {id(node) for node in (below, *context.chain.nodes)}
        users = [user for user in consumers(self.graph, tensor) if user.op != "Shape"]
        if is_graph_output(self.graph, tensor) or any(id(user) not in known for user in users):
            raise Refused(below, f"the scores {tensor.name!r} are also used elsewhere")

    def _score_product(
        self, context: ChainContext, node: Node, axes: ScoreAxes
    ) -> tuple[Product, int]:
        """The product, and which of its operands is the query."""
        product = read_product(self.sym, node)
        if product is None:
            raise Refused(node, "this product of query and key can't be read")
        labels = dict(zip(product.out, context.index, strict=True))
        sides = [
            {name for label in product.labels[side] for name in variables(labels.get(label, _ZERO))}
            for side in (0, 1)
        ]
        # A dimension of 1 has no variable; then the order of the operands decides.
        query_side = 1 if "q" in sides[1] or "k" in sides[0] else 0
        if {"q", "k"} <= sides[0] or {"q", "k"} <= sides[1]:
            raise Refused(node, "one operand depends on both query and key")
        return product, query_side

    def _number(self, product: Product, side: int, label: str) -> int:
        try:
            dim = product.size(self.sym, side, label)
        except Unliftable as reason:
            raise Refused(product.node, f"an operand's shape is unknown: {reason}") from reason
        if not isinstance(dim, Const):
            raise Refused(product.node, "the head dimension is not fixed")
        return int(dim.value)

    # ----------------------------------------------------------------------------- the weights

    def _walk_weights(self, axes: ScoreAxes) -> tuple[Tensor, Index, bool]:
        """From the Softmax down to the weights that value is multiplied with."""
        tensor, index, guarded = self.softmax.outputs[0], axes.at, False
        has_sinks = self.column is not None
        while True:
            if is_graph_output(self.graph, tensor):
                raise Refused(self.softmax, "the attention weights are an output of the model")
            users = list(consumers(self.graph, tensor))
            context = WeightContext(self.sym, index, axes.dims[3], has_sinks)
            for step in WEIGHT_STEPS:
                found = step(context, tensor, users)
                if found is not None:
                    break
            else:
                if has_sinks:
                    raise Refused(self.softmax, "the weight of the sinks is not cut off")
                return tensor, index, guarded
            for output in (output for node in found.nodes for output in node.outputs):
                if output is not found.tensor and is_graph_output(self.graph, output):
                    raise Refused(
                        self.softmax, f"{output.name!r} below it is an output of the model"
                    )
            tensor, guarded = found.tensor, guarded or found.nan_to_zero
            index = index if found.index is None else found.index
            has_sinks = has_sinks and not found.drops_sinks
            self.inner += found.nodes

    def _value_product(self, weights: Tensor) -> tuple[Product, int]:
        """The product with value, and which of its operands value is."""
        users = [user for user in consumers(self.graph, weights) if user.op != "Shape"]
        products = [user for user in users if user.op in PRODUCT_OPS]
        sides = [i for user in products for i, t in enumerate(user.inputs) if t is weights]
        if len(users) != 1 or len(sides) != 1:
            names = ", ".join(f"{user.op} {user.name!r}" for user in users) or "nothing"
            raise Refused(
                producer(weights),
                f"the attention weights are used by {names}, not by one product alone",
            )
        self.inner.append(products[0])
        product = read_product(self.sym, products[0])
        if product is None or product.factor != 1.0:
            raise Refused(products[0], "this product with value can't be read")
        return product, 1 - sides[0]

    def _value_side(self, product: Product, side: int, axes: ScoreAxes, index: Index) -> _ValueSide:
        """Value's labels, with the weights read at ``index``."""
        weights = dict(zip(product.labels[1 - side], index, strict=True))
        if weights.get(product.contracted) != axes.index.k:
            axis = self.softmax.attrs.get("axis", -1)
            raise Refused(
                self.softmax, f"softmax over axis {axis}, but value is summed over another one"
            )
        own = [
            label
            for label in product.labels[side]
            if label not in weights and self._number_or_none(product, side, label) is not None
        ]
        own = own or [label for label in product.labels[side] if label not in weights]
        if len(own) != 1:
            raise Refused(product.node, "value has no axis, or several, of its own")
        size = self._number(product, side, own[0])
        channel = Var("d", integer(size)) if size > 1 else integer(0)
        at = {**weights, own[0]: channel}
        missing = [label for label in product.out if label not in at]
        if missing:
            raise Refused(product.node, "value has stack axes that the weights lack")
        self._require_not_enlarged(product, side)
        return _ValueSide(product, side, at, channel, size)

    def _number_or_none(self, product: Product, side: int, label: str) -> int | None:
        dim = product.size(self.sym, side, label)
        return int(dim.value) if isinstance(dim, Const) and dim.value != 1 else None

    def _require_not_enlarged(self, product: Product, side: int) -> None:
        """Weights of size 1 on an axis where value is longer would be broadcast."""
        for label in product.labels[1 - side]:
            if label not in product.labels[side]:
                continue
            ours = product.size(self.sym, 1 - side, label)
            theirs = product.size(self.sym, side, label)
            if ours == integer(1) and theirs != ours:
                raise Refused(product.node, "the weights are broadcast over value")

    # ---------------------------------------------------------------------------- the operands

    def _read(
        self,
        context: ChainContext,
        role: Role,
        scores: _ScoreSide,
        side: int,
        axes: ScoreAxes,
        *,
        held: int = 0,
    ) -> OperandRead:
        """How query or key is read."""
        size = scores.size
        channel = Var("d", integer(size)) if size > 1 else integer(0)
        at = dict(zip(scores.product.out, scores.index, strict=True))
        at[scores.product.contracted] = channel
        token = axes.index.q if role == "query" else axes.index.k
        tokens = axes.dims[2 if role == "query" else 3]
        every = (axes.index.b, axes.index.h, token, channel)
        sizes = Sizes(axes.dims[0], axes.heads, tokens, size, held, self.dtype)
        return self._read_at(context, role, _Operand(scores.product, side, at), every, sizes)

    def _read_value(
        self, context: ChainContext, value: _ValueSide, axes: ScoreAxes, *, held: int = 0
    ) -> OperandRead:
        every = (axes.index.b, axes.index.h, axes.index.k, value.channel)
        sizes = Sizes(
            axes.dims[0], axes.heads, axes.dims[3], value.size, held, self.dtype, may_scale=False
        )
        operand = _Operand(value.product, value.side, value.at)
        return self._read_at(context, "value", operand, every, sizes)

    def _key_and_value(
        self,
        context: ChainContext,
        scores: _ScoreSide,
        key_side: int,
        value_side: _ValueSide,
        axes: ScoreAxes,
    ) -> tuple[OperandRead, OperandRead]:
        """Both with the same number of heads."""
        key = self._read(context, "key", scores, key_side, axes)
        value = self._read_value(context, value_side, axes)
        if key.heads == value.heads:
            return key, value
        # Repeated before rotary embedding, say, on one side and after it on the other.
        held = max(key.heads, value.heads)
        try:
            return (
                self._read(context, "key", scores, key_side, axes, held=held),
                self._read_value(context, value_side, axes, held=held),
            )
        except Refused as reason:
            what = f"key has {key.heads} heads and value {value.heads}"
            raise Refused(scores.product.node, what) from reason

    def _read_at(
        self,
        context: ChainContext,
        role: Role,
        operand: _Operand,
        variables: Variables,
        sizes: Sizes,
    ) -> OperandRead:
        product = operand.product
        tensor = product.operand(operand.side)
        try:
            index = product.operand_index(self.sym, operand.side, operand.at)
            read, nodes = read_operand(context, tensor, index, variables, sizes)
            is_widened = read is None and sizes.dtype == "float32"
            if is_widened:
                # Half precision for the scores, float32 from the Softmax on.
                narrow = replace(sizes, dtype="")
                read, nodes = read_operand(context, tensor, index, variables, narrow)
        except Unliftable as reason:
            raise Refused(product.node, f"the shape of {role} is unknown: {reason}") from reason
        if read is None:
            raise Refused(product.node, f"the layout of {role} ({tensor.name!r}) can't be read")
        self.above += nodes
        layout = read.layout
        if layout.order == "BSHD" and layout.head_stride == 0:
            # One head has no stride of its own; write the head dimension for it.
            layout = TensorLayout("BSHD", layout.offset, sizes.channels)
        return replace(read, layout=layout, is_widened=is_widened)

    def _output(self, value: _ValueSide, axes: ScoreAxes) -> OutputWrite:
        product = value.product
        index = tuple(value.at[label] for label in product.out)
        sizes = OutputSizes(
            axes.index, value.channel, axes.dims[0], axes.dims[2], axes.heads, value.size
        )
        output = find_output(self.graph, self.sym, product.node.outputs[0], index, sizes)
        if output is None:
            raise Refused(product.node, "the layout of its output can't be written")
        self.inner += output.nodes
        return output

    def _common_type(self, node: Node, operands: Sequence[OperandRead], output: OutputWrite) -> str:
        types = {"float32" if o.is_widened else float_type(o.tensor) for o in operands}
        types.add(float_type(output.tensor))
        if len(types) != 1 or not types <= set(FLOAT_TYPES):
            found = ", ".join(sorted(t or "unknown" for t in types))
            raise Refused(node, f"query, key, value and output have types {found}")
        return types.pop()

    def _require_closed(self, output: OutputWrite) -> None:
        """Nothing outside may need what the block no longer makes."""
        known = {id(node) for node in self.inner}
        for node in self.inner:
            for tensor in (t for t in node.outputs if t is not output.tensor):
                users = consumers(self.graph, tensor)
                if any(id(user) not in known and user.op != "Shape" for user in users):
                    raise Refused(node, f"{tensor.name!r} is also used elsewhere")
        if not shapes_die(self.graph, self.inner, output.tensor):
            raise Refused(self.softmax, "the shape of the scores or weights is needed elsewhere")


_ZERO = integer(0)


def _score_step(context: ChainContext, node: Node) -> Tensor:
    for step in SCORE_STEPS:
        found = step(context, node)
        if found is not None:
            return found
    raise Refused(node, f"operator {node.op} between the scores and the softmax is not supported")
