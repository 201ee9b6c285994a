"""StofMaskTable: its expansion, run by ONNX Runtime, against block tables of the dense mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import Const, Expr, Load, evaluate
from stof_onnx.ir.expr.build import (
    absolute,
    add,
    and_,
    eq0,
    fadd,
    floordiv,
    fmul,
    ge0,
    gt,
    integer,
    maximum,
    minimum,
    mod,
    mul,
    not_,
    or_,
    sub,
    to_float,
    where,
)
from stof_onnx.ir.mask.program import (
    B_INDEX,
    BATCH,
    H_INDEX,
    HEADS,
    K_INDEX,
    KEYS,
    Q_INDEX,
    QUERIES,
    MaskProgram,
    Operand,
    index_grid,
)
from stof_onnx.ir.operators.builder import Builder, ConstantPool
from stof_onnx.ir.operators.mask_expansion import MaskEmitter
from stof_onnx.ir.operators.mask_table import OP_TYPE, SHARED_BY_BATCHES, MaskTable
from stof_onnx.ir.operators.masked_attention import node_attributes
from stof_onnx.ir.operators.registry import DOMAIN
from tests.ir.mask_tables import blocky, expected
from tests.reference.attention import causal_keep, padding_keep

Array = npt.NDArray[Any]

NODE = "mask_table_3"
OUTPUTS = ("tile_counts", "tile_columns", "bitmaps")

DENSE = Operand("dense", "tensor", 4)
PADDING = Operand("padding", "tensor", 2)
QUERY = Operand("query", "tensor", 3)
IN_DENSE = Load("dense", (B_INDEX, H_INDEX, Q_INDEX, K_INDEX), "bool")
IS_REAL = Load("padding", (B_INDEX, K_INDEX), "bool")
CAUSAL = ge0(sub(Q_INDEX, K_INDEX))


def dense_record(heads: int, tile: tuple[int, int]) -> MaskTable:
    """A table of a dense mask [B, H, Sq, Sk]."""
    program = MaskProgram(IN_DENSE, operands=(DENSE,))
    return MaskTable(program, heads, ((0, 0), (0, 2), (0, 3)), tile)


def session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def inputs_of(feeds: Mapping[str, Array]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(x.dtype),
            [f"{name}_{axis}" for axis in range(x.ndim)],
        )
        for name, x in feeds.items()
    ]


def model_of(
    record: MaskTable, feeds: Mapping[str, Array], *, opset: int = 17, **attributes: Any
) -> onnx.ModelProto:
    """A model of one stof node with dynamic dimensions."""
    node = helper.make_node(
        OP_TYPE,
        list(feeds),
        OUTPUTS,
        name=NODE,
        domain=DOMAIN,
        **{**record.attributes(), **attributes},
    )
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, [f"{name}_{a}" for a in range(rank)])
        for name, rank in zip(OUTPUTS, (3, 3, 4), strict=True)
    ]
    graph = helper.make_graph([node], "one mask", inputs_of(feeds), outputs)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(record: MaskTable, feeds: Mapping[str, Array], opset: int = 17) -> tuple[Array, ...]:
    """The node's three outputs."""
    expanded = expand_model(model_of(record, feeds, opset=opset))
    onnx.checker.check_model(expanded, full_check=True)
    return tuple(session(expanded).run(list(OUTPUTS), dict(feeds)))


def check(record: MaskTable, feeds: Mapping[str, Array], keep: Array, opset: int = 17) -> None:
    got = run(record, feeds, opset)
    for name, actual, wanted in zip(OUTPUTS, got, expected(keep, record.tile), strict=True):
        assert actual.dtype == np.int32
        np.testing.assert_array_equal(actual, wanted, err_msg=name)


