"""The tiles of a mask program: which are empty, full or partial, and what the partial hold.

The dense mask is never made. Ranges of the keep expression decide most tiles; the others are
sorted into classes of equal patterns, and one tile of each class is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.errors import InputError
from stof_onnx.ir.expr import Expr, Op, evaluate, loads, variables
from stof_onnx.ir.expr.build import TRUE, and_, or_
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.intervals import Int64Array, Maybe, Range, evaluate_bounds, exactly
from stof_onnx.ir.mask.tile_classes import keys_of_tiles
from stof_onnx.ir.tile_grid import Int32Array, TileGrid, Words, count_bits, pack_tiles

_STRIP_TILES = 1 << 20
_BATCH_PAIRS = 1 << 18

_AXES = (("b", "B"), ("h", "H"), ("q", "Sq"), ("k", "Sk"))


class TileState(IntEnum):
    """How many of a tile's pairs are kept."""

    EMPTY = 0
    PARTIAL = 1
    FULL = 2


@dataclass(frozen=True)
class TileMap:
    """The tiles of one mask.

    Attributes:
        shape: (groups, Sq, Sk); there is one group for each batch and head, b-major, or one for
            all along an axis on which the mask doesn't depend.
        tile: (tile_q, tile_k), in query and key tokens.
        states: TileState as INT8 [groups, tile rows, tile columns].
        patterns: bitmaps uint64 [n, words], as a block table packs them.
        pattern_of: INT32 [groups, tile rows, tile columns]: index of a partial tile's pattern,
            -1 for other tiles.
    """

    shape: tuple[int, int, int]
    tile: tuple[int, int]
    states: npt.NDArray[np.int8]
    patterns: Words
    pattern_of: Int32Array

    def count(self, state: TileState) -> int:
        """Tiles in a state, over all groups."""
        return int(np.count_nonzero(self.states == state))

    @cached_property
    def kept_pairs(self) -> int:
        """Pairs that are kept, over all groups."""
        grid = TileGrid(self.shape, self.tile)
        height = np.full(grid.rows, self.tile[0], np.int64)
        height[-1] = grid.edge[0]
        width = np.full(grid.columns, self.tile[1], np.int64)
        width[-1] = grid.edge[1]
        _, row, column = np.nonzero(self.states == TileState.FULL)
        used = np.bincount(self.pattern_of[self.pattern_of >= 0], minlength=len(self.patterns))
        return int((height[row] * width[column]).sum()) + int(
            (used * count_bits(self.patterns)).sum()
        )

    @property
    def token_density(self) -> float:
        """Kept pairs over all pairs."""
        groups, queries, keys = self.shape
        return self.kept_pairs / (groups * queries * keys)

    @property
    def tile_density(self) -> float:
        """Share of the tiles that are not empty."""
        return 1 - self.count(TileState.EMPTY) / self.states.size

    @property
    def full_share(self) -> float:
        """Share of the tiles that are full."""
        return self.count(TileState.FULL) / self.states.size


def assume_kept(keep: Expr, known: Mapping[str, object]) -> Expr:
    """The mask with every comparison that loads an unknown operand taken to keep its pair."""
    if isinstance(keep, Op) and keep.name in ("and", "or"):
        args = (assume_kept(arg, known) for arg in keep.args)
        return and_(*args) if keep.name == "and" else or_(*args)
    return TRUE if any(load.source not in known for load in loads(keep)) else keep


