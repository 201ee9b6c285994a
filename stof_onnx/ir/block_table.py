"""The block table: how a constant attention mask is stored for the kernels.

A mask keep[Sq, Sk] is cut into tiles of tile_q x tile_k pairs. Level one lists, for
each row of tiles, the key tiles that are full and those that are partial; empty tiles
are not listed. Level two holds one bitmap for each *distinct* partial tile, as sub-tiles
of 8x8 pairs packed into 64-bit words. Row-wise and block-wise kernels read the same
format at different tile sizes (STOF, arXiv 2506.06095, unified storage format).

The layout is exact because CUDA kernels read it, and every array is INT32 because a
TensorRT plugin tensor can be neither BOOL, UINT8 nor INT64 here. With G heads (or 1 for
all heads), Rq = ceil(Sq / tile_q), Rk = ceil(Sk / tile_k) and row = g * Rq + query tile:

    row_offsets   [G * Rq + 1]   entries of a row: row_offsets[row] .. row_offsets[row + 1] - 1
    full_counts   [G * Rq]       the first full_counts[row] entries of a row are full tiles
    tile_columns  [max(nnz, 1)]  key tile; ascending in the full part, then in the partial part
    tile_bitmaps  [max(nnz, 1)]  -1 for a full tile, else an index into bitmaps
    bitmaps       [max(n, 1), (tile_q / 8) * (tile_k / 8) * 2]
                                 sub-tile (i, j) is word i * (tile_k / 8) + j, stored as two
                                 INT32, low half first; bit r * 8 + c of the word is
                                 keep(8 i + r, 8 j + c), counted from the tile's corner

The ragged edge: bits of pairs beyond Sq or Sk are 0, and a tile there is full if every pair
*inside* the mask is kept, so a kernel checks bounds at the edge even in full tiles.

Padding entries: TensorRT dislikes tensors without elements, so a table without tiles
stores one entry (column 0, bitmap -1) that row_offsets never reaches, and a table without
partial tiles stores one bitmap of zeros that no entry refers to.

Canonical: bitmaps are distinct and ordered by first use, so a mask has exactly one table
at a tile size, and equal masks give equal arrays. A worked example is in
``docs/block-table.md``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.errors import InputError, MalformedNodeError
from stof_onnx.ir.tile_grid import (
    INT32_MAX,
    REBUILD,
    BoolArray,
    Int32Array,
    TileGrid,
    Words,
    as_words,
    ceil_div,
    pack_tiles,
    unpack_tiles,
)

TABLE_FORMAT = 1
"""Version of the layout; part of the digest."""

DEFAULT_TILE = (64, 64)

ARRAY_NAMES = ("row_offsets", "full_counts", "tile_columns", "tile_bitmaps", "bitmaps")
"""Names of the arrays, in the order in which a node takes them as inputs."""

_POPCOUNT = np.array([bin(octet).count("1") for octet in range(256)], np.uint8)

_Int64Array = npt.NDArray[np.int64]
_DenseRows = Callable[[int, int, int], BoolArray]


class TileCounts(NamedTuple):
    """How many tiles of a table are full, partial and empty, over all heads."""

    full: int
    partial: int
    empty: int


@dataclass(frozen=True, eq=False, repr=False)
class BlockTable:
    """A constant mask at one tile size, in the layout of the module's docstring.

    Build one with :meth:`from_dense` or, checked, with :meth:`from_arrays`; the plain
    constructor checks nothing. Tables are equal when their contents are.

    Attributes:
        row_offsets: INT32 [G * Rq + 1].
        full_counts: INT32 [G * Rq].
        tile_columns: INT32 [max(nnz, 1)].
        tile_bitmaps: INT32 [max(nnz, 1)].
        bitmaps: INT32 [max(n_distinct, 1), tile_q / 8 * tile_k / 8 * 2].
        shape: (G, Sq, Sk).
        tile: (tile_q, tile_k), in query and key tokens.
    """

    row_offsets: Int32Array
    full_counts: Int32Array
    tile_columns: Int32Array
    tile_bitmaps: Int32Array
    bitmaps: Int32Array
    shape: tuple[int, int, int]
    tile: tuple[int, int]

    @classmethod
    def from_dense(cls, keep: BoolArray, tile: tuple[int, int] = DEFAULT_TILE) -> BlockTable:
        """Builds the table of a boolean mask.

        Args:
            keep: bool [Sq, Sk], [G, Sq, Sk] or [1, G, Sq, Sk]; true where the pair takes
                part in attention. Any strides: a broadcast view is not materialised.
            tile: (tile_q, tile_k), multiples of 8.

        Raises:
            InputError: another dtype or rank, no element, or a tile that can't be used.
        """
        if keep.dtype != np.bool_:
            raise InputError(f"a mask of dtype {keep.dtype}", "bool (true where a pair is kept)")
        given = keep.shape
        if keep.ndim == 4 and given[0] == 1:
            keep = keep[0]
        if keep.ndim == 2:
            keep = keep[None]
        if keep.ndim != 3:
            wanted = "[Sq, Sk], [heads, Sq, Sk] or [1, heads, Sq, Sk]"
            raise InputError(f"a mask of shape {list(given)}", wanted)
        grid = TileGrid.checked(keep.shape, tile, InputError)
        return _build(grid, lambda head, start, stop: keep[head, start:stop])

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, npt.NDArray[Any]],
        shape: Sequence[int],
        tile: Sequence[int],
    ) -> BlockTable:
        """Rebuilds a table from its stored arrays, checking every rule of the layout.

        Args:
            arrays: the arrays of :meth:`arrays`, by name.
            shape: (G, Sq, Sk).
            tile: (tile_q, tile_k).

        Raises:
            MalformedNodeError: the arrays are not the table of any mask of that shape.
        """
        grid = TileGrid.checked(shape, tile, MalformedNodeError)
        _check_forms(arrays, grid)
        table = cls(
            **{name: _frozen(arrays[name]) for name in ARRAY_NAMES},
            shape=grid.shape,
            tile=grid.tile,
        )
        _check_rows(table, grid)
        _check_entries(table, grid)
        _check_bitmaps(table, grid)
        return table

    def arrays(self) -> dict[str, Int32Array]:
        """The arrays by name, as they are stored as initializers, in ARRAY_NAMES' order."""
        return {name: getattr(self, name) for name in ARRAY_NAMES}

    def to_dense(self) -> BoolArray:
        """The mask as bool [G, Sq, Sk]."""
        keep = np.empty(self.shape, np.bool_)
        for head, start, stop in TileGrid(self.shape, self.tile).strips():
            keep[head, start:stop] = self._dense_rows(head, start, stop)
        return keep

    def retile(self, tile: tuple[int, int]) -> BlockTable:
        """The table of the same mask at another tile size; the dense mask is never whole.

        Raises:
            InputError: a tile that isn't two positive multiples of 8.
        """
        return _build(TileGrid.checked(self.shape, tile, InputError), self._dense_rows)

    @property
    def tile_count(self) -> int:
        """Stored tiles (nnz), without the padding entry."""
        return int(self.row_offsets[-1])

    @property
    def bitmap_count(self) -> int:
        """Distinct partial tiles, without the padding bitmap."""
        return int(self.tile_bitmaps.max()) + 1

    @property
    def counts(self) -> TileCounts:
        """Full, partial and empty tiles over all heads."""
        full = int(self.full_counts.sum(dtype=np.int64))
        total = (len(self.row_offsets) - 1) * TileGrid(self.shape, self.tile).columns
        return TileCounts(full, self.tile_count - full, total - self.tile_count)

    @cached_property
    def kept_pairs(self) -> int:
        """Query-key pairs that are kept, over all heads."""
        grid = TileGrid(self.shape, self.tile)
        rows, columns, indices = _entries(self)
        full = indices < 0
        height = np.full(grid.rows, self.tile[0], np.int64)
        height[-1] = grid.edge[0]
        width = np.full(grid.columns, self.tile[1], np.int64)
        width[-1] = grid.edge[1]
        in_full = height[rows[full] % grid.rows] * width[columns[full]]
        in_bitmap = _POPCOUNT[self.bitmaps.view(np.uint8)].sum(axis=1, dtype=np.int64)
        return int(in_full.sum()) + int(in_bitmap[indices[~full]].sum())

    @property
    def token_density(self) -> float:
        """Kept pairs over all pairs."""
        heads, queries, keys = self.shape
        return self.kept_pairs / (heads * queries * keys)

    @property
    def tile_density(self) -> float:
        """Stored tiles over all tiles: the part of the work that is not skipped."""
        return self.tile_count / sum(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, padding entries included."""
        return sum(array.nbytes for array in self.arrays().values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of layout version, shape, tile and arrays, in hexadecimal."""
        header = json.dumps([TABLE_FORMAT, self.shape, self.tile])
        content = hashlib.sha256(header.encode())
        for array in self.arrays().values():
            content.update(array.astype("<i4", copy=False).data)
        return content.hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether the tables have the same content."""
        return self.digest == other.digest if isinstance(other, BlockTable) else NotImplemented

    def __hash__(self) -> int:
        """A hash of the content."""
        return hash(self.digest)

    def __repr__(self) -> str:
        """Shape, tile and counts; never the arrays."""
        counts = self.counts
        return (
            f"BlockTable({'x'.join(map(str, self.shape))}, tile {self.tile[0]}x{self.tile[1]}: "
            f"{counts.full} full, {counts.partial} partial, {counts.empty} empty tiles, "
            f"{self.bitmap_count} bitmaps)"
        )

    def summary(self) -> dict[str, Any]:
        """What the table holds, as values that JSON can write."""
        return {
            "shape": list(self.shape),
            "tile": list(self.tile),
            "tiles": self.counts._asdict(),
            "bitmaps": self.bitmap_count,
            "token_density": self.token_density,
            "tile_density": self.tile_density,
            "nbytes": self.nbytes,
            "sha256": self.digest,
        }

    def _dense_rows(self, head: int, start: int, stop: int) -> BoolArray:
        """Query rows start..stop-1 of a head, as bool [stop - start, Sk]."""
        grid = TileGrid(self.shape, self.tile)
        tile_q = self.tile[0]
        first, last = start // tile_q, ceil_div(stop, tile_q)
        offsets = self.row_offsets[head * grid.rows + first : head * grid.rows + last + 1]
        stored = slice(int(offsets[0]), int(offsets[-1]))
        rows = np.repeat(np.arange(last - first), np.diff(offsets))
        indices = self.tile_bitmaps[stored]
        words = np.zeros((last - first, grid.columns, grid.words), np.uint64)
        # Full tiles set the padding's bits too: the cut to [stop, Sk] below drops them.
        words[rows, self.tile_columns[stored]] = np.where(
            indices[:, None] < 0, ~np.uint64(0), as_words(self.bitmaps)[np.maximum(indices, 0)]
        )
        dense = unpack_tiles(words, self.tile)
        return dense[start - first * tile_q : stop - first * tile_q, : self.shape[2]]


def _frozen(array: npt.NDArray[Any]) -> Int32Array:
    """The array as contiguous INT32 that nobody can write to."""
    kept = array if not array.flags.writeable and array.flags.c_contiguous else array.copy()
    kept.setflags(write=False)
    return kept


def _build(grid: TileGrid, dense_rows: _DenseRows) -> BlockTable:
    """Builds the table strip by strip; ``dense_rows(head, start, stop)`` gives the mask."""
    tile_q = grid.tile[0]
    inner, last = grid.full_row(False), grid.full_row(True)
    row_lengths: list[_Int64Array] = []
    full_counts: list[_Int64Array] = []
    columns: list[Int32Array] = []
    is_partial: list[BoolArray] = []
    bitmaps: list[Words] = []
    for head, start, stop in grid.strips():
        words = pack_tiles(dense_rows(head, start, stop), grid.tile)
        full = (words == inner).all(axis=2)
        if stop == grid.shape[1]:
            full[-1] = (words[-1] == last).all(axis=1)
        partial = words.any(axis=2) & ~full
        # [tile row, kind, tile column]: in C order this is the order of the entries.
        kinds = np.stack((full, partial), axis=1)
        _, kind, column = np.nonzero(kinds)
        row_lengths.append(np.count_nonzero(kinds.reshape(len(words), -1), axis=1))
        full_counts.append(np.count_nonzero(full, axis=1))
        columns.append(column.astype(np.int32))
        is_partial.append(kind == 1)
        bitmaps.append(words[partial])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(row_lengths))])
    if offsets[-1] > INT32_MAX:
        came = f"{offsets[-1]} tiles of {tile_q}x{grid.tile[1]} in one mask"
        raise InputError(came, f"at most {INT32_MAX}", "use larger tiles")
    partial_words = np.concatenate(bitmaps)
    bitmaps.clear()
    distinct, indices = _distinct(partial_words)
    tile_columns = np.zeros(max(1, offsets[-1]), np.int32)
    tile_columns[: offsets[-1]] = np.concatenate(columns)
    tile_bitmaps = np.full(len(tile_columns), -1, np.int32)
    tile_bitmaps[: offsets[-1]][np.concatenate(is_partial)] = indices
    arrays: dict[str, Int32Array] = {
        "row_offsets": offsets.astype(np.int32),
        "full_counts": np.concatenate(full_counts).astype(np.int32),
        "tile_columns": tile_columns,
        "tile_bitmaps": tile_bitmaps,
        "bitmaps": distinct.view("<i4").astype(np.int32, copy=False),
    }
    for array in arrays.values():
        array.setflags(write=False)
    return BlockTable(**arrays, shape=grid.shape, tile=grid.tile)


def _distinct(words: Words) -> tuple[Words, _Int64Array]:
    """Drops repeated bitmaps.

    Args:
        words: [partial tiles, words of a tile].

    Returns:
        The distinct bitmaps in order of first use (one of zeros if there is none), and
        for each tile the index of its bitmap.
    """
    count, width = words.shape
    if count == 0:
        return np.zeros((1, width), np.uint64), np.zeros(0, np.int64)
    keys = words[:, 0] if width == 1 else words.view(np.dtype((np.void, 8 * width)))[:, 0]
    order = np.argsort(keys, kind="stable")
    ordered = words[order]
    starts = np.ones(count, np.bool_)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    del ordered
    leaders = order[starts]  # The sort is stable: a group's first tile leads it.
    rank = np.empty(len(leaders), np.int64)
    rank[np.argsort(leaders)] = np.arange(len(leaders))
    indices = np.empty(count, np.int64)
    indices[order] = rank[np.cumsum(starts) - 1]
    return words[np.sort(leaders)], indices


def _entries(table: BlockTable) -> tuple[_Int64Array, Int32Array, Int32Array]:
    """Row, column and bitmap index of each stored tile, padding entry excluded."""
    rows = np.repeat(np.arange(len(table.full_counts)), np.diff(table.row_offsets))
    return rows, table.tile_columns[: len(rows)], table.tile_bitmaps[: len(rows)]


def _require(holds: bool | np.bool_, came: str, wanted: str) -> None:
    if not holds:
        raise MalformedNodeError(f"block table: {came}", wanted, REBUILD)


def _check_forms(arrays: Mapping[str, npt.NDArray[Any]], grid: TileGrid) -> None:
    """Names, dtypes and shapes."""
    _require(
        set(arrays) == set(ARRAY_NAMES),
        f"arrays {', '.join(map(str, arrays)) or 'none'}",
        ", ".join(ARRAY_NAMES),
    )
    rows = grid.shape[0] * grid.rows
    wanted: dict[str, tuple[int | None, ...]] = {
        "row_offsets": (rows + 1,),
        "full_counts": (rows,),
        "tile_columns": (None,),
        "tile_bitmaps": (None,),
        "bitmaps": (None, 2 * grid.words),
    }
    for name, dims in wanted.items():
        array = arrays[name]
        _require(array.dtype == np.int32, f"{name} is of dtype {array.dtype}", "int32")
        fits = array.ndim == len(dims) and all(
            have >= 1 if want is None else have == want
            for have, want in zip(array.shape, dims, strict=True)
        )
        text = ", ".join("1 or more" if dim is None else str(dim) for dim in dims)
        _require(fits, f"{name} has shape {list(array.shape)}", f"[{text}]")


def _check_rows(table: BlockTable, grid: TileGrid) -> None:
    """row_offsets and full_counts, and the lengths that follow from them."""
    offsets = table.row_offsets.astype(np.int64)
    _require(offsets[0] == 0, f"row_offsets starts at {offsets[0]}", "0")
    lengths = np.diff(offsets)
    row = int(np.argmax((lengths < 0) | (lengths > grid.columns)))
    _require(
        0 <= lengths[row] <= grid.columns,
        f"row {row} has {lengths[row]} tiles",
        f"0 to {grid.columns}",
    )
    for name in ("tile_columns", "tile_bitmaps"):
        have, want = len(getattr(table, name)), max(1, int(offsets[-1]))
        _require(have == want, f"{name} has {have} entries", f"{want}, as row_offsets says")
    full = table.full_counts
    row = int(np.argmax((full < 0) | (full > lengths)))
    _require(
        0 <= full[row] <= lengths[row],
        f"row {row} has {full[row]} full tiles",
        f"0 to {lengths[row]}, its tiles",
    )


def _check_entries(table: BlockTable, grid: TileGrid) -> None:
    """tile_columns and tile_bitmaps."""
    rows, columns, indices = _entries(table)
    if len(rows) == 0:
        padding = (int(table.tile_columns[0]), int(table.tile_bitmaps[0]))
        _require(padding == (0, -1), f"a padding entry {padding}", "column 0, bitmap -1")
        return
    bad = int(np.argmax((columns < 0) | (columns >= grid.columns)))
    _require(
        0 <= columns[bad] < grid.columns,
        f"tile_columns[{bad}] is {columns[bad]}",
        f"0 to {grid.columns - 1}",
    )
    is_partial = np.arange(len(rows)) - table.row_offsets[rows] >= table.full_counts[rows]
    # One number that must rise along all entries: row, then full before partial, then column.
    place = (2 * rows + is_partial) * grid.columns + columns
    bad = int(np.argmax(np.diff(place, prepend=-1) <= 0))
    _require(
        bad == 0, f"tile_columns[{bad}] is {columns[bad]} after {columns[bad - 1]}", "ascending"
    )
    tiles = np.sort(rows * grid.columns + columns)
    once = bool((tiles[1:] != tiles[:-1]).all())
    _require(once, "a tile is listed both as full and as partial", "each tile once")
    count = len(table.bitmaps)
    wrong = np.where(is_partial, (indices < 0) | (indices >= count), indices != -1)
    bad = int(np.argmax(wrong))
    want = f"0 to {count - 1} for a partial tile" if is_partial[bad] else "-1 for a full tile"
    _require(not wrong[bad], f"tile_bitmaps[{bad}] is {indices[bad]}", want)


def _check_bitmaps(table: BlockTable, grid: TileGrid) -> None:
    """That bitmaps are canonical, and none is empty, full or set beyond the edge."""
    rows, columns, indices = _entries(table)
    partial = indices >= 0
    rows, columns, used = rows[partial] % grid.rows, columns[partial], indices[partial]
    words = as_words(table.bitmaps)
    if len(used) == 0:
        padding = len(words) == 1 and not words.any()
        _require(padding, f"{len(words)} bitmaps that no tile uses", "one of zeros")
        return
    known = np.maximum.accumulate(np.concatenate([[-1], used[:-1]]))
    _require(bool((used <= known + 1).all()), "bitmaps out of order", "order of first use")
    unused = len(words) - 1 - int(used.max())
    _require(unused == 0, f"{unused} bitmaps that no tile uses", "none")
    repeated = len(words) - len(_distinct(words)[0])
    _require(repeated == 0, f"{repeated} repeated bitmaps", "each bitmap once")
    for last_row in (False, True):
        for last_column in (False, True):
            here = (rows == grid.rows - 1) == last_row
            here &= (columns == grid.columns - 1) == last_column
            needed = np.zeros(len(words), np.bool_)
            needed[used[here]] = True
            held = words[needed]
            full = grid.full_tile(last_row, last_column)
            inside = not (held & ~full).any()
            _require(inside, "a bitmap keeps pairs beyond the edge", "zeros there")
            _require(bool(held.any(axis=1).all()), "a bitmap of zeros for a tile", "no entry")
            mixed = bool((held != full).any(axis=1).all())
            _require(mixed, "a bitmap for a full tile", "-1 in tile_bitmaps")