TILES = [(8, 8), (16, 64), (64, 16), (64, 64), (24, 40)]
SHAPES = [(1, 1, 1, 1), (1, 1, 64, 64), (2, 1, 65, 37), (1, 3, 16, 130), (2, 2, 100, 63)]


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_masks(shape: tuple[int, ...], tile: tuple[int, int]) -> None:
    keep = blocky(np.random.default_rng(3), shape, 16)
    check(dense_record(shape[1], tile), {"dense": keep.astype(np.int8)}, keep)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2, 2, 33, 70)], ids=str)
def test_all_and_nothing(shape: tuple[int, ...], kept: bool) -> None:
    keep = np.full(shape, kept)
    check(dense_record(shape[1], (32, 16)), {"dense": keep.astype(np.int8)}, keep)


@pytest.mark.parametrize("bit", [0, 7, 31, 32, 63])
def test_single_bits(bit: int) -> None:
    keep = np.zeros((1, 1, 16, 16), np.bool_)
    keep[0, 0, 8 + bit // 8, bit % 8] = True
    counts, columns, bitmaps = run(dense_record(1, (16, 16)), {"dense": keep.astype(np.int8)})
    assert counts.tolist() == [[[0, 1]]]
    assert columns.tolist() == [[[0]]]
    word, half = 2, bit // 32
    assert np.flatnonzero(bitmaps).tolist() == [2 * word + half]
    assert int(bitmaps.view(np.uint32)[0, 0, 0, 2 * word + half]) == 1 << (bit % 32)


def test_full_tiles_come_first() -> None:
    keep = np.zeros((1, 1, 8, 40), np.bool_)
    keep[..., 0:1] = keep[..., 8:16] = keep[..., 24:25] = keep[..., 32:40] = True
    counts, columns, _ = run(dense_record(1, (8, 8)), {"dense": keep.astype(np.int8)})
    assert counts.tolist() == [[[2, 2]]]
    assert columns.tolist() == [[[1, 4, 0, 3, -1]]]


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 23])
def test_opsets(opset: int) -> None:
    keep = blocky(np.random.default_rng(4), (2, 2, 20, 33), 8)
    check(dense_record(2, (8, 16)), {"dense": keep.astype(np.int8)}, keep, opset)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (17, 17), (9, 70), (70, 9), (64, 128)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_causal(queries: int, keys: int, side: Any) -> None:
    """The lengths come from tensors of different rank; the mask is the same for every head."""
    lengths = [keys, 0, (keys + 1) // 2]
    padded = padding_keep(lengths, keys, side=side)
    record = MaskTable(
        MaskProgram(and_(CAUSAL, IS_REAL), operands=(PADDING, QUERY)),
        num_heads=1,
        size_axes=((0, 0), (1, 1), (0, 1)),
        tile=(16, 8),
    )
    feeds = {
        "padding": padded[:, 0, 0].astype(np.int8),
        "query": np.zeros((3, queries, 2), np.float32),
    }
    check(record, feeds, padded & causal_keep(queries, keys))


def test_a_mask_by_head_and_length() -> None:
    """Integers at run time; the end is aligned with the end."""
    program = MaskProgram(
        or_(
            ge0(sub(sub(add(Q_INDEX, KEYS), QUERIES), add(K_INDEX, H_INDEX))),
            gt(Load("prefix", (B_INDEX,), "int"), K_INDEX),
        ),
        operands=(Operand("prefix", "tensor", 1), QUERY, Operand("key", "tensor", 3)),
    )
    record = MaskTable(program, 3, ((0, 0), (1, 1), (2, 1)), (8, 24))
    feeds = {
        "prefix": np.asarray([0, 5], np.int32),
        "query": np.zeros((2, 11, 1), np.float32),
        "key": np.zeros((2, 30, 1), np.float32),
    }
    _, h, q, k = np.ogrid[:2, :3, :11, :30]
    keep = (k + h <= q + 19) | (k < feeds["prefix"][:, None, None, None])
    check(record, feeds, keep)


@pytest.mark.parametrize("heads", [1, 3])
def test_a_mask_that_batches_share(heads: int) -> None:
    """One group a head, whatever the batch of other tensors is."""
    keep = blocky(np.random.default_rng(6), (1, heads, 21, 40), 8)
    load = Load("dense", (H_INDEX, Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(load, operands=(Operand("dense", "tensor", 3), QUERY))
    record = MaskTable(program, heads, (SHARED_BY_BATCHES, (1, 1), (0, 2)), (8, 16))
    feeds = {"dense": keep[0].astype(np.int8), "query": np.zeros((5, 21, 2), np.float32)}
    check(record, feeds, keep)
    attributes = record.attributes()
    assert attributes["size_axes"] == [-1, 0, 1, 1, 0, 2]
    assert MaskTable.from_attributes(attributes, NODE) == record


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 70), st.integers(1, 70)),
    st.tuples(*[st.integers(1, 5).map(lambda eighths: 8 * eighths)] * 2),
    st.sampled_from([1, 8, 16]),
    st.integers(0, 2**16),
)
def test_any_dense_mask(
    shape: tuple[int, ...], tile: tuple[int, int], grain: int, seed: int
) -> None:
    keep = blocky(np.random.default_rng(seed), shape, grain)
    check(dense_record(shape[1], tile), {"dense": keep.astype(np.int8)}, keep)


