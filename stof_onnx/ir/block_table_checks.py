"""That stored arrays are the block table of some mask: every rule of the layout.

The layout is defined by :mod:`stof_onnx.ir.block_table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.tile_grid import REBUILD, TileGrid, as_words, distinct_bitmaps

if TYPE_CHECKING:
    from stof_onnx.ir.block_table import BlockTable


def check_table(table: BlockTable, grid: TileGrid) -> None:
    """Checks a table whose arrays have the right forms.

    Raises:
        MalformedNodeError: naming the first entry that breaks a rule.
    """
    _check_rows(table, grid)
    _check_entries(table, grid)
    _check_bitmaps(table, grid)


def _require(holds: bool | np.bool_, came: str, wanted: str) -> None:
    if not holds:
        raise MalformedNodeError(f"block table: {came}", wanted, REBUILD)


def check_forms(
    arrays: Mapping[str, npt.NDArray[Any]], names: tuple[str, ...], grid: TileGrid
) -> None:
    """Names, dtypes and shapes.

    Raises:
        MalformedNodeError: naming the first array that isn't as it has to be.
    """
    _require(
        set(arrays) == set(names),
        f"arrays {', '.join(map(str, arrays)) or 'none'}",
        ", ".join(names),
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
    rows, columns, indices = table.entries()
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
    rows, columns, indices = table.entries()
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
    repeated = len(words) - len(distinct_bitmaps(words)[0])
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
