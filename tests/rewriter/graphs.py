"""Attention graphs in the many ways exporters write them, built from one record.

``Attention(...)`` says how the graph is written (packing, scale, masks, output, ...) and
``build`` writes it; masks are in ``mask_terms``. A test names only the fields it is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 6
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
Dim = int | str
Value = str  # the name of a tensor in the graph being built


@dataclass(frozen=True)
class Input:
    """A graph input and what it holds: "normal" numbers, "padding" 0/1, or "ids"."""

    name: str
    dims: tuple[Dim, ...]
    dtype: str
    holds: str


class Graph:
    """Collects nodes, inputs and initializers; tensors are passed around by name."""

    def __init__(self, opset: int = 18) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: dict[str, Input] = {}
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str, dims: Sequence[Dim], dtype: str, holds: str = "normal") -> Value:
        """Declare an input, once; another input of the same name gets a longer one."""
        wanted = Input(name, tuple(dims), dtype, holds)
        if self.inputs.setdefault(name, wanted) != wanted:
            return self.input(f"{name}_{dtype}", dims, dtype, holds)
        return name

    def output(self, value: Value, dims: Sequence[Dim], dtype: str, name: str) -> None:
        """Make a tensor an output of the graph."""
        self.op("Identity", value, output=name)
        self.outputs.append(helper.make_tensor_value_info(name, TYPES[dtype], list(dims)))

    def op(self, op_type: str, *inputs: Value, output: str = "", **attributes: Any) -> Value:
        """Append a node with one output."""
        return self.ops(op_type, *inputs, outputs=[output], **attributes)[0]

    def ops(
        self, op_type: str, *inputs: Value, outputs: Sequence[str], **attributes: Any
    ) -> list[Value]:
        """Append a node; empty output names are replaced by new ones."""
        name = f"{op_type}_{len(self.nodes)}"
        names = [given or f"{name}.{i}" for i, given in enumerate(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))
        return names

    def const(self, value: Any, dtype: str = "float32") -> Value:
        """A constant tensor; a number too large for the type becomes an infinity."""
        if dtype == "bfloat16":
            shape, values = np.shape(value), np.ravel(value)
            return self.initializer(helper.make_tensor("", TYPES[dtype], shape, values))
        with np.errstate(over="ignore"):
            return self.initializer(numpy_helper.from_array(np.asarray(value, dtype)))

    def initializer(self, tensor: onnx.TensorProto) -> Value:
        """Add a tensor under a new name."""
        tensor.name = f"constant_{len(self.initializers)}"
        self.initializers.append(tensor)
        return tensor.name

    def weight(self, *shape: int, dtype: str = "float32") -> Value:
        """Random numbers, the same for the same position in the graph."""
        rng = np.random.default_rng(len(self.initializers))
        return self.const(rng.standard_normal(shape) / math.sqrt(shape[0]), dtype)

    def ints(self, *values: int) -> Value:
        """An INT64 vector."""
        return self.const(values, "int64")

    def dim(self, value: Value, axis: int) -> Value:
        """One dimension as an INT64 vector of length 1."""
        return self.op("Gather", self.op("Shape", value), self.ints(axis))

    def reshape(self, value: Value, *dims: int | Value) -> Value:
        """Reshape to ints (0 copies, -1 is solved for) or INT64 vectors of length 1."""
        if all(isinstance(dim, int) for dim in dims):
            return self.op("Reshape", value, self.ints(*(d for d in dims if isinstance(d, int))))
        parts = [self.ints(dim) if isinstance(dim, int) else dim for dim in dims]
        return self.op("Reshape", value, self.op("Concat", *parts, axis=0))

    def transpose(self, value: Value, *perm: int) -> Value:
        """Permute axes."""
        return self.op("Transpose", value, perm=list(perm))

    def unsqueeze(self, value: Value, *axes: int) -> Value:
        """Insert axes."""
        return self.op("Unsqueeze", value, self.ints(*axes))

    def cast(self, value: Value, dtype: str) -> Value:
        """Cast to a type by name."""
        return self.op("Cast", value, to=TYPES[dtype])

    def slice(self, value: Value, axis: int, start: int | Value, end: int | Value) -> Value:
        """value[start:end] on one axis."""
        bounds = [self.ints(x) if isinstance(x, int) else x for x in (start, end)]
        return self.op("Slice", value, *bounds, self.ints(axis))

    def model(self) -> onnx.ModelProto:
        """The finished model, its outputs typed and checked."""
        infos = [
            helper.make_tensor_value_info(i.name, TYPES[i.dtype], list(i.dims))
            for i in self.inputs.values()
        ]
        graph = helper.make_graph(self.nodes, "graph", infos, self.outputs, self.initializers)
        ir_version = 8 if self.opset <= 18 else 10 if self.opset <= 22 else 11
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        if not all(output.HasField("type") for output in self.outputs):
            model = onnx.shape_inference.infer_shapes(model)
            del model.graph.value_info[:]
        onnx.checker.check_model(model)
        return model


Packing = Literal["separate", "split", "slice", "gather", "interleaved", "inputs"]
KeyPath = Literal["swap", "late", "flat"]
Scale = Literal["none", "query", "key", "both", "mul", "div", "runtime"]
Output = Literal["heads", "rows", "merged", "merged_by_shape", "flat"]
Hook = Callable[[Graph, Value], Value]


@dataclass(frozen=True)
class Attention:
    """How one attention is written.

    Attributes:
        batch, queries: dimensions of input "hidden"; a string is a dynamic axis.
        keys: of input "memory", from which keys and values come; None: from "hidden".
        key_batch: batch of "memory", where it differs.
        mask_dims: names of batch and keys at the masks' inputs, where they differ.
        past: length of cached keys and values, joined to the new ones; "" for none. The
            masks' inputs then have the length "total".
        heads, kv_heads, head_dim, value_dim: sizes; value_dim 0 is head_dim.
        dtype: of activations and weights.
        packing: how query, key and value come out of their projections. "inputs": there
            are none, the three are inputs.
        key_path: how the key is transposed: with its heads, after them, or in 3-D.
        repeat: how key heads are repeated: "expand" or "tile" (over the head axis, which
            pairs heads the other way round).
        scale: where 1/sqrt(head_dim) is applied.
        masks: from ``mask_terms``, in order.
        axis: of the softmax.
        softmax_dtype: scores are cast to it and probabilities back; "" for no casts.
        guard: NaN probabilities become 0.
        output: what becomes of [B, H, Sq, D].
        projected: whether a last product follows.
        hooks: a function of graph and tensor by station ("query", "key", "value",
            "scores", "masked", "weights", "context"): what to go on with instead.
    """

    batch: Dim = "batch"
    queries: Dim = "sequence"
    keys: Dim | None = None
    key_batch: Dim | None = None
    mask_dims: tuple[Dim, Dim] | None = None
    past: str = ""
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 4
    value_dim: int = 0
    dtype: str = "float32"
    opset: int = 18
    packing: Packing = "separate"
    key_path: KeyPath = "swap"
    repeat: Literal["expand", "tile"] = "expand"
    scale: Scale = "query"
    masks: tuple[Any, ...] = ()
    axis: int = -1
    softmax_dtype: str = ""
    guard: bool = False
    output: Output = "merged"
    projected: bool = True
    hooks: Mapping[str, Hook] = field(default_factory=dict)

    @property
    def dims(self) -> tuple[Dim, Dim, Dim]:
        """(batch, queries, keys)."""
        return self.batch, self.queries, self.queries if self.keys is None else self.keys

    @property
    def input_dims(self) -> tuple[Dim, Dim, Dim]:
        """(batch, queries, keys) as the inputs of masks declare them."""
        batch, queries, keys = self.dims
        if self.mask_dims is not None:
            return self.mask_dims[0], queries, self.mask_dims[1]
        return batch, queries, "total" if self.past else keys

    @property
    def out_dim(self) -> int:
        """Head dim of value and output."""
        return self.value_dim or self.head_dim


@dataclass(frozen=True)
class Sizes:
    """INT64 vectors of length 1 and the tensors whose shapes they are."""

    batch: Value
    queries: Value
    keys: Value


def build(attention: Attention) -> Graph:
    """Write the graph; it has one output, "output"."""
    g = Graph(attention.opset)
    add_block(g, attention)
    return g


def add_block(g: Graph, a: Attention, output: str = "output") -> None:
    """Write one attention into a graph; blocks share inputs of the same name."""
    query_source, key_source = _sources(g, a)
    query, key, value = _operands(g, a, query_source, key_source)
    keys = g.dim(value, 2) if a.past else g.dim(key_source, 1)
    sizes = Sizes(g.dim(query_source, 0), g.dim(query_source, 1), keys)
    query, value = _hook(g, a, "query", query), _hook(g, a, "value", value)
    scores = g.op("MatMul", query, _hook(g, a, "key", key))
    if a.scale in ("mul", "div", "runtime"):
        scores = _scaled(g, a, scores, query)
    scores = _hook(g, a, "scores", scores)
    for mask in a.masks:
        scores = mask.apply(g, a, sizes, scores)
    scores = _hook(g, a, "masked", scores)
    weights = _hook(g, a, "weights", _softmax(g, a, scores))
    context = _hook(g, a, "context", g.op("MatMul", weights, value))
    _write_output(g, a, context, sizes, output)


def _hook(g: Graph, a: Attention, station: str, value: Value) -> Value:
    return a.hooks[station](g, value) if station in a.hooks else value


def _sources(g: Graph, a: Attention) -> tuple[Value, Value]:
    batch, queries, keys = a.dims
    if a.packing == "inputs":
        query = g.input("query", [batch, queries, a.heads * a.head_dim], a.dtype)
        return query, g.input("key", [batch, keys, a.kv_heads * a.head_dim], a.dtype)
    hidden = g.input("hidden", [batch, queries, CHANNELS], a.dtype)
    if a.keys is None:
        return hidden, hidden
    return hidden, g.input("memory", [a.key_batch or batch, keys, CHANNELS], a.dtype)


def _operands(g: Graph, a: Attention, query: Value, key: Value) -> tuple[Value, Value, Value]:
    """Query and value as [B, H, S, D], key as [B, H, D, S]."""
    if a.packing in ("gather", "interleaved"):
        q, k, v = _packed_by_head(g, a, query)
    else:
        rows = _rows(g, a, query, key)
        q, k, v = (
            g.transpose(g.reshape(row, 0, 0, heads, dim), 0, 2, 1, 3)
            for row, heads, dim in zip(
                rows,
                (a.heads, a.kv_heads, a.kv_heads),
                (a.head_dim, a.head_dim, a.out_dim),
                strict=True,
            )
        )
    if a.past:
        k, v = _cached(g, a, "key", k, a.head_dim), _cached(g, a, "value", v, a.out_dim)
    k, v = (_repeated(g, a, x, d) for x, d in ((k, a.head_dim), (v, a.out_dim)))
    if a.scale in ("query", "both"):
        q = _factor(g, a, q, -0.25 if a.scale == "both" else -0.5)
    if a.scale in ("key", "both"):
        k = _factor(g, a, k, -0.25 if a.scale == "both" else -0.5)
    return q, _transposed_key(g, a, k), v


def _projection(g: Graph, a: Attention, source: Value, width: int) -> Value:
    product = g.op("MatMul", source, g.weight(CHANNELS, width, dtype=a.dtype))
    return g.op("Add", product, g.weight(width, dtype=a.dtype))


def _rows(g: Graph, a: Attention, query: Value, key: Value) -> Sequence[Value]:
    """Query, key and value as [B, S, H*D]."""
    widths = [a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.out_dim]
    if a.packing == "inputs":
        batch, _, keys = a.dims
        return [query, key, g.input("value", [batch, keys, widths[2]], a.dtype)]
    if a.packing == "separate":
        return [_projection(g, a, s, w) for s, w in zip((query, key, key), widths, strict=True)]
    packed = _projection(g, a, query, sum(widths))
    if a.packing == "split":
        return g.ops("Split", packed, g.ints(*widths), outputs=["", "", ""], axis=-1)
    ends = np.cumsum(widths).tolist()
    # The last end is written as exporters write it: as far as there is.
    bounds = zip([0, *ends[:2]], [*ends[:2], 2**63 - 1], strict=True)
    return [g.slice(packed, 2, start, end) for start, end in bounds]


def _packed_by_head(g: Graph, a: Attention, source: Value) -> Sequence[Value]:
    packed = _projection(g, a, source, 3 * a.heads * a.head_dim)
    if a.packing == "gather":
        split = g.transpose(g.reshape(packed, 0, 0, 3, a.heads, a.head_dim), 2, 0, 3, 1, 4)
        return [g.op("Gather", split, g.const(i, "int64"), axis=0) for i in (0, 1, 2)]
    rows = g.transpose(g.reshape(packed, 0, 0, a.heads, 3 * a.head_dim), 0, 2, 1, 3)
    sizes = g.ints(*[a.head_dim] * 3)
    return g.ops("Split", rows, sizes, outputs=["", "", ""], axis=-1)


def _cached(g: Graph, a: Attention, what: str, value: Value, dim: int) -> Value:
    """Past and present, [B, H, P + S, D], which is also an output of the graph."""
    past = g.input(f"past_{what}", [a.batch, a.kv_heads, a.past, dim], a.dtype)
    joined = g.op("Concat", past, value, axis=2)
    g.output(joined, [a.batch, a.kv_heads, "total", dim], a.dtype, f"present_{what}")
    return joined


def _repeated(g: Graph, a: Attention, value: Value, dim: int) -> Value:
    groups = a.heads // a.kv_heads
    if groups == 1:
        return value
    axis, target = (2, [1, 1, groups, 1, 1]) if a.repeat == "expand" else (1, [1, groups, 1, 1, 1])
    wide = g.op("Expand", g.unsqueeze(value, axis), g.ints(*target))
    return g.reshape(wide, g.dim(value, 0), a.heads, g.dim(value, 2), dim)


def _factor(g: Graph, a: Attention, value: Value, exponent: float) -> Value:
    return g.op("Mul", value, g.const(a.head_dim**exponent, a.dtype))


def _transposed_key(g: Graph, a: Attention, key: Value) -> Value:
    if a.key_path == "flat":
        flat = g.reshape(key, -1, g.dim(key, 2), a.head_dim)
        turned = g.transpose(flat, 0, 2, 1)
        return g.reshape(turned, g.dim(key, 0), a.heads, a.head_dim, g.dim(key, 2))
    last = next(node for node in g.nodes if key in node.output)
    if a.key_path == "swap" and last.op_type == "Transpose":
        # Exporters fold the two transposes into one.
        perm = list(last.attribute[0].ints)
        return g.transpose(last.input[0], *(perm[axis] for axis in (0, 1, 3, 2)))
    return g.transpose(key, 0, 1, 3, 2)


def _scaled(g: Graph, a: Attention, scores: Value, query: Value) -> Value:
    if a.scale == "mul":
        return _factor(g, a, scores, -0.5)
    if a.scale == "div":
        return g.op("Div", scores, g.const(math.sqrt(a.head_dim), a.dtype))
    root = g.op("Sqrt", g.cast(g.dim(query, 3), a.dtype))
    return g.op("Div", scores, root)


def _softmax(g: Graph, a: Attention, scores: Value) -> Value:
    if a.softmax_dtype:
        scores = g.cast(scores, a.softmax_dtype)
    weights = g.op("Softmax", scores, axis=a.axis)
    if a.guard:
        zero = g.const(0.0, a.softmax_dtype or a.dtype)
        weights = g.op("Where", g.op("IsNaN", weights), zero, weights)
    return g.cast(weights, a.dtype) if a.softmax_dtype else weights


def _write_output(g: Graph, a: Attention, context: Value, sizes: Sizes, name: str) -> None:
    batch, queries, _ = a.dims
    width = a.heads * a.out_dim
    dims: list[Dim] = [batch, a.heads, queries, a.out_dim]
    if a.output != "heads":
        context, dims = g.transpose(context, 0, 2, 1, 3), [batch, queries, a.heads, a.out_dim]
    if a.output in ("merged", "merged_by_shape"):
        by_shape = a.output == "merged_by_shape"
        target = [sizes.batch, sizes.queries, width] if by_shape else [0, 0, width]
        context, dims = g.reshape(context, *target), [batch, queries, width]
    if a.output == "flat":
        rows = batch * queries if isinstance(batch, int) and isinstance(queries, int) else "rows"
        context, dims = g.reshape(context, -1, width), [rows, width]
    if a.projected:
        weight = g.weight(int(dims[-1]), CHANNELS, dtype=a.dtype)
        context, dims = g.op("MatMul", context, weight), [*dims[:-1], CHANNELS]
    g.output(context, dims, a.dtype, name)