# ---------------------------------------------------------------------------------------
# Attributes and errors.


def test_attributes_round_trip_through_a_node() -> None:
    record = MaskTable(
        MaskProgram(and_(CAUSAL, IS_REAL), operands=(PADDING, QUERY)),
        4,
        ((0, 0), (1, 1), (0, 1)),
        (64, 128),
    )
    feeds = {"padding": np.zeros((1, 1), np.int8), "query": np.zeros((1, 1, 1), np.float32)}
    proto = onnx.NodeProto()
    proto.ParseFromString(model_of(record, feeds).graph.node[0].SerializeToString())
    assert MaskTable.from_attributes(node_attributes(proto), NODE) == record


@pytest.mark.parametrize("name", ["mask", "num_heads", "size_axes", "tile"])
def test_a_missing_attribute_is_named(name: str) -> None:
    attributes = dense_record(1, (8, 8)).attributes()
    del attributes[name]
    with pytest.raises(MalformedNodeError) as caught:
        MaskTable.from_attributes(attributes, NODE)
    assert str(caught.value) == f"node '{NODE}' lacks attribute '{name}'"


TABLE = Operand("table", "block_table", 3, (1, 8, 8), (8, 8))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"tile": [64, 60]}, "tile (64, 60); wanted tiles of multiples of 8"),
        ({"tile": [0, 8]}, "wanted tiles of multiples of 8"),
        ({"tile": [-8, 8]}, "wanted tiles of multiples of 8"),
        ({"tile": [8]}, "list index out of range"),
        ({"tile": [8, 8, 8]}, "size_axes of 6 and a tile of 3 numbers; wanted 6 and 2"),
        ({"tile": 8}, "is not iterable"),
        ({"num_heads": 0}, "0 heads"),
        ({"num_heads": math.inf}, "cannot convert float infinity"),
        ({"size_axes": [0, 0, 0, 2]}, "list index out of range"),
        ({"size_axes": [0, 0, 0, 2, 0, 3, 0, 1]}, "size_axes of 8 and a tile of 2 numbers"),
        ({"size_axes": [0, 0, 0, 2, 0, 4]}, "beyond the operands"),
        ({"size_axes": [0, 0, 1, 2, 0, 3]}, "beyond the operands"),
        ({"size_axes": [0, -1, 0, 2, 0, 3]}, "beyond the operands"),
        ({"size_axes": [-1, 1, 0, 2, 0, 3]}, "beyond the operands"),
        ({"size_axes": [0, 0, -1, 0, 0, 3]}, "beyond the operands"),
        ({"size_axes": [-1, 0, 0, 2, 0, 3]}, "for a mask that depends on the batch; wanted"),
        (
            {
                "size_axes": [-1, 0, 0, 2, 0, 3],
                "mask": MaskProgram(ge0(sub(BATCH, K_INDEX)), operands=(DENSE,)).to_json(),
            },
            "for a mask that depends on the batch; wanted",
        ),
        ({"mask": "[]"}, "the mask attribute is not a mask program"),
        (
            {"mask": MaskProgram(operands=(TABLE,)).to_json()},
            "a constant table among the operands of a run-time table",
        ),
        (
            {"mask": MaskProgram(IN_DENSE, operands=(DENSE, PADDING)).to_json()},
            "has 1 inputs; wanted 2",
        ),
    ],
    ids=str,
)
def test_a_wrong_attribute_is_refused(attributes: dict[str, Any], message: str) -> None:
    feeds = {"dense": np.zeros((1, 1, 8, 8), np.int8)}
    model = model_of(dense_record(1, (8, 8)), feeds)
    read = {**dense_record(1, (8, 8)).attributes(), **attributes}
    node = model.graph.node[0]
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in read.items())
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"node '{NODE}'")


