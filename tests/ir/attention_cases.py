"""Configurations of StofMaskedAttention, their models and what the oracle says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from stof_onnx.expansion import expand_model
from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import Load
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
    not_,
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


ALL = np.ones((1, 1), np.bool_)


@dataclass(frozen=True)
class Mask:
    """A program with its operands' values, and what the reference says about it.

    Attributes:
        operands: a tensor, or the BlockTable of a constant mask, for each operand.
        keep: broadcasts to [B, H, Sq, Sk].
        bias: broadcasts to [B, H, Sq, Sk].
        again: broadcasts to [B, H, Sq, Sk].
    """

    program: MaskProgram
    keep: Array
    operands: tuple[Array | BlockTable, ...] = ()
    bias: Array | None = None
    again: Array = field(default_factory=lambda: ~ALL)


START = sub(Q_INDEX, K_INDEX)
END = sub(sub(add(Q_INDEX, KEYS), QUERIES), K_INDEX)


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


def hidden_twice(s: Sizes, rng: np.random.Generator) -> Mask:
    """GPT-2 of transformers 4: a causal mask, and a padding mask [B, Sk] on the left, both added.

    The last batch is padding alone.
    """
    lengths = [*rng.integers(1, s.keys + 1, s.batch - 1).tolist(), 0]
    real, seen = padding_keep(lengths, s.keys, side="left"), causal_keep(s.queries, s.keys)
    load = Load("padding", (B_INDEX, K_INDEX), "bool")
    program = MaskProgram(
        and_(ge0(START), load),
        fill=FLOAT32_MIN,
        fill_mode="add",
        operands=(tensor("padding", 2),),
        again=and_(not_(ge0(START)), not_(load)),
    )
    return Mask(program, seen & real, (real[:, 0, 0].astype(np.int8),), again=~seen & ~real)


def hidden_twice_by_table(s: Sizes, rng: np.random.Generator) -> Mask:
    """Windows by head; a constant mask and a vector say what is hidden twice, some rows wholly.

    Pairs that are kept are among those of `again`, which means nothing there.
    """
    stored_again = rng.random((s.heads, s.queries, s.keys)) < 0.5
    stored_again[:, ::2] = True
    stored = BlockTable.from_dense(stored_again, (16, 16))
    chosen = rng.random((s.batch, s.keys)) < 0.7
    chosen[0] = True
    load = Load("chosen", (B_INDEX, K_INDEX), "bool")
    again = and_(Load("table", (H_INDEX, Q_INDEX, K_INDEX), "bool"), load)
    distance = sub(START, integer(4))
    program = MaskProgram(
        and_(ge0(distance), ge(integer(6), distance)),
        fill=FLOAT32_MIN,
        operands=(
            Operand("table", "block_table", 3, stored.shape, stored.tile),
            tensor("chosen", 2),
        ),
        again=again,
    )
    q, k = np.ogrid[: s.queries, : s.keys]
    keep = (q - k >= 4) & (q - k <= 10)
    wanted = stored_again & chosen[:, None, None]
    return Mask(program, keep, (stored, chosen.astype(np.int8)), again=wanted)


def hidden_twice_beside_bias(s: Sizes, rng: np.random.Generator) -> Mask:
    """Some pairs that a run-time matrix hides, beside a bias for each key."""
    keep = rng.random((s.batch, s.heads, s.queries, s.keys)) < 0.3
    keep[:, :, : s.queries // 2 + 1] = False
    bias = (rng.integers(-16, 17, (s.batch, s.keys)) / 8).astype(np.float32)
    load = Load("dense", (B_INDEX, H_INDEX, Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(
        load,
        bias=Load("bias", (B_INDEX, K_INDEX), "float"),
        fill=FLOAT32_MIN,
        operands=(tensor("dense", 4), tensor("bias", 2)),
        again=ge0(sub(mul(K_INDEX, integer(3)), mul(Q_INDEX, integer(2)))),
    )
    q, k = np.ogrid[: s.queries, : s.keys]
    again = 3 * k - 2 * q >= 0
    return Mask(program, keep, (keep.astype(np.int8), bias), bias[:, None, None], again)


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
        hidden_twice,
        hidden_twice_by_table,
        hidden_twice_beside_bias,
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
    softcap: float = 0.0
    sinks: float | None = None
    """Mean of the sinks; no sinks if None."""

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
        softcap=case.softcap,
        sinks=case.sinks is not None,
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
    sinks = None if case.sinks is None else sinks_of(case.sinks, s.heads, rng)
    if sinks is not None:
        inputs.append(("sinks", sinks))
    with np.errstate(over="ignore"):
        fill_twice = float(np.asarray(2 * record.mask.fill).astype(np.dtype(case.score_dtype)))
    once = replace(record.mask, again=FALSE)
    wanted = attention(
        *tensors,
        mask.keep,
        mask.bias,
        scale=case.scale,
        empty_row=once.empty_row(case.score_dtype),
        fill=record.mask.fill,
        softcap=case.softcap,
        sinks=sinks,
        again=mask.again,
        fill_twice=fill_twice,
        nan_to_zero=record.mask.nan_to_zero,
    )
    if case.output[0] == "BSHD":
        wanted = wanted.transpose(0, 2, 1, 3)
    if case.output[1] == 3:
        wanted = wanted.reshape(s.batch, s.queries, -1)
    return Node(record, inputs, constants, wanted)


def sinks_of(mean: float, heads: int, rng: np.random.Generator) -> Array:
    """Sinks around a number, one for each query head."""
    return np.asarray(mean + 2 * rng.standard_normal(heads), np.float32)


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
