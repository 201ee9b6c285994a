"""StofMaskedAttention: its expansion, run by ONNX Runtime, against the fp64 oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stof_onnx.expansion import expand_model
from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import Expr, Load
from stof_onnx.ir.expr.build import (
    FALSE,
    TRUE,
    absolute,
    add,
    and_,
    eq,
    fadd,
    floordiv,
    fmul,
    ge,
    ge0,
    gt,
    integer,
    minimum,
    mod,
    mul,
    or_,
    sub,
    to_float,
)
from stof_onnx.ir.mask.program import (
    B_INDEX,
    BATCH,
    H_INDEX,
    K_INDEX,
    KEYS,
    Q_INDEX,
    QUERIES,
    MaskProgram,
    Operand,
)
from stof_onnx.ir.operators.masked_attention import (
    OP_TYPE,
    MaskedAttention,
    TensorLayout,
    node_attributes,
)
from stof_onnx.ir.operators.registry import DOMAIN, PLUGIN_VERSION
from tests.reference.attention import (
    attention,
    causal_keep,
    causal_window_keep,
    padding_keep,
    sliding_window_keep,
)

Array = npt.NDArray[Any]

FLOAT32_MIN = float(np.finfo(np.float32).min)
FLOAT16_MIN = float(np.finfo(np.float16).min)
NODE = "attention_7"


class Sizes(NamedTuple):
    """The dimensions of one attention."""

    batch: int = 2
    kv_heads: int = 2
    groups: int = 1
    queries: int = 7
    keys: int = 7
    head_dim: int = 4
    value_head_dim: int = 4

    @property
    def heads(self) -> int:
        return self.kv_heads * self.groups

    @property
    def scores(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.queries, self.keys


SMALL = Sizes()


# ---------------------------------------------------------------------------------------
# Layouts: where a [B, H, S, D] tensor lies in an input.


@dataclass(frozen=True)
class Place:
    """A layout, and the axes of the tensor behind batch and sequence (none for BHSD)."""

    layout: TensorLayout
    axes: tuple[int, ...] = ()

    def store(self, values_BHSD: Array) -> Array:
        """The tensor; what the layout doesn't reach is NaN."""
        if self.layout.order == "BHSD":
            return values_BHSD
        batch, heads, length, dim = values_BHSD.shape
        row = np.full((batch, length, math.prod(self.axes)), np.nan, values_BHSD.dtype)
        for head in range(heads):
            start = self.layout.offset + head * self.layout.head_stride
            row[:, :, start : start + dim] = values_BHSD[:, head]
        return row.reshape(batch, length, *self.axes)


def bshd(axes: Sequence[int], stride: int, offset: int = 0) -> Place:
    return Place(TensorLayout("BSHD", offset, stride), tuple(axes))


PLACES: dict[str, Callable[[int, int], Place]] = {
    "BS(HD)": lambda h, d: bshd([h * d], d),
    "BSHD": lambda h, d: bshd([h, d], d),
    "packed first": lambda h, d: bshd([3 * h * d], d),
    "packed last": lambda h, d: bshd([3 * h * d], d, 2 * h * d),
    "BS3HD": lambda h, d: bshd([3, h, d], d, h * d),
    "BSH3D": lambda h, d: bshd([h, 3, d], 3 * d, d),
    "BS(H3D)": lambda h, d: bshd([h * 3 * d], 3 * d, 2 * d),
    "gaps": lambda h, d: bshd([5 + h * (d + 3)], d + 3, 5),
    "BHSD": lambda h, d: Place(TensorLayout("BHSD")),
}


# ---------------------------------------------------------------------------------------
# Masks: a program, its operands, and the same mask from the reference.


@dataclass(frozen=True)
class Mask:
    """A program with its operands' values, and what the reference says about it.

    Attributes:
        operands: a tensor, or the BlockTable of a constant mask, for each operand.
        keep: broadcasts to [B, H, Sq, Sk].
        bias: broadcasts to [B, H, Sq, Sk].
    """

    program: MaskProgram
    keep: Array
    operands: tuple[Array | BlockTable, ...] = ()
    bias: Array | None = None


START = sub(Q_INDEX, K_INDEX)
END = sub(sub(add(Q_INDEX, KEYS), QUERIES), K_INDEX)
ALL = np.ones((1, 1), np.bool_)


def tensor(name: str, rank: int) -> Operand:
    return Operand(name, "tensor", rank)


def no_mask(s: Sizes, rng: np.random.Generator) -> Mask:
    return Mask(MaskProgram(), ALL)