def test_a_missing_output_is_refused() -> None:
    model = model_of(dense_record(1, (8, 8)), {"dense": np.zeros((1, 1, 8, 8), np.int8)})
    del model.graph.node[0].output[-1]
    with pytest.raises(MalformedNodeError, match=f"node '{NODE}' has 2 outputs; wanted 3"):
        expand_model(model)


# ---------------------------------------------------------------------------------------
# Any program: what the expansion computes is what `evaluate` computes.


SOURCES: dict[str, Callable[[dict[str, int], np.random.Generator], Array]] = {
    "padding": lambda n, rng: rng.random((n["B"], n["Sk"] + n["Sq"])) < 0.5,
    "dense": lambda n, rng: rng.random((n["Sk"], n["H"], 1, n["Sq"])) < 0.5,
    "position": lambda n, rng: rng.integers(-4, 9, (n["B"], n["Sk"])),
    "table": lambda n, rng: rng.random((n["H"], n["Sq"] + 3, n["Sk"] + 1)) < 0.5,
    "slope": lambda n, rng: rng.standard_normal(n["H"]).astype(np.float32),
}

LEAVES: list[Expr] = [B_INDEX, H_INDEX, Q_INDEX, K_INDEX, BATCH, HEADS, QUERIES, KEYS]
POSITION = Load("position", (B_INDEX, K_INDEX), "int")
BOOL_LOADS: list[Expr] = [
    IS_REAL,
    Load("dense", (K_INDEX, H_INDEX, integer(0), Q_INDEX), "bool"),
    Load("table", (H_INDEX, Q_INDEX, K_INDEX), "bool"),
    Load("table", (integer(0), Q_INDEX, K_INDEX), "bool"),
    Load("table", (mod(B_INDEX, HEADS), Q_INDEX, K_INDEX), "bool"),
    Load("table", (H_INDEX, add(Q_INDEX, integer(1)), minimum(Q_INDEX, K_INDEX)), "bool"),
    Load("padding", (integer(0), floordiv(K_INDEX, integer(2))), "bool"),
    Load("padding", (integer(0), QUERIES), "bool"),
]
BINARY = [add, sub, mul, minimum, maximum]
DIVISORS = [integer(2), integer(3), integer(-2), KEYS, add(Q_INDEX, integer(1)), mul(BATCH, KEYS)]

