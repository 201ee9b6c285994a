"""Constant masks that are a union of a window with pairs that reach further."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.mask.families.family import Parameters
from stof_onnx.ir.mask.families.longformer import name_globals
from stof_onnx.ir.tile_grid import pack_tiles

BoolArray = npt.NDArray[np.bool_]

_STRIPE_ROWS = 256
_RANDOM_BLOCKS = (128, 64, 32, 16)
# BigBird's random blocks are few; a mask most of which is further blocks is another one.
_LARGEST_SHARE = 0.25
_MOST_NAMED = 8


@dataclass(frozen=True)
class Structure:
    """A family and the parameters that rebuild the table."""

    name: str
    parameters: Parameters


def fixed_stride(keep: BoolArray, is_causal: bool) -> Structure | None:
    """The own chunk, or the last keys of every chunk (Sparse Transformer's fixed pattern)."""
    queries, keys = keep.shape
    last = np.flatnonzero(keep[-1])
    breaks = np.flatnonzero(np.diff(last) != 1)
    if len(breaks) == 0:
        return None
    stride, count = int(last[breaks[0]]) + 1, int(breaks[0]) + 1
    if stride < 2 or queries < 2 * stride:
        return None
    key = np.arange(keys, dtype=np.int32)
    is_summary = key % stride >= stride - count
    for start in range(0, queries, _STRIPE_ROWS):
        row = np.arange(start, min(start + _STRIPE_ROWS, queries), dtype=np.int32)[:, None]
        expected = (row // stride == key // stride) | is_summary
        if is_causal:
            expected &= key <= row
        if (expected != keep[start : start + _STRIPE_ROWS]).any():
            return None
    parameters: Parameters = {
        "chunk": stride,
        "alignment": "start",
        "stride": stride,
        "stride_keys": count,
    }
    return Structure("causal+strided" if is_causal else "strided", parameters)


def window_and_globals(keep: BoolArray, is_causal: bool, block: int = 1) -> Structure | None:
    """Longformer: a window and global rows and columns; BigBird: and further blocks.

    Args:
        keep: bool [Sq, Sk], not causal if ``is_causal`` is false.
        is_causal: whether no row keeps a column after its own.
        block: tokens of a row and column.
    """
    is_row, is_column = _full_lines(keep, is_causal)
    window = _window(keep, is_row, is_column, is_causal)
    if window is None:
        return None
    left, right = window
    is_column = is_column & ~_seen(len(is_column), right, left, np.zeros_like(is_row), is_causal)
    is_row = is_row & ~_seen(len(is_row), left, right, is_column, is_causal)
    if not (is_row.any() or is_column.any()):
        return None
    further = _Further.of(keep, _Union(left, right, is_row, is_column, is_causal))
    parameters: Parameters = {"chunk": block} if block > 1 else {}
    unit = "window" if block == 1 else "chunks"
    parameters[f"{unit}_left"] = left
    if not is_causal:
        parameters[f"{unit}_right"] = right
    parameters["alignment"] = "start"
    parameters.update(_globals(is_row, is_column, block))
    name = "longformer"
    if further.count:
        size = block if block > 1 else further.block
        share = further.count / keep.size
        if size is None or share > _LARGEST_SHARE:
            return None
        name = "bigbird"
        parameters.update(block_size=size, random_share=round(share, 4))
    return Structure(f"causal+{name}" if is_causal else name, name_globals(parameters))


def _globals(is_row: BoolArray, is_column: BoolArray, block: int) -> Parameters:
    parameters: Parameters = {}
    for key, lines in (("global_keys", is_column), ("global_queries", is_row)):
        count = int(np.count_nonzero(lines))
        if not count:
            continue
        parameters[key] = count * block
        if not lines[:count].all():
            at = (np.flatnonzero(lines) * block).tolist()
            text = ", ".join(map(str, at[:_MOST_NAMED]))
            parameters["global_positions"] = text + (", ..." if len(at) > _MOST_NAMED else "")
    return parameters


def _seen(lines: int, before: int, after: int, is_full: BoolArray, is_causal: bool) -> BoolArray:
    """Which lines are full because of a window and of the full lines across them.

    Args:
        lines: how many there are.
        before: how far the window of line i reaches to lower places than i.
        after: how far it reaches to higher ones.
        is_full: of each place across, whether it is a full line.
        is_causal: whether the side on which the window ends at i has no pairs beyond.
    """
    places = len(is_full)
    start = np.clip(np.arange(lines) - before, 0, places)
    stop = np.clip(np.arange(lines) + after + 1, 0, places)
    count = np.concatenate([[0], np.cumsum(is_full)])
    is_seen = np.ones(lines, np.bool_)
    if not is_causal or before:
        is_seen &= count[start] == start
    if not is_causal or after:
        is_seen &= count[-1] - count[stop] == places - stop
    return is_seen


def _full_lines(keep: BoolArray, is_causal: bool) -> tuple[BoolArray, BoolArray]:
    """Rows, and columns, that keep all they could."""
    queries, keys = keep.shape
    rows = np.empty(queries, np.int64)
    columns = np.zeros(keys, np.int64)
    for start in range(0, queries, _STRIPE_ROWS):
        stripe = keep[start : start + _STRIPE_ROWS]
        rows[start : start + _STRIPE_ROWS] = np.count_nonzero(stripe, axis=1)
        columns += stripe.view(np.uint8).sum(axis=0, dtype=np.uint16)
    if not is_causal:
        return rows == keys, columns == queries
    return rows == np.minimum(np.arange(queries) + 1, keys), columns == np.maximum(
        queries - np.arange(keys), 0
    )


def _window(
    keep: BoolArray, is_row: BoolArray, is_column: BoolArray, is_causal: bool
) -> tuple[int, int] | None:
    """The widest band around d = 0 that is kept wherever no global line passes."""
    queries, keys = keep.shape
    # always[d + keys - 1]: whether every pair at that distance is kept.
    always = np.ones(queries + keys - 1, np.bool_)
    for start in range(0, queries, _STRIPE_ROWS):
        rows = min(_STRIPE_ROWS, queries - start)
        padded = np.ones((rows, keys + 2 * (rows - 1)), np.bool_)
        stripe = padded[:, rows - 1 : rows - 1 + keys]
        stripe[:] = keep[start : start + rows] | is_column
        stripe[is_row[start : start + rows]] = True
        # Row i moved left by i: a diagonal of the table becomes a column of the view.
        row_stride, stride = padded.strides
        skewed = np.lib.stride_tricks.as_strided(
            padded, (rows, keys + rows - 1), (row_stride + stride, stride), writeable=False
        )
        # Column c of the view is at d = start + rows - 1 - c.
        kept = np.logical_and.reduce(skewed, axis=0)
        always[start : start + rows + keys - 1] &= kept[::-1]
        if not always[keys - 1]:
            return None
    left = int(np.argmin(np.append(always[keys - 1 :], False))) - 1
    right = int(np.argmin(np.append(always[keys - 1 :: -1], False))) - 1
    return left, 0 if is_causal else right


@dataclass(frozen=True)
class _Union:
    """A window with global lines."""

    left: int
    right: int
    is_row: BoolArray
    is_column: BoolArray
    is_causal: bool

    def rows(self, start: int, stop: int) -> tuple[BoolArray, BoolArray]:
        """(pairs that are kept, pairs that may be kept) of some rows."""
        row = np.arange(start, stop, dtype=np.int32)[:, None]
        key = np.arange(len(self.is_column), dtype=np.int32)
        possible = key <= row if self.is_causal else np.ones((1, len(key)), np.bool_)
        kept = (key >= row - self.left) & (key <= row + self.right)
        kept |= self.is_column
        kept[self.is_row[start:stop]] = True
        return kept & possible, possible


@dataclass(frozen=True)
class _Further:
    """Kept pairs outside a union: how many, and the largest blocks they fill."""

    count: int
    block: int | None

    @classmethod
    def of(cls, keep: BoolArray, union: _Union) -> _Further:
        queries = len(keep)
        count = 0
        fits = dict.fromkeys(_RANDOM_BLOCKS, True)
        for start in range(0, queries, _STRIPE_ROWS):
            stripe = keep[start : start + _STRIPE_ROWS]
            expected, possible = union.rows(start, start + len(stripe))
            further = stripe & ~expected
            found = int(np.count_nonzero(further))
            if not found:
                continue
            count += found
            missing = possible & ~stripe
            for block in _RANDOM_BLOCKS:
                tile = (block, block)
                touched = pack_tiles(further, tile).any(axis=2)
                fits[block] &= not (touched & pack_tiles(missing, tile).any(axis=2)).any()
        return cls(count, next((block for block, fit in fits.items() if fit), None))
