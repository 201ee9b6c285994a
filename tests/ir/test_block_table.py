"""The block table: exact layout, round trips, malformed arrays, size."""

from __future__ import annotations

import doctest
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx.ir.block_table import ARRAY_NAMES, BlockTable, TileCounts
from stof_onnx.ir.errors import InputError, MalformedNodeError

Mask = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[Any]]

TILES = [(8, 8), (8, 64), (16, 16), (64, 8), (64, 64), (128, 32), (24, 40)]
SHAPES = [(1, 1, 1), (1, 64, 64), (1, 100, 37), (3, 65, 130), (2, 8, 200), (1, 129, 63)]


def expected_layout(keep: Mask, tile: tuple[int, int]) -> dict[str, list[Any]]:
    """The arrays of a mask [G, Sq, Sk], pair by pair as the format is written down."""
    heads, queries, keys = keep.shape
    tile_q, tile_k = tile
    offsets, counts, columns, indices, bitmaps = [0], [], [], [], []
    for head in range(heads):
        for top in range(0, queries, tile_q):
            full, partial = [], []
            for left in range(0, keys, tile_k):
                words = [0] * (tile_q // 8 * (tile_k // 8))
                kept = inside = 0
                for q in range(top, min(top + tile_q, queries)):
                    for k in range(left, min(left + tile_k, keys)):
                        inside += 1
                        if keep[head, q, k]:
                            kept += 1
                            i, r = divmod(q - top, 8)
                            j, c = divmod(k - left, 8)
                            words[i * (tile_k // 8) + j] |= 1 << (r * 8 + c)
                if kept == inside:
                    full.append(left // tile_k)
                elif kept:
                    partial.append((left // tile_k, words))
            counts.append(len(full))
            columns += full + [column for column, _ in partial]
            indices += [-1] * len(full)
            for _, words in partial:
                if words not in bitmaps:
                    bitmaps.append(words)
                indices.append(bitmaps.index(words))
            offsets.append(len(columns))
    halves = [[half for word in words for half in split(word)] for words in bitmaps]
    return {
        "row_offsets": offsets,
        "full_counts": counts,
        "tile_columns": columns or [0],
        "tile_bitmaps": indices or [-1],
        "bitmaps": halves or [[0] * (tile_q // 8 * (tile_k // 8) * 2)],
    }


def split(word: int) -> list[int]:
    """The low and the high half of a word, as signed 32-bit numbers."""
    halves = [word & 0xFFFFFFFF, word >> 32]
    return [half - (1 << 32) if half >> 31 else half for half in halves]


def blocky(rng: np.random.Generator, shape: tuple[int, int, int], grain: int = 8) -> Mask:
    """A mask with empty, full and mixed regions, so that every kind of tile occurs."""
    heads, queries, keys = shape
    coarse = rng.integers(0, 3, (heads, -(-queries // grain), -(-keys // grain)))
    kinds = coarse.repeat(grain, axis=1).repeat(grain, axis=2)[:, :queries, :keys]
    noise = rng.random(shape) < 0.5
    mask: Mask = np.where(kinds == 2, noise, kinds == 1)
    return mask


def causal(queries: int, keys: int) -> Mask:
    """Keys up to the query's own position, aligned at the last query and key."""
    mask: Mask = np.arange(keys) <= np.arange(queries)[:, None] + (keys - queries)
    return mask


def band(size: int, width: int) -> Mask:
    index = np.arange(size)
    mask: Mask = abs(index - index[:, None]) <= width
    return mask


def lists(table: BlockTable) -> dict[str, list[Any]]:
    return {name: array.tolist() for name, array in table.arrays().items()}


masks = st.builds(
    lambda shape, grain, seed: blocky(np.random.default_rng(seed), shape, grain),
    st.tuples(st.integers(1, 3), st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from([1, 8, 32, 64]),
    st.integers(0, 2**32 - 1),
)
tiles = st.tuples(*[st.integers(1, 10).map(lambda eighths: 8 * eighths)] * 2)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout_is_exact(shape: tuple[int, int, int], tile: tuple[int, int]) -> None:
    keep = blocky(np.random.default_rng(7), shape)
    table = BlockTable.from_dense(keep, tile)
    assert lists(table) == expected_layout(keep, tile)
    assert list(table.arrays()) == list(ARRAY_NAMES)
    assert all(array.dtype == np.int32 for array in table.arrays().values())


@pytest.mark.parametrize(
    "keep",
    [causal(200, 200), causal(130, 260), causal(260, 130), band(192, 3), band(300, 100)],
    ids=["causal", "causal-long-keys", "causal-long-queries", "band", "wide-band"],
)
def test_layout_of_usual_masks(keep: Mask) -> None:
    table = BlockTable.from_dense(keep)
    assert lists(table) == expected_layout(keep[None], (64, 64))


def test_bits_of_one_pair() -> None:
    keep = np.zeros((128, 128), np.bool_)
    keep[64 + 8 * 2 + 3, 8 * 5 + 7] = True
    table = BlockTable.from_dense(keep)
    assert table.row_offsets.tolist() == [0, 0, 1]
    assert (table.tile_columns.tolist(), table.tile_bitmaps.tolist()) == ([0], [0])
    word, bit = 2 * 8 + 5, 3 * 8 + 7
    assert np.flatnonzero(table.bitmaps[0]).tolist() == [2 * word]
    assert int(table.bitmaps[0, 2 * word].view(np.uint32)) == 1 << bit


def test_a_ragged_edge_tile_is_full_when_all_its_pairs_are_kept() -> None:
    keep = np.ones((70, 100), np.bool_)
    table = BlockTable.from_dense(keep)
    assert table.counts == TileCounts(full=4, partial=0, empty=0)
    assert table.kept_pairs == 7000
    keep[69, 99] = False
    assert BlockTable.from_dense(keep).counts == TileCounts(full=3, partial=1, empty=0)


@pytest.mark.parametrize("keep", [False, True])
def test_padding_entries_keep_arrays_from_being_empty(keep: bool) -> None:
    table = BlockTable.from_dense(np.full((2, 96, 64), keep), (32, 64))
    assert table.tile_count == (6 if keep else 0)
    assert table.tile_columns.tolist() == [0] * (6 if keep else 1)
    assert table.tile_bitmaps.tolist() == [-1] * (6 if keep else 1)
    assert table.bitmaps.tolist() == [[0] * 64]
    assert table.bitmap_count == 0
    assert table.token_density == table.tile_density == float(keep)


def test_equal_partial_tiles_share_a_bitmap() -> None:
    table = BlockTable.from_dense(np.stack([band(1024, 20)] * 4))
    assert table.counts.partial == 4 * (16 + 2 * 15)
    assert table.bitmap_count == len(table.bitmaps) == 3


def test_an_edge_tile_and_an_inner_tile_may_share_a_bitmap() -> None:
    keep = np.zeros((8, 20), np.bool_)
    keep[0, 0] = keep[0, 8] = keep[0, 16] = True
    table = BlockTable.from_dense(keep, (8, 8))
    assert table.tile_bitmaps.tolist() == [0, 0, 0]
    keep[:, 16:] = keep[:, :4] = True
    table = BlockTable.from_dense(keep, (8, 8))
    assert table.tile_columns.tolist() == [2, 0, 1]
    assert table.tile_bitmaps.tolist() == [-1, 0, 1]
    assert BlockTable.from_arrays(table.arrays(), table.shape, table.tile) == table


@given(masks, tiles, tiles)
@settings(max_examples=150, deadline=None)
def test_round_trips(keep: Mask, tile: tuple[int, int], other: tuple[int, int]) -> None:
    table = BlockTable.from_dense(keep, tile)
    assert (table.to_dense() == keep).all()
    again = BlockTable.from_arrays(table.arrays(), table.shape, table.tile)
    assert again == table
    assert hash(again) == hash(table)
    assert table.retile(other) == BlockTable.from_dense(keep, other)
    assert table.kept_pairs == np.count_nonzero(keep)
    assert sum(table.counts) == keep.shape[0] * -(-keep.shape[1] // tile[0]) * -(
        -keep.shape[2] // tile[1]
    )


@given(masks, tiles)
@settings(max_examples=30, deadline=None)
def test_layout_is_exact_on_random_masks(keep: Mask, tile: tuple[int, int]) -> None:
    keep = keep[:, :70, :70]
    assert lists(BlockTable.from_dense(keep, tile)) == expected_layout(keep, tile)


def test_strips_join_seamlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = blocky(np.random.default_rng(3), (2, 333, 150), 64)
    whole = BlockTable.from_dense(keep, (32, 32))
    monkeypatch.setattr("stof_onnx.ir.tile_grid._STRIP_PAIRS", 1)
    assert BlockTable.from_dense(keep, (32, 32)) == whole
    assert (whole.to_dense() == keep).all()
    assert whole.retile((40, 16)) == BlockTable.from_dense(keep, (40, 16))


def test_any_strides_and_leading_dims_are_read() -> None:
    keep = blocky(np.random.default_rng(5), (3, 70, 90))
    table = BlockTable.from_dense(keep)
    assert BlockTable.from_dense(np.asfortranarray(keep)) == table
    assert BlockTable.from_dense(keep[None]) == table
    flat = BlockTable.from_dense(keep[0, ::-1, ::2])
    assert (flat.to_dense()[0] == keep[0, ::-1, ::2]).all()
    padding = np.broadcast_to(keep[0, :1], (70, 90))
    assert (BlockTable.from_dense(padding).to_dense()[0] == padding).all()


def test_equality_is_by_content() -> None:
    keep = band(130, 9)
    table = BlockTable.from_dense(keep)
    changed = keep.copy()
    changed[129, 0] = True
    different = [
        BlockTable.from_dense(changed),
        BlockTable.from_dense(keep, (64, 32)),
        BlockTable.from_dense(np.stack([keep, keep])),
        BlockTable.from_dense(np.zeros((130, 130), np.bool_)),
        BlockTable.from_dense(np.zeros((130, 129), np.bool_)),
    ]
    assert len({table, *different, BlockTable.from_dense(keep.copy())}) == 1 + len(different)
    assert table != "table"


def test_the_digest_does_not_change_between_versions() -> None:
    digest = BlockTable.from_dense(band(130, 9)).digest
    assert digest == "0cdfb0ddd42eccef8a6544689ba50ae64a443b92e951d5c5b82f18f3d8aa98b0"


def test_arrays_cannot_be_written_to() -> None:
    table = BlockTable.from_dense(band(130, 9))
    given_arrays = {name: array.copy() for name, array in table.arrays().items()}
    again = BlockTable.from_arrays(given_arrays, table.shape, table.tile)
    given_arrays["tile_columns"][:] = 99
    assert again == table
    for array in (*table.arrays().values(), *again.arrays().values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5


def test_summary_is_json() -> None:
    table = BlockTable.from_dense(causal(128, 128))
    summary = table.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["tiles"] == {"full": 1, "partial": 2, "empty": 1}
    assert summary["bitmaps"] == 1
    assert summary["token_density"] == (128 * 129 / 2) / 128**2
    assert summary["tile_density"] == 0.75
    assert summary["nbytes"] == 4 * (3 + 2 + 3 + 3 + 128)
    assert repr(table) == (
        "BlockTable(1x128x128, tile 64x64: 1 full, 2 partial, 1 empty tiles, 1 bitmaps)"
    )


@pytest.mark.parametrize(
    ("keep", "tile", "message"),
    [
        (np.ones((8, 8), np.uint8), (64, 64), "dtype uint8; wanted bool"),
        (np.ones(8, np.bool_), (64, 64), r"mask of shape \[8\]; wanted \[Sq, Sk\]"),
        (np.ones((2, 3, 8, 8), np.bool_), (64, 64), r"mask of shape \[2, 3, 8, 8\]"),
        (np.ones((0, 8), np.bool_), (64, 64), r"\[1, 0, 8\]; wanted dimensions from 1"),
        (np.ones((8, 8), np.bool_), (60, 64), "tile 60x64; wanted positive multiples of 8"),
        (np.ones((8, 8), np.bool_), (64, 0), "tile 64x0; wanted positive"),
        (np.ones((8, 8), np.bool_), (64,), r"wanted \(tile_q, tile_k\)"),
        (np.ones((8, 8), np.bool_), (64.0, 64), r"wanted \(tile_q, tile_k\)"),
    ],
)
def test_bad_masks_and_tiles_are_refused(keep: Any, tile: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockTable.from_dense(keep, tile)


# A table with a full and two partial tiles in row 0, nothing in row 1, one partial tile in
# row 2; keys 20 to 23 lie beyond the edge.
def sample() -> BlockTable:
    keep = np.zeros((24, 20), np.bool_)
    keep[:8, 8:16] = keep[0, 0] = keep[1, 16] = keep[16, 16] = True
    return BlockTable.from_dense(keep, (8, 8))


def put(name: str, index: Any, value: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][index] = value

    return change


def replace(name: str, value: npt.NDArray[Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = value

    return change


def int32(*values: Any) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


def test_the_sample_is_what_the_malformed_cases_change() -> None:
    assert lists(sample()) == {
        "row_offsets": [0, 3, 3, 4],
        "full_counts": [1, 0, 0],
        "tile_columns": [1, 0, 2, 2],
        "tile_bitmaps": [-1, 0, 1, 0],
        "bitmaps": [[1, 0], [256, 0]],
    }


MALFORMED: list[tuple[str, Callable[[Arrays], Any], str]] = [
    ("missing", lambda arrays: arrays.pop("bitmaps"), "wanted row_offsets, full_counts"),
    ("extra", replace("more", int32(0)), "arrays row_offsets, .*, more; wanted"),
    ("int64", replace("full_counts", np.array([1, 0, 0])), "full_counts is of dtype int64"),
    ("bool", replace("bitmaps", np.ones((2, 2), np.bool_)), "bitmaps is of dtype bool"),
    ("rank", replace("row_offsets", int32([0, 3, 3, 4])), r"shape \[1, 4\]; wanted \[4\]"),
    ("scalar", replace("tile_columns", np.array(1, np.int32)), r"tile_columns has shape \[\]"),
    ("rows", replace("row_offsets", int32(0, 3, 4)), r"row_offsets has shape \[3\]; wanted"),
    ("counts", replace("full_counts", int32(1, 0)), r"full_counts has shape \[2\]"),
    ("no entry", replace("tile_columns", int32()), r"shape \[0\]; wanted \[1 or more\]"),
    ("no bitmap", replace("bitmaps", np.zeros((0, 2), np.int32)), r"bitmaps has shape \[0, 2\]"),
    ("words", replace("bitmaps", np.ones((2, 3), np.int32)), r"wanted \[1 or more, 2\]"),
    ("start", put("row_offsets", 0, 1), "row_offsets starts at 1; wanted 0"),
    ("falling", put("row_offsets", 2, 2), "row 1 has -1 tiles; wanted 0 to 3"),
    ("too many", put("row_offsets", slice(1, 4), 4), "row 0 has 4 tiles; wanted 0 to 3"),
    ("wraps", put("row_offsets", 1, -(2**31)), "row 0 has -2147483648 tiles"),
    ("short", replace("tile_columns", int32(1, 0, 2)), "tile_columns has 3 entries; wanted 4"),
    ("long", replace("tile_bitmaps", int32(-1, 0, 1, 0, 0)), "has 5 entries; wanted 4"),
    ("full > row", put("full_counts", 2, 2), "row 2 has 2 full tiles; wanted 0 to 1"),
    ("full < 0", put("full_counts", 1, -1), "row 1 has -1 full tiles; wanted 0 to 0"),
    ("column < 0", put("tile_columns", 1, -1), r"tile_columns\[1\] is -1; wanted 0 to 2"),
    ("column > Rk", put("tile_columns", 3, 3), r"tile_columns\[3\] is 3; wanted 0 to 2"),
    ("order", replace("tile_columns", int32(1, 2, 0, 2)), r"\[2\] is 0 after 2; wanted asc"),
    ("repeated", replace("tile_columns", int32(1, 0, 0, 2)), r"\[2\] is 0 after 0; wanted asc"),
    ("both", replace("tile_columns", int32(1, 1, 2, 2)), "both as full and as partial"),
    ("index", put("tile_bitmaps", 2, 2), r"tile_bitmaps\[2\] is 2; wanted 0 to 1 for a partial"),
    ("index < 0", put("tile_bitmaps", 3, -1), r"\[3\] is -1; wanted 0 to 1 for a partial tile"),
    ("full index", put("tile_bitmaps", 0, 0), r"\[0\] is 0; wanted -1 for a full tile"),
    ("full -2", put("tile_bitmaps", 0, -2), r"\[0\] is -2; wanted -1 for a full tile"),
    ("first use", replace("tile_bitmaps", int32(-1, 1, 0, 1)), "order of first use"),
    ("unused", replace("tile_bitmaps", int32(-1, 0, 0, 0)), "1 bitmaps that no tile uses"),
    ("twice", put("bitmaps", 1, [1, 0]), "1 repeated bitmaps"),
    ("zeros", put("bitmaps", 1, 0), "a bitmap of zeros for a tile"),
    ("all ones", put("bitmaps", 0, -1), "a bitmap for a full tile; wanted -1"),
    ("beyond", put("bitmaps", (1, 0), 16), "a bitmap keeps pairs beyond the edge"),
    ("full edge", put("bitmaps", 1, 0x0F0F0F0F), "a bitmap for a full tile; wanted -1"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [case[1:] for case in MALFORMED],
    ids=[case[0] for case in MALFORMED],
)
def test_malformed_arrays_are_refused(change: Callable[[Arrays], Any], message: str) -> None:
    table = sample()
    arrays: Arrays = {name: array.copy() for name, array in table.arrays().items()}
    change(arrays)
    with pytest.raises(MalformedNodeError, match=message) as caught:
        BlockTable.from_arrays(arrays, table.shape, table.tile)
    assert "run `stof-onnx optimize` again" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("tile_columns", 0, 1), r"padding entry \(1, -1\); wanted column 0"),
        (put("tile_bitmaps", 0, 0), r"padding entry \(0, 0\)"),
        (put("bitmaps", (0, 1), 1), "1 bitmaps that no tile uses; wanted one of zeros"),
        (replace("bitmaps", np.zeros((2, 2), np.int32)), "2 bitmaps that no tile uses"),
        (replace("tile_columns", int32(0, 0)), "tile_columns has 2 entries; wanted 1"),
    ],
)
def test_malformed_padding_is_refused(change: Callable[[Arrays], Any], message: str) -> None:
    table = BlockTable.from_dense(np.zeros((8, 8), np.bool_), (8, 8))
    arrays: Arrays = {name: array.copy() for name, array in table.arrays().items()}
    change(arrays)
    with pytest.raises(MalformedNodeError, match=message):
        BlockTable.from_arrays(arrays, table.shape, table.tile)


@pytest.mark.parametrize(
    ("shape", "tile", "message"),
    [
        ((24, 20), (8, 8), r"wanted \[G, Sq, Sk\]"),
        ((1, 24, 2**31), (8, 8), "wanted dimensions from 1 to 2147483647"),
        ((1, -24, 20), (8, 8), "wanted dimensions from 1"),
        ((1, 24.0, 20), (8, 8), r"wanted \[G, Sq, Sk\]"),
        ((1, 24, 20), (8, 12), "wanted positive multiples of 8"),
        ((1, 24, 20), (8,), r"wanted \(tile_q, tile_k\)"),
        ((2, 24, 20), (8, 8), r"wanted \[7\]"),
        ((1, 24, 16), (8, 8), r"row 0 has 3 tiles; wanted 0 to 2"),
        ((1, 2**31 - 1, 20), (8, 8), "row_offsets has shape"),
        ((1, 24, 20), (2**31 - 8, 2**31 - 8), "row_offsets has shape"),
        ((1, 24, 20), (8, 2**31 - 8), "bitmaps has shape"),
    ],
)
def test_shapes_and_tiles_that_do_not_fit_are_refused(shape: Any, tile: Any, message: str) -> None:
    with pytest.raises(MalformedNodeError, match=message):
        BlockTable.from_arrays(sample().arrays(), shape, tile)


@pytest.mark.parametrize("head", [0, 1])
def test_the_edge_of_each_head_is_checked(head: int) -> None:
    keep = np.zeros((2, 12, 8), np.bool_)
    keep[head, 8, 0] = True
    table = BlockTable.from_dense(keep, (8, 8))
    bitmaps = table.bitmaps.copy()
    bitmaps[0, 1] = 1  # Query 12 of 12.
    with pytest.raises(MalformedNodeError, match="a bitmap keeps pairs beyond the edge"):
        BlockTable.from_arrays({**table.arrays(), "bitmaps": bitmaps}, table.shape, table.tile)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_arrays_are_refused_or_a_mask(data: st.DataObject) -> None:
    table = sample()
    arrays: Arrays = {name: array.copy() for name, array in table.arrays().items()}
    values = st.integers(-3, 6) | st.integers(-(2**31), 2**31 - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged = arrays[data.draw(st.sampled_from(ARRAY_NAMES))].reshape(-1)
        damaged[data.draw(st.integers(0, damaged.size - 1))] = data.draw(values)
    try:
        read = BlockTable.from_arrays(arrays, table.shape, table.tile)
    except MalformedNodeError:
        return
    assert BlockTable.from_dense(read.to_dense(), table.tile) == read


def test_the_documents_example_is_what_the_code_prints() -> None:
    path = Path(__file__).parents[2] / "docs" / "block-table.md"
    results = doctest.testfile(str(path), module_relative=False)
    assert (results.failed, results.attempted > 0) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bigbird", "random"])
def test_a_large_mask_needs_little_memory(kind: str) -> None:
    size = 16384
    rng = np.random.default_rng(11)
    keep = np.zeros((size, size), np.bool_)
    if kind == "random":
        for top in range(0, size, 1024):
            keep[top : top + 1024] = rng.random((1024, size), np.float32) < 0.5
    else:
        for top in range(0, size, 64):
            keep[top : top + 64, max(0, top - 64) : top + 128] = True
            for left in rng.integers(0, size // 64, 3) * 64:
                keep[top : top + 64, left : left + 64] = True
        keep[:128] = keep[:, :128] = True
    tracemalloc.start()
    try:
        table = BlockTable.from_dense(keep)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 << 20
    assert (table.to_dense()[0] == keep).all()
    assert table.counts.partial == (256 * 256 if kind == "random" else 0)
