"""Tiles of mask programs: ranges never contradict elements, tables equal those of dense masks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.errors import InputError
from stof_onnx.ir.expr import Expr, Load, evaluate, variables
from stof_onnx.ir.expr.build import (
    TRUE,
    absolute,
    add,
    and_,
    eq,
    eq0,
    floordiv,
    ge,
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
)
from stof_onnx.ir.mask import MaskProgram, Operand
from stof_onnx.ir.mask.intervals import Maybe, Range, evaluate_bounds, exactly
from stof_onnx.ir.mask.program import B_INDEX, H_INDEX, K_INDEX, KEYS, Q_INDEX, QUERIES
from stof_onnx.ir.mask.statistics import measure
from stof_onnx.ir.mask.tiles import TileState, map_tiles
from tests.ir import expression_trees as trees

Array = npt.NDArray[Any]

b, h, q, k = B_INDEX, H_INDEX, Q_INDEX, K_INDEX
DISTANCE = sub(q, k)
END = sub(sub(add(q, KEYS), QUERIES), k)


def sizes_of(queries: int, keys: int, batch: int = 2, heads: int = 3) -> dict[str, int]:
    return {"B": batch, "H": heads, "Sq": queries, "Sk": keys}


# ---- ranges -----------------------------------------------------------------------------------


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, tuple[int, int]]]:
    """Sizes, and for each index a range inside them; sizes of 0 have no box."""
    sizes = draw(st.tuples(*[st.integers(1, 5)] * 5))
    box = {}
    for index, size in zip(trees.INDICES, sizes, strict=True):
        lo = draw(st.integers(0, size - 1))
        box[index.name] = (lo, draw(st.integers(lo, size - 1)))
    return sizes, box


def check_bounds(tree: Any, sizes: tuple[int, ...], box: dict[str, tuple[int, int]]) -> None:
    expr = trees.construct(tree)
    if expr.kind == "float":
        return
    sources = trees.run_time(sizes)
    ranges = {dim.name: exactly(size) for dim, size in zip(trees.DIMENSIONS, sizes, strict=True)}
    values: dict[str, Any] = {name: bound.lo for name, bound in ranges.items()}
    for axis, (name, (lo, hi)) in enumerate(box.items()):
        ranges[name] = Range(*(np.full((1,) * 5, end) for end in (lo, hi)))
        values[name] = np.arange(lo, hi + 1).reshape([-1 if i == axis else 1 for i in range(5)])
    for node, found in evaluate_bounds(expr, ranges, sources).items():
        value = evaluate(node, values, sources)
        if isinstance(found, Maybe):
            assert found.can_be_true.all() or not value.any(), node
            assert found.can_be_false.all() or value.all(), node
        else:
            assert found.lo.item() <= value.min(), node
            assert value.max() <= found.hi.item(), node


@given(trees.bools(3), boxes())
@settings(max_examples=300, deadline=None)
def test_ranges_hold_booleans(tree: Any, sized: tuple[Any, Any]) -> None:
    check_bounds(tree, *sized)


@given(trees.ints(3), boxes())
@settings(max_examples=300, deadline=None)
@example(("mod", ("neg", q), integer(-3)), ((1, 1, 5, 5, 1), dict.fromkeys("bhqkp", (0, 0))))
def test_ranges_hold_integers(tree: Any, sized: tuple[Any, Any]) -> None:
    check_bounds(tree, *sized)


def test_nothing_is_known_where_a_result_may_overflow() -> None:
    huge = integer(2**62)
    ranges = {"q": Range(np.asarray(0), np.asarray(3)), "k": exactly(0)}
    for expr in (mul(huge, q), add(mul(integer(2**31), q), mul(integer(2**62 - 1), k))):
        found = evaluate_bounds(ge0(sub(expr, integer(1))), ranges, {})
        assert isinstance(truth := found[ge0(sub(expr, integer(1)))], Maybe)
        assert truth.can_be_true.all()
        assert truth.can_be_false.all()


# ---- tables -----------------------------------------------------------------------------------


def sources_of(sizes: Mapping[str, int]) -> dict[str, Array]:
    rng = np.random.default_rng(11)
    batch, heads, queries, keys = (sizes[name] for name in ("B", "H", "Sq", "Sk"))
    longest = max(queries, keys)
    return {
        "lengths": rng.integers(0, keys + 1, batch),
        "document": np.sort(rng.integers(0, 4, (batch, longest)), axis=1),
        "flags": rng.integers(0, 2, (batch, keys)),
        "table": np.kron(
            rng.random((heads, -(-queries // 8), -(-keys // 8))) < 0.5, np.ones((1, 8, 8))
        )[:, :queries, :keys].astype(np.bool_),
    }


LOADS = [
    gt(Load("lengths", (b,), "int"), k),
    eq(Load("document", (b, q), "int"), Load("document", (b, k), "int")),
    not_(Load("flags", (b, k), "bool")),
    Load("table", (h, q, k), "bool"),
    Load("table", (h, sub(sub(QUERIES, integer(1)), q), k), "bool"),
    ge(Load("lengths", (b,), "int"), DISTANCE),
]

numbers = st.integers(1, 40).map(integer)
positions = st.sampled_from([q, k, DISTANCE, END, add(q, k), absolute(DISTANCE), mul(q, k)])
terms = st.one_of(
    st.builds(ge, numbers, positions),
    st.builds(ge, positions, numbers),
    st.builds(lambda d, r, c: eq(mod(d, r), c), positions, numbers, st.integers(0, 3).map(integer)),
    st.builds(lambda d, r, c: ge(mod(d, r), c), positions, numbers, numbers),
    st.builds(lambda c, n: ge(n, sub(floordiv(q, c), floordiv(k, c))), numbers, numbers),
    st.builds(lambda c: eq(floordiv(q, c), floordiv(k, c)), numbers),
    st.builds(lambda x, y, c: ge(minimum(x, y), c), positions, positions, numbers),
    st.builds(lambda x, y, c: gt(c, maximum(x, y)), positions, positions, numbers),
    st.builds(lambda n: ge(DISTANCE, mul(h, n)), numbers),
    st.sampled_from(LOADS),
)
keeps = st.recursive(
    terms,
    lambda below: st.one_of(
        st.builds(and_, below, below), st.builds(or_, below, below), st.builds(not_, below)
    ),
    max_leaves=5,
)
lengths = st.integers(1, 90)
tiles = st.sampled_from([(8, 8), (16, 8), (8, 24), (32, 32), (64, 64)])


def dense(keep: Expr, sizes: dict[str, int]) -> Array:
    """[groups, Sq, Sk] as from_program groups them."""
    found = MaskProgram(keep).evaluate_keep(sizes, sources_of(sizes))
    found = np.broadcast_to(found, (*found.shape[:2], sizes["Sq"], sizes["Sk"]))
    return found.reshape(-1, sizes["Sq"], sizes["Sk"])


@given(keeps, lengths, lengths, tiles)
@settings(max_examples=300, deadline=None)
@example(eq0(mod(DISTANCE, integer(8))), 90, 90, (8, 8))
@example(eq(mod(mul(q, k), integer(3)), integer(1)), 50, 60, (8, 8))
def test_a_program_has_the_table_of_its_dense_mask(
    keep: Expr, queries: int, keys: int, tile: tuple[int, int]
) -> None:
    sizes = sizes_of(queries, keys)
    expected = BlockTable.from_dense(np.ascontiguousarray(dense(keep, sizes)), tile)
    table = BlockTable.from_program(MaskProgram(keep), sizes, tile, sources_of(sizes))
    assert table == expected
    found = map_tiles(keep, sizes, tile, sources_of(sizes))
    assert found.kept_pairs == expected.kept_pairs
    assert found.token_density == expected.token_density
    assert found.tile_density == pytest.approx(expected.tile_density)
    assert [found.count(s) for s in (TileState.FULL, TileState.PARTIAL, TileState.EMPTY)] == [
        *expected.counts
    ]


@given(trees.bools(3), st.tuples(st.integers(1, 2), st.integers(1, 2), lengths, lengths))
@settings(max_examples=150, deadline=None)
def test_random_expressions_have_the_tables_of_their_dense_masks(
    tree: Any, dims: tuple[int, int, int, int]
) -> None:
    keep = trees.construct(tree)
    sizes = dict(zip(("B", "H", "Sq", "Sk"), dims, strict=True))
    if not variables(keep) <= {*sizes, "b", "h", "q", "k"}:
        return
    sources = trees.run_time((*dims, 1))
    values = MaskProgram(keep).evaluate_keep(sizes, sources)
    if values.ndim == 0:
        values = values.reshape(1, 1, 1, 1)
    full = np.broadcast_to(values, (*values.shape[:2], *dims[2:]))
    expected = BlockTable.from_dense(full.reshape(-1, *dims[2:]).copy(), (8, 8))
    table = BlockTable.from_program(MaskProgram(keep), sizes, (8, 8), sources)
    assert (table.to_dense() == expected.to_dense()).all()


@pytest.mark.parametrize("keep", LOADS[:4], ids=repr)
def test_strips_and_batches_join_seamlessly(keep: Expr, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of(150, 90)
    expected = BlockTable.from_dense(dense(and_(keep, ge0(END)), sizes), (16, 16))
    monkeypatch.setattr("stof_onnx.ir.mask.tiles._STRIP_TILES", 1)
    monkeypatch.setattr("stof_onnx.ir.mask.tiles._BATCH_PAIRS", 1)
    program = MaskProgram(and_(keep, ge0(END)))
    assert BlockTable.from_program(program, sizes, (16, 16), sources_of(sizes)) == expected


def test_overflowing_programs_are_evaluated() -> None:
    wraps = mul(integer(2**61 + 7), mul(q, q))
    keep = eq(mod(wraps, integer(5)), integer(2))
    sizes = sizes_of(70, 70)
    table = BlockTable.from_program(MaskProgram(keep), sizes, (8, 8))
    assert table == BlockTable.from_dense(dense(keep, sizes).copy(), (8, 8))


@pytest.mark.parametrize(
    ("keep", "patterns"),
    [
        (ge0(DISTANCE), 1),
        (and_(ge0(DISTANCE), ge(integer(256), DISTANCE)), 2),
        (and_(ge0(DISTANCE), eq0(mod(DISTANCE, integer(128)))), 3),
        (and_(ge0(DISTANCE), eq(floordiv(q, integer(1000)), floordiv(k, integer(1000)))), 250),
    ],
    ids=["causal", "window", "strided", "chunked"],
)
def test_a_long_mask_is_never_made_dense(keep: Expr, patterns: int) -> None:
    sizes = sizes_of(16384, 16384)
    tracemalloc.start()
    table = BlockTable.from_program(MaskProgram(keep), sizes)
    statistics = measure(MaskProgram(keep), sizes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 * 2**20  # the dense mask has 256 MiB
    assert table.bitmap_count <= patterns
    assert statistics.token_density == table.token_density
    assert statistics.tiles[0].density == pytest.approx(table.tile_density)


def test_an_operand_without_an_array_is_refused() -> None:
    with pytest.raises(InputError, match="no array for mask operand 'lengths'"):
        BlockTable.from_program(MaskProgram(LOADS[0]), sizes_of(8, 8))


def test_a_load_outside_its_array_is_an_error() -> None:
    with pytest.raises(IndexError):
        map_tiles(Load("flags", (b, k), "bool"), sizes_of(8, 9), (8, 8), {"flags": np.ones((2, 8))})


def test_bad_sizes_and_tiles_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 8"):
        map_tiles(ge0(DISTANCE), sizes_of(8, 8), (60, 64), {})
    with pytest.raises(InputError, match="dimensions from 1"):
        map_tiles(ge0(DISTANCE), sizes_of(0, 8), (64, 64), {})


# ---- statistics -------------------------------------------------------------------------------


def test_statistics_of_causal() -> None:
    found = measure(MaskProgram(ge0(DISTANCE)), sizes_of(256, 256))
    assert found.sizes == (2, 3, 256, 256)
    assert found.token_density == (256 * 257 / 2) / 256**2
    assert [(t.tile, t.density, t.full) for t in found.tiles] == [
        ((64, 64), 10 / 16, 6 / 16),
        ((128, 128), 3 / 4, 1 / 4),
    ]
    assert found.not_counted == ()


def test_unknown_operands_count_as_keeping_all() -> None:
    padding = Load("padding", (b, k), "bool")
    causal = ge0(DISTANCE)
    alone = measure(MaskProgram(causal), sizes_of(100, 100))
    for keep in (and_(causal, padding), and_(causal, not_(padding))):
        found = measure(MaskProgram(keep), sizes_of(100, 100))
        assert found.not_counted == ("padding",)
        assert (found.token_density, found.tiles) == (alone.token_density, alone.tiles)
    either = measure(MaskProgram(or_(causal, padding)), sizes_of(100, 100))
    assert either.token_density == 1
    known = measure(
        MaskProgram(and_(causal, padding)), sizes_of(100, 100), {"padding": np.zeros((2, 100))}
    )
    assert (known.token_density, known.not_counted) == (0, ())


def test_statistics_of_everything() -> None:
    found = measure(MaskProgram(TRUE), sizes_of(100, 70), tiles=[(64, 64)])
    assert (found.token_density, found.tiles[0].density, found.tiles[0].full) == (1, 1, 1)


@pytest.mark.parametrize("extra", [TRUE, ge0(DISTANCE)], ids=["alone", "causal"])
@pytest.mark.parametrize("shape", [(1, 100, 100), (1, 128, 128)], ids=str)
def test_statistics_of_block_tables(extra: Expr, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    values = np.kron(rng.random((1, 16, 16)) < 0.4, np.ones((1, 8, 8))) > 0
    values = values[:, : shape[1], : shape[2]].copy()
    table = BlockTable.from_dense(values, (32, 32))
    operand = Operand("table", "block_table", 3, table.shape, table.tile)
    keep = and_(Load("table", (integer(0), q, k), "bool"), extra)
    sizes = sizes_of(100, 100)
    found = measure(MaskProgram(keep, operands=(operand,)), sizes, {"table": table})
    cut = values[0, :100, :100] & (np.tri(100) > 0 if extra != TRUE else True)
    assert found.token_density == cut.mean()
    for share in found.tiles:
        expected = BlockTable.from_dense(cut, share.tile)
        assert share.density == pytest.approx(expected.tile_density)
        assert share.full == pytest.approx(expected.counts.full / sum(expected.counts))