def map_tiles(
    keep: Expr, sizes: Mapping[str, int], tile: tuple[int, int], sources: Mapping[str, Array]
) -> TileMap:
    """The tiles of a mask.

    Args:
        keep: bool expression over b, h, q, k and B, H, Sq, Sk.
        sizes: B, H, Sq and Sk.
        tile: (tile_q, tile_k), multiples of 8.
        sources: array of each operand; block tables in their dense form.

    Raises:
        InputError: sizes or a tile that can't be used, or an operand without an array.
        IndexError: if a load reaches outside its source.
    """
    for load in loads(keep):
        if load.source not in sources:
            raise InputError(f"no array for mask operand {load.source!r}")
    used = variables(keep)
    outer = tuple(sizes[size] if index in used else 1 for index, size in _AXES[:2])
    shape = (outer[0] * outer[1], sizes["Sq"], sizes["Sk"])
    grid = TileGrid.checked(shape, tile, InputError)
    states = np.empty((*outer, grid.rows, grid.columns), np.int8)
    pattern_of = np.full(states.shape, -1, np.int32)
    patterns = [np.zeros((0, grid.words), np.uint64)]
    count = 0
    step = max(1, _STRIP_TILES // (shape[0] * grid.columns))
    for first in range(0, grid.rows, step):
        rows = slice(first, min(first + step, grid.rows))
        strip = _Strip(keep, sources, grid.tile, _ranges(sizes, grid, outer, rows))
        found, index, words = strip.classify()
        states[:, :, rows] = found
        pattern_of[:, :, rows] = np.where(index >= 0, index + count, -1)
        patterns.append(words)
        count += len(words)
    return TileMap(
        grid.shape,
        grid.tile,
        states.reshape(-1, grid.rows, grid.columns),
        np.concatenate(patterns),
        pattern_of.reshape(-1, grid.rows, grid.columns),
    )


def _ranges(
    sizes: Mapping[str, int], grid: TileGrid, outer: tuple[int, ...], rows: slice
) -> dict[str, Range]:
    """What b, h, q, k and the dimensions run over, by tile: [B or 1, H or 1, rows, columns]."""
    starts = (
        np.arange(outer[0]),
        np.arange(outer[1]),
        np.arange(rows.start, rows.stop) * grid.tile[0],
        np.arange(grid.columns) * grid.tile[1],
    )
    ranges = {name: exactly(sizes[name]) for _, name in _AXES}
    extents = (1, 1, *grid.tile)
    for axis, ((index, size), start) in enumerate(zip(_AXES, starts, strict=True)):
        lo = start.reshape([-1 if i == axis else 1 for i in range(4)])
        ranges[index] = Range(lo, np.minimum(lo + extents[axis], sizes[size]) - 1)
    return ranges


@dataclass(frozen=True)
class _Strip:
    """Some rows of tiles of all groups; ``ranges`` are those of their tiles."""

    keep: Expr
    sources: Mapping[str, Array]
    tile: tuple[int, int]
    ranges: Mapping[str, Range]

    def classify(self) -> tuple[npt.NDArray[np.int8], Int64Array, Words]:
        """(states, index of each partial tile's pattern or -1, patterns)."""
        shape = np.broadcast_shapes(*(self.ranges[index].lo.shape for index, _ in _AXES))
        bounds = evaluate_bounds(self.keep, self.ranges, self.sources)
        known = cast(Maybe, bounds[self.keep])
        states = np.where(known.can_be_false, TileState.EMPTY, TileState.FULL).astype(np.int8)
        states = np.broadcast_to(states, shape).copy()
        index = np.full(shape, -1, np.int64)
        is_open = np.broadcast_to(known.can_be_false & known.can_be_true, shape)
        if not is_open.any():
            return states, index, np.zeros((0, self.tile[0] * self.tile[1] // 64), np.uint64)
        keys = keys_of_tiles(
            self.keep, bounds, {name: bound.lo for name, bound in self.ranges.items()}
        )
        extents = (self.ranges["q"], self.ranges["k"])
        columns = [
            np.broadcast_to(key, shape)[is_open] for key in (*(r.hi - r.lo for r in extents), *keys)
        ]
        first, class_of = _distinct_rows(np.stack(columns, axis=1))
        words = np.concatenate(list(self._evaluated(np.argwhere(is_open)[first])))
        kept = count_bits(words)
        area = (columns[0][first] + 1) * (columns[1][first] + 1)
        outcome = np.where(kept == 0, TileState.EMPTY, TileState.PARTIAL)
        outcome = np.where(kept == area, TileState.FULL, outcome)
        states[is_open] = outcome[class_of]
        is_partial = outcome == TileState.PARTIAL
        number = np.where(is_partial, np.cumsum(is_partial) - 1, -1)
        index[is_open] = number[class_of]
        return states, index, words[is_partial]

    def _evaluated(self, places: Int64Array) -> Iterator[Words]:
        """The bitmaps of tiles [n, 4], in batches."""
        tile_q, tile_k = self.tile
        step = max(1, _BATCH_PAIRS // (tile_q * tile_k))
        for start in range(0, len(places), step):
            batch = places[start : start + step]
            values: dict[str, Array | int] = {name: self.ranges[name].lo for _, name in _AXES}
            lasts = {}
            for axis, (name, _) in enumerate(_AXES):
                span = self.ranges[name]
                values[name] = span.lo.reshape(-1)[batch[:, axis]].reshape(-1, 1, 1)
                lasts[name] = span.hi.reshape(-1)[batch[:, axis]].reshape(-1, 1, 1)
            q = values["q"] + np.arange(tile_q).reshape(1, -1, 1)
            k = values["k"] + np.arange(tile_k).reshape(1, 1, -1)
            inside = (q <= lasts["q"]) & (k <= lasts["k"])
            values["q"], values["k"] = np.minimum(q, lasts["q"]), np.minimum(k, lasts["k"])
            keep = inside & evaluate(self.keep, values, self.sources)
            packed = pack_tiles(keep.reshape(-1, tile_k), self.tile)
            yield packed.reshape(len(batch), -1)


def _distinct_rows(rows: Int64Array) -> tuple[Int64Array, Int64Array]:
    """(a row of each distinct kind, the kind of each row)."""
    varying = rows[:, (rows != rows[0]).any(axis=0)]
    if varying.shape[1] == 0:
        return np.zeros(1, np.int64), np.zeros(len(rows), np.int64)
    order = np.lexsort(varying.T)
    ordered = varying[order]
    starts = np.ones(len(rows), np.bool_)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    kind = np.empty(len(rows), np.int64)
    kind[order] = np.cumsum(starts) - 1
    return order[starts], kind
