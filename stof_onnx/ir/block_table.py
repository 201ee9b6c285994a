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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.block_table_checks import check_forms, check_table
from stof_onnx.ir.errors import InputError, MalformedNodeError
from stof_onnx.ir.mask.program import MaskProgram
from stof_onnx.ir.mask.tiles import TileState, map_tiles
from stof_onnx.ir.tile_grid import (
    INT32_MAX,
    BoolArray,
    Int32Array,
    TileGrid,
    Words,
    as_words,
    ceil_div,
    count_bits,
    distinct_bitmaps,
    pack_tiles,
    unpack_tiles,
)

TABLE_FORMAT = 1
"""Version of the layout; part of the digest."""

DEFAULT_TILE = (64, 64)

ARRAY_NAMES = ("row_offsets", "full_counts", "tile_columns", "tile_bitmaps", "bitmaps")
"""Names of the arrays, in the order in which a node takes them as inputs."""

_Int64Array = npt.NDArray[np.int64]
_DenseRows = Callable[[int, int, int], BoolArray]
# Rows of tiles: which tiles are full, which partial, and the bitmaps of the partial ones.
_TileRows = tuple[BoolArray, BoolArray, Words]


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
        return _assemble(grid, _packed(grid, lambda head, start, stop: keep[head, start:stop]))

    @classmethod
    def from_program(
        cls,
        program: MaskProgram,
        sizes: Mapping[str, int],
        tile: tuple[int, int] = DEFAULT_TILE,
        sources: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> BlockTable:
        """Builds the table of a mask program without making the dense mask.

        Args:
            program: its ``keep`` alone is read.
            sizes: B, H, Sq and Sk.
            tile: (tile_q, tile_k), multiples of 8.
            sources: array of each operand; block tables in their dense form.

        Returns:
            The table of ``program.evaluate_keep(sizes, sources)``. It has one group for each
            batch and head, b-major; along an axis on which the mask doesn't depend, one for all.

        Raises:
            InputError: sizes or a tile that can't be used, or an operand without an array.
            IndexError: if a load reaches outside its array.
        """
        tiles = map_tiles(program.keep, sizes, tile, sources or {})

        def rows() -> Iterator[_TileRows]:
            for states, pattern_of in zip(tiles.states, tiles.pattern_of, strict=True):
                partial = states == TileState.PARTIAL
                yield states == TileState.FULL, partial, tiles.patterns[pattern_of[partial]]

        return _assemble(TileGrid(tiles.shape, tiles.tile), rows())

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
        check_forms(arrays, ARRAY_NAMES, grid)
        table = cls(
            **{name: _frozen(arrays[name]) for name in ARRAY_NAMES},
            shape=grid.shape,
            tile=grid.tile,
        )
        check_table(table, grid)
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
        grid = TileGrid.checked(self.shape, tile, InputError)
        return _assemble(grid, _packed(grid, self._dense_rows))

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
        rows, columns, indices = self.entries()
        full = indices < 0
        height = np.full(grid.rows, self.tile[0], np.int64)
        height[-1] = grid.edge[0]
        width = np.full(grid.columns, self.tile[1], np.int64)
        width[-1] = grid.edge[1]
        in_full = height[rows[full] % grid.rows] * width[columns[full]]
        in_bitmap = count_bits(as_words(self.bitmaps))
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

    def entries(self) -> tuple[_Int64Array, Int32Array, Int32Array]:
        """Row, column and bitmap index (-1: full) of each stored tile, in order."""
        rows = np.repeat(np.arange(len(self.full_counts)), np.diff(self.row_offsets))
        return rows, self.tile_columns[: len(rows)], self.tile_bitmaps[: len(rows)]

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


def _packed(grid: TileGrid, dense_rows: _DenseRows) -> Iterator[_TileRows]:
    """Rows of tiles strip by strip; ``dense_rows(head, start, stop)`` gives the mask."""
    inner, last = grid.full_row(False), grid.full_row(True)
    for head, start, stop in grid.strips():
        words = pack_tiles(dense_rows(head, start, stop), grid.tile)
        full = (words == inner).all(axis=2)
        if stop == grid.shape[1]:
            full[-1] = (words[-1] == last).all(axis=1)
        partial = words.any(axis=2) & ~full
        yield full, partial, words[partial]


def _assemble(grid: TileGrid, tile_rows: Iterable[_TileRows]) -> BlockTable:
    """The table of all rows of tiles, in order."""
    tile_q = grid.tile[0]
    row_lengths: list[_Int64Array] = []
    full_counts: list[_Int64Array] = []
    columns: list[Int32Array] = []
    is_partial: list[BoolArray] = []
    bitmaps: list[Words] = []
    for full, partial, words in tile_rows:
        # [tile row, kind, tile column]: in C order this is the order of the entries.
        kinds = np.stack((full, partial), axis=1)
        _, kind, column = np.nonzero(kinds)
        row_lengths.append(np.count_nonzero(kinds.reshape(len(full), -1), axis=1))
        full_counts.append(np.count_nonzero(full, axis=1))
        columns.append(column.astype(np.int32))
        is_partial.append(kind == 1)
        bitmaps.append(words)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(row_lengths))])
    if offsets[-1] > INT32_MAX:
        came = f"{offsets[-1]} tiles of {tile_q}x{grid.tile[1]} in one mask"
        raise InputError(came, f"at most {INT32_MAX}", "use larger tiles")
    partial_words = np.concatenate(bitmaps)
    bitmaps.clear()
    distinct, indices = distinct_bitmaps(partial_words)
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