def causal(s: Sizes, rng: np.random.Generator) -> Mask:
    return Mask(MaskProgram(ge0(START)), causal_keep(s.queries, s.keys))


def causal_end(s: Sizes, rng: np.random.Generator) -> Mask:
    keep = causal_keep(s.queries, s.keys, query_offset=s.keys - s.queries)
    return Mask(MaskProgram(ge0(END)), keep)


def window(s: Sizes, rng: np.random.Generator) -> Mask:
    keep = sliding_window_keep(s.queries, s.keys, window=2)
    return Mask(MaskProgram(ge(integer(2), absolute(START))), keep)


def causal_window_end(s: Sizes, rng: np.random.Generator) -> Mask:
    keep = causal_window_keep(s.queries, s.keys, window=3, query_offset=s.keys - s.queries)
    return Mask(MaskProgram(and_(ge0(END), gt(integer(3), END))), keep)


def padding(s: Sizes, rng: np.random.Generator) -> Mask:
    keep = padding_keep(rng.integers(1, s.keys + 1, s.batch).tolist(), s.keys)
    load = Load("padding", (B_INDEX, K_INDEX), "bool")
    program = MaskProgram(load, operands=(tensor("padding", 2),))
    return Mask(program, keep, (keep[:, 0, 0].astype(np.int8),))


def left_padding_causal(s: Sizes, rng: np.random.Generator) -> Mask:
    lengths = rng.integers(1, s.keys + 1, s.batch)
    keep = padding_keep(lengths.tolist(), s.keys, side="left") & causal_keep(s.queries, s.keys)
    load = Load("lengths", (B_INDEX,), "int")
    program = MaskProgram(
        and_(ge0(START), ge0(add(sub(K_INDEX, KEYS), load))), operands=(tensor("lengths", 1),)
    )
    return Mask(program, keep, (lengths.astype(np.int32),))


def documents(s: Sizes, rng: np.random.Generator) -> Mask:
    """Queries and keys of one document; the ids are [1, B, S] with S >= Sq and S >= Sk."""
    ids = np.sort(rng.integers(0, 3, (1, s.batch, max(s.queries, s.keys))), axis=2)
    loads = [Load("ids", (integer(0), B_INDEX, index), "int") for index in (Q_INDEX, K_INDEX)]
    keep = ids[0, :, None, : s.queries, None] == ids[0, :, None, None, : s.keys]
    program = MaskProgram(eq(*loads), operands=(tensor("ids", 3),))
    return Mask(program, keep, (ids.astype(np.int32),))