ints: st.SearchStrategy[Expr] = st.recursive(
    st.one_of(st.sampled_from([*LEAVES, POSITION]), st.integers(-3, 6).map(integer)),
    lambda below: st.one_of(
        st.builds(lambda f, x, y: f(x, y), st.sampled_from(BINARY), below, below),
        st.builds(
            lambda f, x, y: f(x, y),
            st.sampled_from([floordiv, mod]),
            below,
            st.sampled_from(DIVISORS),
        ),
        st.builds(absolute, below),
        st.builds(lambda c, x, y: where(ge0(c), x, y), below, below, below),
    ),
    max_leaves=6,
)
bools: st.SearchStrategy[Expr] = st.recursive(
    st.one_of(st.sampled_from(BOOL_LOADS), ints.map(ge0), ints.map(eq0)),
    lambda below: st.one_of(
        st.builds(and_, below, below), st.builds(or_, below, below), st.builds(not_, below)
    ),
    max_leaves=5,
)
floats: st.SearchStrategy[Expr] = st.recursive(
    st.one_of(
        st.just(Load("slope", (H_INDEX,), "float")),
        st.sampled_from([0.5, -1e4, 1.0]).map(Const),
        ints.map(to_float),
    ),
    lambda below: st.one_of(
        st.builds(fadd, below, below),
        st.builds(fmul, below, below),
        st.builds(where, bools, below, below),
    ),
    max_leaves=4,
)


def check_expression(expr: Expr, sizes: tuple[int, ...], seed: int) -> None:
    """Run an expression's operators and compare them with its value."""
    named = dict(zip(("B", "H", "Sq", "Sk"), sizes, strict=True))
    rng = np.random.default_rng(seed)
    sources = {name: make(named, rng) for name, make in SOURCES.items()}
    wanted = evaluate(expr, index_grid(named), sources)
    feeds = {name: x for name, x in sources.items() if name != "table"}
    feeds = {name: x.astype(np.int8) if x.dtype == np.bool_ else x for name, x in feeds.items()}
    pool = ConstantPool("c/")
    builder = Builder("n/", pool)
    emitter = MaskEmitter(
        builder,
        {name: builder.const([size], np.int64) for name, size in named.items()},
        {name: name for name in feeds},
        {"table": sources["table"]},
    )
    builder.op("Identity", emitter.emit(expr), output="out")
    types = {"bool": TensorProto.BOOL, "int": TensorProto.INT64, "float": TensorProto.FLOAT}
    graph = helper.make_graph(
        builder.nodes,
        "one expression",
        inputs_of(feeds),
        [helper.make_tensor_value_info("out", types[expr.kind], None)],
        pool.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (got,) = session(model).run(None, feeds)
    np.testing.assert_array_equal(
        np.broadcast_to(got, sizes), np.broadcast_to(wanted, sizes), err_msg=repr(expr)
    )


@pytest.mark.parametrize(
    "expr",
    [
        *BOOL_LOADS,
        # POSITION is negative for some keys: quotients are rounded down, as in Python.
        *(f(POSITION, by) for f in (floordiv, mod) for by in DIVISORS),
        *(f(sub(K_INDEX, Q_INDEX), by) for f in (floordiv, mod) for by in DIVISORS),
        *(f(POSITION, Q_INDEX) for f in BINARY),
        absolute(POSITION),
        where(IS_REAL, POSITION, Q_INDEX),
        where(IS_REAL, Const(0.5), to_float(POSITION)),
        fadd(Load("slope", (H_INDEX,), "float"), to_float(POSITION)),
        fmul(Load("slope", (H_INDEX,), "float"), to_float(POSITION)),
        eq0(POSITION),
        ge0(POSITION),
        not_(IS_REAL),
        and_(IS_REAL, ge0(POSITION), CAUSAL),
        or_(IS_REAL, ge0(POSITION), CAUSAL),
        integer(3),
        Const(0.5),
        Const(True),
    ],
    ids=repr,
)
def test_operations_are_written_as_they_are_evaluated(expr: Expr) -> None:
    check_expression(expr, (2, 3, 5, 7), 11)


@settings(max_examples=150, deadline=None)
@given(st.one_of(bools, floats), st.tuples(*[st.integers(1, 4)] * 4), st.integers(0, 99))
def test_any_program_is_written_as_it_is_evaluated(
    expr: Expr, sizes: tuple[int, ...], seed: int
) -> None:
    check_expression(expr, sizes, seed)