def table(s: Sizes, rng: np.random.Generator) -> Mask:
    """A constant mask, larger than the sequence."""
    dense = rng.random((1, s.queries + 5, s.keys + 70)) < 0.5
    dense[:, :, 0] = True
    stored = BlockTable.from_dense(dense, (16, 32))
    load = Load("table", (integer(0), Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(
        load, operands=(Operand("table", "block_table", 3, stored.shape, stored.tile),)
    )
    return Mask(program, dense[0, : s.queries, : s.keys], (stored,))


def table_by_head(s: Sizes, rng: np.random.Generator) -> Mask:
    """A constant mask for each head, or causal."""
    dense = rng.random((s.heads, s.queries, s.keys)) < 0.3
    stored = BlockTable.from_dense(dense, (8, 8))
    load = Load("table", (H_INDEX, Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(
        or_(load, ge0(START)),
        operands=(Operand("table", "block_table", 3, stored.shape, stored.tile),),
    )
    return Mask(program, dense | causal_keep(s.queries, s.keys), (stored,))


def table_by_batch(s: Sizes, rng: np.random.Generator) -> Mask:
    """A constant mask whose groups are not the heads."""
    dense = rng.random((s.batch, s.queries, s.keys)) < 0.5
    dense[:, :, 0] = True
    stored = BlockTable.from_dense(dense, (8, 8))
    load = Load("table", (B_INDEX, Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(
        load, operands=(Operand("table", "block_table", 3, stored.shape, stored.tile),)
    )
    return Mask(program, dense[:, None], (stored,))


def table_end(s: Sizes, rng: np.random.Generator) -> Mask:
    """A square constant mask whose last rows are read, as with a KV cache."""
    size = max(s.queries, s.keys)
    dense = rng.random((1, size, size)) < 0.5
    dense[:, :, 0] = True
    stored = BlockTable.from_dense(dense, (8, 16))
    row = add(Q_INDEX, sub(integer(size), QUERIES))
    load = Load("table", (integer(0), row, K_INDEX), "bool")
    program = MaskProgram(
        load, operands=(Operand("table", "block_table", 3, stored.shape, stored.tile),)
    )
    return Mask(program, dense[0, size - s.queries :, : s.keys], (stored,))


def dense_bool(s: Sizes, rng: np.random.Generator) -> Mask:
    keep = rng.random((s.batch, 1, s.queries, s.keys)) < 0.5
    keep[..., 0] = True
    load = Load("dense", (B_INDEX, integer(0), Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(load, operands=(tensor("dense", 4),))
    return Mask(program, keep, (keep.astype(np.int8),))


def dense_for_longer_sequences(s: Sizes, rng: np.random.Generator) -> Mask:
    """A run-time mask of which a corner is read: [B + 1, H + 1, Sq + 3, Sk + 4]."""
    keep = rng.random((s.batch + 1, s.heads + 1, s.queries + 3, s.keys + 4)) < 0.5
    keep[..., 0] = True
    load = Load("dense", (B_INDEX, H_INDEX, Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(load, operands=(tensor("dense", 4),))
    corner = keep[: s.batch, : s.heads, : s.queries, : s.keys]
    return Mask(program, corner, (keep.astype(np.int8),))


def dense_diagonal(s: Sizes, rng: np.random.Generator) -> Mask:
    """A vector over the distance, and a matrix read at (q, q)."""
    size = s.queries + s.keys
    vector, matrix = rng.random(size) < 0.5, rng.random((s.queries, s.queries)) < 0.5
    q, k = np.ogrid[: s.queries, : s.keys]
    first = Load("vector", (sub(add(Q_INDEX, KEYS), K_INDEX),), "bool")
    second = Load("matrix", (Q_INDEX, Q_INDEX), "bool")
    program = MaskProgram(
        or_(first, second, eq(K_INDEX, integer(0))),
        operands=(tensor("vector", 1), tensor("matrix", 2)),
    )
    keep = vector[q + s.keys - k] | matrix.diagonal()[:, None] | (k == 0)
    return Mask(program, keep, (vector.astype(np.int8), matrix.astype(np.int8)))


def dense_transposed(s: Sizes, rng: np.random.Generator) -> Mask:
    """[Sk, H, Sq]: another order of axes than the scores'."""
    keep = rng.random((s.heads, s.queries, s.keys)) < 0.5
    keep[..., -1] = True
    load = Load("dense", (K_INDEX, H_INDEX, Q_INDEX), "bool")
    program = MaskProgram(load, operands=(tensor("dense", 3),))
    return Mask(program, keep, (np.ascontiguousarray(keep.transpose(2, 0, 1)).astype(np.int8),))


def bias_by_batch(s: Sizes, rng: np.random.Generator) -> Mask:
    bias = rng.standard_normal((s.batch, 1, s.queries, s.keys)).astype(np.float32)
    load = Load("bias", (B_INDEX, integer(0), Q_INDEX, K_INDEX), "float")
    program = MaskProgram(TRUE, load, operands=(tensor("bias", 4),))
    return Mask(program, ALL, (bias,), bias)


def bias_by_head(s: Sizes, rng: np.random.Generator) -> Mask:
    bias = rng.standard_normal((1, s.heads, s.queries, s.keys)).astype(np.float32)
    load = Load("bias", (integer(0), H_INDEX, Q_INDEX, K_INDEX), "float")
    program = MaskProgram(ge0(START), load, operands=(tensor("bias", 4),))
    return Mask(program, causal_keep(s.queries, s.keys), (bias,), bias)


def alibi(s: Sizes, rng: np.random.Generator) -> Mask:
    """-slope[h] * |q - k|, and a bias for each batch besides."""
    slopes = rng.random(s.heads).astype(np.float32)
    shift = rng.standard_normal((s.batch, s.keys)).astype(np.float32)
    distance = np.abs(np.arange(s.queries)[:, None] - np.arange(s.keys))
    slope = fmul(Load("slopes", (H_INDEX,), "float"), to_float(sub(integer(0), absolute(START))))
    program = MaskProgram(
        TRUE,
        fadd(slope, Load("shift", (B_INDEX, K_INDEX), "float")),
        operands=(tensor("slopes", 1), tensor("shift", 2)),
    )
    bias = -slopes[:, None, None] * distance + shift[:, None, None]
    return Mask(program, ALL, (slopes, shift), bias)


def arithmetic(s: Sizes, rng: np.random.Generator) -> Mask:
    """Every integer operation: blocks of 3, dilation by head, the batch's own offset."""
    b, h, q, k = np.ogrid[: s.batch, : s.heads, : s.queries, : s.keys]
    wanted = ((q - 5) // 3 >= (k - 6) // 3) & ((q - k) % (h + 1) == 0)
    wanted = wanted | (np.minimum(q * s.batch + b, k) == 0)
    block = ge(
        floordiv(sub(Q_INDEX, integer(5)), integer(3)),
        floordiv(sub(K_INDEX, integer(6)), integer(3)),
    )
    dilated = eq(mod(START, add(H_INDEX, integer(1))), integer(0))
    first = eq(minimum(add(mul(Q_INDEX, BATCH), B_INDEX), K_INDEX), integer(0))
    return Mask(MaskProgram(or_(and_(block, dilated), first)), wanted)


MASKS: dict[str, Callable[[Sizes, np.random.Generator], Mask]] = {
    f.__name__: f
    for f in (
        no_mask,
        causal,
        causal_end,
        window,
        causal_window_end,
        padding,
        left_padding_causal,
        documents,
        table,
        table_by_head,
        table_by_batch,
        table_end,
        dense_bool,
        dense_for_longer_sequences,
        dense_diagonal,
        dense_transposed,
        bias_by_batch,
        bias_by_head,
        alibi,
        arithmetic,
    )
}


# ---------------------------------------------------------------------------------------
# One node, run.


@dataclass(frozen=True)
class Case:
    """A node in full: sizes, layouts, mask and types."""

    sizes: Sizes = SMALL
    mask: str = "causal"
    places: tuple[str, str, str] = ("BS(HD)", "BS(HD)", "BS(HD)")
    output: tuple[str, int] = ("BSHD", 3)
    dtype: str = "float32"
    score_dtype: str = "float32"
    program: dict[str, Any] = field(default_factory=dict)
    scale: float = 0.375
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.mask}-{'x'.join(map(str, self.sizes))}"


class Node(NamedTuple):
    """A node with its inputs and the reference's answer."""

    record: MaskedAttention
    inputs: list[tuple[str, Array]]
    constants: set[str]
    wanted: Array


def node_of(case: Case) -> Node:
    """The node of a case; every number is drawn from its seed."""
    s, rng = case.sizes, np.random.default_rng(case.seed)
    dtype = np.dtype(case.dtype)
    shapes = (
        (s.batch, s.heads, s.queries, s.head_dim),
        (s.batch, s.kv_heads, s.keys, s.head_dim),
        (s.batch, s.kv_heads, s.keys, s.value_head_dim),
    )
    tensors = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    places = [
        PLACES[name](shape[1], shape[3]) for name, shape in zip(case.places, shapes, strict=True)
    ]
    mask = MASKS[case.mask](s, rng)
    record = MaskedAttention(
        num_heads=s.heads,
        kv_num_heads=s.kv_heads,
        head_dim=s.head_dim,
        value_head_dim=s.value_head_dim,
        scale=case.scale,
        query=places[0].layout,
        key=places[1].layout,
        value=places[2].layout,
        output=case.output[0],  # type: ignore[arg-type]
        output_rank=case.output[1],
        mask=replace(mask.program, **case.program),
        score_dtype=case.score_dtype,
        dtype=case.dtype,
    )
    inputs = [
        (name, place.store(x))
        for name, place, x in zip(("query", "key", "value"), places, tensors, strict=True)
    ]
    constants: set[str] = set()
    for operand, held in zip(mask.program.operands, mask.operands, strict=True):
        if isinstance(held, BlockTable):
            arrays = {f"{operand.name}.{name}": x for name, x in held.arrays().items()}
            constants |= set(arrays)
            inputs += arrays.items()
        else:
            inputs.append((operand.name, held))
    wanted = attention(
        *tensors,
        mask.keep,
        mask.bias,
        scale=case.scale,
        empty_row=record.mask.empty_row(case.score_dtype),
    )
    if case.output[0] == "BSHD":
        wanted = wanted.transpose(0, 2, 1, 3)
    if case.output[1] == 3:
        wanted = wanted.reshape(s.batch, s.queries, -1)
    return Node(record, inputs, constants, wanted)


def model_of(node: Node, *, opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    """A model of one stof node, all of whose dimensions are dynamic."""
    graph = helper.make_graph(
        [
            helper.make_node(
                OP_TYPE,
                [name for name, _ in node.inputs],
                ["out"],
                name=NODE,
                domain=DOMAIN,
                plugin_version=PLUGIN_VERSION,
                plugin_namespace=DOMAIN,
                **{**node.record.attributes(), **attributes},
            )
        ],
        "one attention",
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(x.dtype),
                [f"{name}_{axis}" for axis in range(x.ndim)],
            )
            for name, x in node.inputs
            if name not in node.constants
        ],
        [
            helper.make_tensor_value_info(
                "out",
                helper.np_dtype_to_tensor_dtype(node.inputs[0][1].dtype),
                [f"out_{axis}" for axis in range(node.record.output_rank)],
            )
        ],
        [numpy_helper.from_array(x, name) for name, x in node.inputs if name in node.constants],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto, node: Node) -> Array:
    """Expand the model, check it, run it."""
    expanded = expand_model(model)
    onnx.checker.check_model(expanded, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        expanded.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {name: x for name, x in node.inputs if name not in node.constants}
    return np.asarray(session.run(None, feeds)[0])


TOLERANCE = {"float32": 1e-5, "float16": 1e-2}


def check(case: Case, tolerance: float = 0.0) -> None:
    """Run a case and compare it with the reference."""
    node = node_of(case)
    got = run(model_of(node), node)
    assert got.dtype == np.dtype(case.dtype)
    assert got.shape == node.wanted.shape
    tolerance = max(tolerance, TOLERANCE[case.dtype], TOLERANCE.get(case.score_dtype, 0.0))
    np.testing.assert_allclose(got, node.wanted, rtol=tolerance, atol=tolerance)


SHAPES = [
    Sizes(),
    Sizes(1, 1, 1, 1, 1, 1, 1),
    Sizes(batch=1, queries=1, keys=9),
    Sizes(batch=3, queries=5, keys=13, head_dim=3, value_head_dim=5),
    Sizes(batch=2, kv_heads=2, groups=3, queries=11, keys=4, head_dim=8, value_head_dim=1),
]


@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str, sizes: Sizes) -> None:
    check(Case(sizes, mask))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
def test_layouts_of_one_input(which: int, place: str) -> None:
    sizes = Sizes(groups=2, queries=5, keys=3, head_dim=4, value_head_dim=6)
    places = ["BHSD", "BHSD", "BHSD"]
    places[which] = place
    check(Case(sizes, "causal_end", (places[0], places[1], places[2])))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("output", [("BSHD", 3), ("BSHD", 4), ("BHSD", 4)], ids=str)
def test_layouts_of_inputs_and_output(place: str, output: tuple[str, int]) -> None:
    sizes = Sizes(groups=3, queries=3, keys=8, head_dim=2, value_head_dim=3)
    check(Case(sizes, "padding", (place, place, place), output))


@pytest.mark.parametrize("rank", [3, 5])
def test_one_packed_tensor_feeds_all_three(rank: int) -> None:
    case = Case(Sizes(queries=6, keys=6), "causal")
    node = node_of(case)
    (_, query), (_, key), (_, value) = node.inputs
    packed = np.concatenate([query, key, value], axis=2)
    if rank == 5:
        packed = packed.reshape(2, 6, 3, 2, 4)
    record = replace(
        node.record,
        query=TensorLayout("BSHD", 0, 4),
        key=TensorLayout("BSHD", 8, 4),
        value=TensorLayout("BSHD", 16, 4),
    )
    model = model_of(node._replace(record=record, inputs=[("packed", packed)]))
    model.graph.node[0].input[:] = ["packed"] * 3
    got = run(model, node._replace(inputs=[("packed", packed)]))
    np.testing.assert_allclose(got, node.wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mask", ["no_mask", "causal", "padding", "table", "alibi", "bias_by_head"])
@pytest.mark.parametrize(
    ("dtype", "score_dtype"),
    [("float16", "float32"), ("float16", "float16"), ("float32", "float16")],
)
def test_types(mask: str, dtype: str, score_dtype: str) -> None:
    sizes = Sizes(groups=2, queries=9, keys=5, head_dim=8, value_head_dim=8)
    check(Case(sizes, mask, dtype=dtype, score_dtype=score_dtype))


FILLS = [
    ("float32", "replace", -math.inf),
    ("float32", "add", -math.inf),
    ("float32", "replace", FLOAT32_MIN),
    ("float32", "add", FLOAT32_MIN),
    ("float32", "replace", -1e4),
    ("float32", "add", -1e4),
    ("float16", "replace", FLOAT16_MIN),
    ("float16", "add", FLOAT16_MIN),
    ("float16", "replace", FLOAT32_MIN),
    ("float16", "add", -math.inf),
]


@pytest.mark.parametrize(("dtype", "mode", "fill"), FILLS)
@pytest.mark.parametrize("mask", ["causal", "left_padding_causal"])
def test_fills_where_every_row_has_a_key(mask: str, dtype: str, mode: str, fill: float) -> None:
    program = {"fill": fill, "fill_mode": mode}
    sizes = Sizes(queries=8, keys=9)
    case = Case(sizes, mask, dtype=dtype, score_dtype=dtype, program=program)
    if mask == "left_padding_causal":
        assert not node_of(case).record.mask.is_empty
        case = replace(case, sizes=Sizes(batch=1, queries=1, keys=1))
    check(case)


@pytest.mark.parametrize(
    ("dtype", "mode", "fill", "is_guarded", "wanted"),
    [
        ("float32", "replace", -math.inf, False, "nan"),
        ("float32", "add", -math.inf, False, "nan"),
        ("float16", "replace", -math.inf, False, "nan"),
        ("float16", "replace", FLOAT32_MIN, False, "nan"),
        ("float32", "replace", -math.inf, True, "zero"),
        ("float32", "add", -math.inf, True, "zero"),
        ("float16", "add", -math.inf, True, "zero"),
        ("float32", "replace", FLOAT32_MIN, False, "mean"),
        ("float32", "add", FLOAT32_MIN, False, "mean"),
        ("float32", "add", FLOAT32_MIN, True, "mean"),
        ("float32", "replace", -1e4, False, "mean"),
        ("float16", "replace", FLOAT16_MIN, False, "mean"),
        ("float32", "add", -1e4, False, "softmax"),
        ("float32", "add", -1e4, True, "softmax"),
        # ONNX Runtime adds float16 numbers in float32: it doesn't round to multiples of 32.
        ("float16", "add", FLOAT16_MIN, False, "softmax"),
    ],
)
@pytest.mark.parametrize(
    ("mask", "sizes"),
    [
        ("causal_end", Sizes(queries=9, keys=4)),  # the first 5 queries
        ("left_padding_causal", Sizes(queries=8, keys=8)),  # the first queries of some batches
        ("window", Sizes(queries=11, keys=3)),  # the last 6 queries
    ],
    ids=["causal_end", "left_padding", "window"],
)
def test_rows_without_keys(
    *, mask: str, sizes: Sizes, dtype: str, mode: str, fill: float, is_guarded: bool, wanted: str
) -> None:
    program = {"fill": fill, "fill_mode": mode, "nan_to_zero": is_guarded}
    case = Case(sizes, mask, dtype=dtype, score_dtype=dtype, program=program)
    assert node_of(case).record.mask.empty_row(dtype) == wanted
    has_nan = bool(np.isnan(node_of(case).wanted).any())
    assert has_nan == (wanted == "nan")
    check(case, tolerance=2e-3 if wanted == "softmax" else 0.0)


def test_a_mask_that_keeps_nothing() -> None:
    node = node_of(Case(mask="causal"))
    nothing = MaskProgram(FALSE, fill=FLOAT32_MIN)
    got = run(model_of(node, mask=nothing.to_json()), node)
    value = node.inputs[2][1]
    np.testing.assert_allclose(got, np.broadcast_to(value.mean(1, keepdims=True), got.shape), 1e-6)


def test_added_fill_is_rounded_to_the_score_type() -> None:
    """In float16, score - 65504 is a multiple of 32: moderate scores all become the fill."""
    program = {"fill": FLOAT16_MIN, "fill_mode": "add"}
    case = Case(
        Sizes(batch=1, kv_heads=1, queries=6, keys=4, head_dim=16, value_head_dim=3),
        "causal_end",
        ("BHSD",) * 3,
        ("BHSD", 4),
        "float16",
        "float16",
        program,
        scale=8.0,
    )
    node = node_of(case)
    query, key, value = (x[0, 0].astype(np.float64) for _, x in node.inputs)
    with np.errstate(over="ignore"):
        rounded = (8.0 * query @ key.T).astype(np.float16)[:2] + np.float16(FLOAT16_MIN)
    assert len(np.unique(rounded)) > 1
    weights = np.exp(rounded.astype(np.float64) - rounded.max())
    wanted = weights / weights.sum(axis=1, keepdims=True) @ value
    # ONNX's reference implementation rounds after every operator; ONNX Runtime doesn't.
    expanded = expand_model(model_of(node))
    with np.errstate(over="ignore"):
        (got,) = ReferenceEvaluator(expanded).run(None, dict(node.inputs))
    np.testing.assert_allclose(got[0, 0, :2], wanted, rtol=3e-3, atol=3e-3)


def test_the_scale_is_a_float32_number() -> None:
    node = node_of(Case(scale=1 / math.sqrt(10)))
    proto = model_of(node).graph.node[0]
    again = MaskedAttention.from_attributes(node_attributes(proto), NODE)
    assert again == replace(node.record, scale=float(np.float32(1 / math.sqrt(10))))


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24])
@pytest.mark.parametrize("mask", ["arithmetic", "documents", "table_by_batch"])
def test_opsets(opset: int, mask: str) -> None:
    node = node_of(Case(Sizes(groups=2, queries=5, keys=4), mask))
    got = run(model_of(node, opset=opset), node)
    np.testing.assert_allclose(got, node.wanted, rtol=2e-6, atol=2e-6)


# ---------------------------------------------------------------------------------------
# Attributes and errors.


@pytest.mark.parametrize("mask", MASKS)
def test_attributes_round_trip_through_a_node(mask: str) -> None:
    places = ("BS3HD", "BHSD", "BSH3D")
    node = node_of(Case(Sizes(groups=2), mask, places, ("BSHD", 4), score_dtype="bfloat16"))
    plan = numpy_helper.from_array(np.frombuffer(b"STOFPLAN\0", np.int8), "plan")
    proto = onnx.NodeProto()
    proto.ParseFromString(model_of(node, plan=plan).graph.node[0].SerializeToString())
    attributes = node_attributes(proto)
    again = MaskedAttention.from_attributes(attributes, NODE)
    assert again == node.record
    assert again.attributes() == node.record.attributes()
    assert again.input_count() == len(proto.input)
    assert {type(value) for value in again.attributes().values()} == {int, float, str}


REQUIRED = sorted(
    {
        *("num_heads", "kv_num_heads", "head_dim", "value_head_dim", "scale"),
        *("output_layout", "output_rank", "mask", "score_dtype", "dtype"),
        *(
            f"{t}_{a}"
            for t in ("query", "key", "value")
            for a in ("layout", "offset", "head_stride")
        ),
    }
)


def test_all_attributes_are_required() -> None:
    assert sorted(node_of(Case()).record.attributes()) == REQUIRED


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_attribute_is_named(name: str) -> None:
    model = model_of(node_of(Case()))
    kept = [a for a in model.graph.node[0].attribute if a.name != name]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model)
    assert str(caught.value) == f"node '{NODE}' lacks attribute '{name}'"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"query_layout": "SBHD"}, "layout 'SBHD'; wanted BSHD or BHSD"),
        ({"output_layout": ""}, "layout ''; wanted BSHD or BHSD"),
        ({"value_layout": 3}, "layout 3; wanted BSHD or BHSD"),
        ({"output_rank": 5}, "output BSHD of rank 5"),
        ({"output_layout": "BHSD"}, "output BHSD of rank 3"),
        ({"key_offset": -4}, "offset=-4, head_stride=4); wanted offset >= 0 and head_stride >= 1"),
        ({"key_head_stride": 0}, "wanted offset >= 0 and head_stride >= 1"),
        ({"key_layout": "BHSD"}, "wanted offset and head_stride 0"),
        (
            {"num_heads": 3},
            "3 query heads, 2 key heads, head dims 4 and 4; wanted positive numbers, query heads "
            "a multiple of key heads",
        ),
        ({"kv_num_heads": 0}, "2 query heads, 0 key heads"),
        ({"num_heads": -2}, "-2 query heads, 2 key heads"),
        ({"head_dim": 0}, "head dims 0 and 4"),
        ({"value_head_dim": -1}, "head dims 4 and -1"),
        ({"num_heads": "many"}, "invalid literal for int()"),
        ({"num_heads": math.inf}, "cannot convert float infinity to integer"),
        ({"num_heads": [2, 2]}, "int() argument"),
        ({"scale": math.inf}, "scale inf; wanted a finite number"),
        ({"scale": math.nan}, "scale nan; wanted a finite number"),
        ({"score_dtype": "float8"}, "score_dtype 'float8'; wanted one of ['float32', "),
        ({"dtype": "int8"}, "dtype 'int8'; wanted one of ['float32', "),
        ({"mask": "{"}, "the mask attribute is not a mask program"),
        ({"mask": b"\xff\xfe"}, "attribute 'mask' can't be read: 'utf-8' codec can't decode"),
        ({"mask": 3}, "the mask attribute is not a mask program"),
        ({"mask": '{"version":7}'}, "mask program of version 7; wanted version 1"),
        (
            {"mask": MaskProgram().to_json().replace("true", '["power", 1]')},
            "unknown mask operation 'power'",
        ),
        (
            {"mask": MaskProgram(operands=(tensor("m", 2),)).to_json()},
            f"node '{NODE}' has 3 inputs; wanted 4",
        ),
        (
            {"mask": MaskProgram(operands=(Operand("t", "block_table", 2),)).to_json()},
            "mask operand 't' of kind block_table and rank 2",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_wrong_attribute_is_refused(attributes: dict[str, Any], message: str) -> None:
    model = model_of(node_of(Case()), **attributes)
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"node '{NODE}'")
    assert f"node '{NODE}'" in str(caught.value)


def renamed_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "StofAttention"


def input_too_many(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.append("query")


def input_missing(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[-1]


def output_too_many(model: onnx.ModelProto) -> None:
    model.graph.node[0].output.append("weights")


def table_from_the_graph(model: onnx.ModelProto) -> None:
    name = model.graph.initializer.pop(2).name
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, None))


def table_damaged(model: onnx.ModelProto) -> None:
    offsets = numpy_helper.to_array(model.graph.initializer[0]).copy()
    offsets[0] = 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(offsets, "table.row_offsets"))


def table_of_another_type(model: onnx.ModelProto) -> None:
    counts = numpy_helper.to_array(model.graph.initializer[1]).astype(np.int64)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(counts, "table.full_counts"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            renamed_operator,
            f"node '{NODE}' has the unknown operator 'StofAttention'; wanted one of "
            "['StofMaskTable', 'StofMaskedAttention']; use the release of stof-onnx that wrote the "
            "file, or a newer one",
        ),
        (input_too_many, f"node '{NODE}' has 9 inputs; wanted 8"),
        (input_missing, f"node '{NODE}' has 7 inputs; wanted 8"),
        (output_too_many, f"node '{NODE}' has 2 outputs; wanted 1"),
        (
            table_from_the_graph,
            f"node '{NODE}': block table input 'table.tile_columns' is not an initializer",
        ),
        (
            table_damaged,
            f"node '{NODE}', operand 'table': block table: row_offsets starts at 1; wanted 0",
        ),
        (
            table_of_another_type,
            f"node '{NODE}', operand 'table': block table: full_counts is of dtype int64",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_node_is_refused(damage: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = model_of(node_of(Case(mask="table")))
    damage(model)
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model)
    assert message in str(caught.value)


def test_a_node_without_a_name_is_named_by_its_output() -> None:
    model = model_of(node_of(Case()), num_heads=3)
    model.graph.node[0].name = ""
    with pytest.raises(MalformedNodeError, match="node 'StofMaskedAttention of out'"):
        expand_model(model)


# ---------------------------------------------------------------------------------------
# Any configuration.


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = Sizes(
        batch=draw(st.integers(1, 3)),
        kv_heads=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 3)),
        queries=draw(st.integers(1, 9)),
        keys=draw(st.integers(1, 9)),
        head_dim=draw(st.integers(1, 6)),
        value_head_dim=draw(st.integers(1, 6)),
    )
    place = st.sampled_from(list(PLACES))
    dtype = draw(st.sampled_from(["float32", "float32", "float16"]))
    fill, mode = draw(
        st.sampled_from([(-math.inf, "replace"), (-math.inf, "add"), (-3e4, "replace")])
    )
    return Case(
        sizes,
        draw(st.sampled_from(list(MASKS))),
        (draw(place), draw(place), draw(place)),
        draw(st.sampled_from([("BSHD", 3), ("BSHD", 4), ("BHSD", 4)])),
        dtype,
        draw(st.sampled_from(["float32", dtype])),
        {"fill": fill, "fill_mode": mode, "nan_to_zero": draw(st.booleans())},
        draw(st.sampled_from([0.125, 0.5, 1.0, -0.25])),
        draw(st.integers(0, 2**16)),
    )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_configuration(case: Case) -> None:
    check(case)


def test_expressions_of_every_operation_were_run() -> None:
    """The masks above reach every operation that an expansion can hold."""
    used: set[str] = set()
    for make in MASKS.values():
        program = make(Sizes(), np.random.default_rng(0)).program
        for expr in (program.keep, program.bias):
            used |= operations(expr) if expr is not None else set()
    assert used >= {"add", "mul", "floordiv", "mod", "abs", "min", "ge0", "eq0", "and", "or"}
    assert used >= {"fadd", "fmul", "float"}


def operations(expr: Expr) -> set[str]:
    from stof_onnx.ir.expr import Op, walk

    return {node.name for node in walk(expr) if isinstance(node, Op)}
