"""Structure of constant masks: the parameters that rebuild a table exactly.

A table of 16384 x 16384 is read a few times, in stripes; what a family would hold is compared
with all of it, so that a name is never a guess. Rows and columns are numbered as in the table;
d is the row minus the column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.mask.constant_unions import Structure, fixed_stride, window_and_globals
from stof_onnx.ir.mask.families.family import Parameters

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]

_STRIPE_PAIRS = 1 << 22
# Blocks smaller than this are no structure: every mask has blocks of one pair.
_SMALLEST_BLOCK = 8


def find_structure(keep: BoolArray, alignment: str = "start") -> Structure | None:
    """The family of a constant mask.

    Args:
        keep: bool [G, Sq, Sk].
        alignment: of the table's rows: "start" if row i is query i, "end" if it is query
            i - (Sk - Sq) of the program that reads the table.

    Returns:
        Name and parameters; None for a mask without structure, or with another one in each
        head. Only the random blocks of "bigbird" may differ from head to head.
    """
    first = _structure(keep[0], alignment)
    if first is None or all((keep[0] == other).all() for other in keep[1:]):
        return first
    found = [first, *(_structure(head, alignment) for head in keep[1:])]
    if any(other is None or "random_share" not in other.parameters for other in found):
        return None
    shares = [float(other.parameters["random_share"]) for other in found if other is not None]
    mean = {"random_share": round(float(np.mean(shares)), 4)}
    same = Structure(first.name, {**first.parameters, **mean})
    for other in found:
        if other is None or Structure(other.name, {**other.parameters, **mean}) != same:
            return None
    return same


def _structure(keep: BoolArray, alignment: str) -> Structure | None:
    rows = _Rows.of(keep)
    if rows.count.sum() in (0, keep.size):
        return None
    found = _intervals(rows) if rows.are_runs else _along_diagonals(keep)
    if found is None and not rows.are_runs:
        found = fixed_stride(keep, rows.is_causal) or _in_blocks(keep)
        found = found or window_and_globals(keep, rows.is_causal)
    if found is None:
        return None
    parameters: Parameters = dict(found.parameters)
    if alignment == "end" and "alignment" in parameters:
        parameters["alignment"] = "end"
    return Structure(found.name, parameters)


# ---- rows that are one run of keys each -------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """First and last kept key of each row, and how many are kept; 0, -1 and 0 for none."""

    first: Int64Array
    last: Int64Array
    count: Int64Array
    keys: int

    @classmethod
    def of(cls, keep: BoolArray) -> _Rows:
        keys = keep.shape[1]
        parts = []
        for stripe in stripes(keep):
            count = np.count_nonzero(stripe, axis=1)
            first = stripe.argmax(axis=1)
            last = keys - 1 - np.ascontiguousarray(stripe[:, ::-1]).argmax(axis=1)
            parts.append((np.where(count, first, 0), np.where(count, last, -1), count))
        first, last, count = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls(first, last, count, keys)

    @property
    def are_runs(self) -> bool:
        return bool((self.count == self.last - self.first + 1).all())

    @property
    def is_causal(self) -> bool:
        return bool((self.last <= np.arange(len(self.last))).all())

    def equal(self, first: Int64Array, last: Int64Array) -> bool:
        """Whether the runs are these, cut to the keys there are."""
        first, last = np.maximum(first, 0), np.minimum(last, self.keys - 1)
        is_empty = last < first
        first, last = np.where(is_empty, 0, first), np.where(is_empty, -1, last)
        return bool((self.first == first).all() and (self.last == last).all())


def stripes(keep: BoolArray) -> Iterator[BoolArray]:
    """Rows of a table, a few megabytes at a time."""
    step = max(1, _STRIPE_PAIRS // keep.shape[1])
    for start in range(0, len(keep), step):
        yield keep[start : start + step]


def _intervals(rows: _Rows) -> Structure | None:
    row = np.arange(len(rows.first))
    offset = rows.keys - len(row)
    for alignment, moved in (("start", 0), *([("end", offset)] if offset else [])):
        band = _band(rows, row + moved)
        if band is not None and (moved == 0 or 0 in band or band[0] == band[1]):
            if alignment == "start" and offset and _is_better_at_end(rows, row, offset):
                continue
            return _name_band(*band, alignment)
    return _prefix(rows, row) or _chunks(rows, row)


def _is_better_at_end(rows: _Rows, row: Int64Array, offset: int) -> bool:
    """Whether a band is causal, or symmetric, when its last query sits at the last key only."""
    start, end = _band(rows, row), _band(rows, row + offset)
    if start is None or end is None or start[1] == 0 or start[0] == start[1]:
        return False
    return end[1] == 0 or end[0] == end[1]


def _band(rows: _Rows, position: Int64Array) -> tuple[int | None, int | None] | None:
    """(left, right) if the runs are position - left .. position + right."""
    starts = np.flatnonzero((rows.first > 0) & (rows.count > 0))
    stops = np.flatnonzero((rows.last < rows.keys - 1) & (rows.count > 0))
    left = int((position - rows.first)[starts[0]]) if len(starts) else None
    right = int((rows.last - position)[stops[0]]) if len(stops) else None
    first = np.zeros_like(position) if left is None else position - left
    last = np.full_like(position, rows.keys - 1) if right is None else position + right
    return (left, right) if rows.equal(first, last) else None


def _name_band(left: int | None, right: int | None, alignment: str) -> Structure:
    if left is None and right == 0:
        return Structure("causal", {"alignment": alignment})
    sides = {"window_left": left, "window_right": right}
    parameters: Parameters = {side: n for side, n in sides.items() if n is not None}
    name = "causal_sliding_window" if right == 0 else "sliding_window"
    return Structure(name, {**parameters, "alignment": alignment})


def _prefix(rows: _Rows, row: Int64Array) -> Structure | None:
    prefix = int(rows.last[0]) + 1
    if not rows.equal(np.zeros_like(row), np.maximum(row, prefix - 1)):
        return None
    return Structure("prefix", {"prefix": prefix, "alignment": "start"})


def _chunks(rows: _Rows, row: Int64Array) -> Structure | None:
    """Square blocks on the diagonal, causal inside or not; or windows that move in chunks."""
    starts = np.flatnonzero(np.diff(rows.first, prepend=-1))
    begin = starts[np.cumsum(np.diff(rows.first, prepend=-1) != 0) - 1]
    end = np.append(starts[1:], rows.keys)[np.searchsorted(starts, begin)] - 1
    for causal, last in (("", end), ("causal+", row)):
        if not rows.equal(begin, last) or len(starts) < 2:
            continue
        chunk = int(starts[1])
        if (begin == row // chunk * chunk).all():
            return Structure(f"{causal}chunked", {"chunk": chunk, "alignment": "start"})
        parameters: Parameters = {"blocks": len(starts)}
        return Structure(f"{causal}block_diagonal", parameters)
    changes = np.flatnonzero(np.diff(rows.first) | np.diff(rows.last)) + 1
    chunk = gcd(*changes.tolist(), *rows.first.tolist())
    if chunk < 2 or len(changes) == 0:
        return None
    ends = -(-(rows.last + 1) // chunk) - 1
    coarse = _Rows(
        rows.first[::chunk] // chunk,
        ends[::chunk],
        ends[::chunk] - rows.first[::chunk] // chunk + 1,
        -(-rows.keys // chunk),
    )
    band = _band(coarse, np.arange(len(coarse.first)))
    is_whole = ((rows.last + 1) % chunk == 0) | (rows.last == rows.keys - 1)
    if band is None or not is_whole.all():
        return None
    sides = {"chunks_left": band[0], "chunks_right": band[1]}
    found: Parameters = {side: n for side, n in sides.items() if n is not None}
    return Structure("chunked", {"chunk": chunk, **found, "alignment": "start"})


# ---- tables that are the same along diagonals --------------------------------------------------


def _along_diagonals(keep: BoolArray) -> Structure | None:
    """Dilated and strided masks: what is kept depends on d alone."""
    step = max(1, _STRIPE_PAIRS // keep.shape[1])
    for start in range(0, len(keep) - 1, step):
        stripe = keep[start : start + step + 1]
        if (stripe[1:, 1:] != stripe[:-1, :-1]).any():
            return None
    lowest = 1 - keep.shape[1]
    kept = np.flatnonzero(np.concatenate([keep[0, :0:-1], keep[:, 0]])) + lowest
    return _dilated(kept, lowest, len(keep) - 1) or _strided(kept, lowest, len(keep) - 1)


def _dilated(kept: Int64Array, lowest: int, highest: int) -> Structure | None:
    step = gcd(*kept.tolist())
    if step < 2 or (np.diff(kept) != step).any() or not kept[0] <= 0 <= kept[-1]:
        return None
    parameters: Parameters = {}
    if kept[-1] + step <= highest:
        parameters["window_left"] = int(kept[-1])
    if kept[0] - step >= lowest:
        parameters["window_right"] = -int(kept[0])
    return Structure("dilated", {**parameters, "alignment": "start", "dilation": step})


def _strided(kept: Int64Array, lowest: int, highest: int) -> Structure | None:
    runs = np.split(kept, np.flatnonzero(np.diff(kept) != 1) + 1)
    near = next((run for run in runs if run[0] <= 0 <= run[-1]), None)
    if near is None or len(runs) < 2:
        return None
    far = kept[(kept < near[0]) | (kept > near[-1])]
    stride = gcd(*far.tolist())
    is_causal = kept[0] == 0
    distances = np.arange(0 if is_causal else lowest, highest + 1)
    inside = (distances >= near[0]) & (distances <= near[-1])
    expected = distances[inside | (distances % max(1, stride) == 0)]
    if stride < 2 or len(expected) != len(kept) or (expected != kept).any():
        return None
    # A window that ends at a multiple of the stride is the one that ends before it.
    left, right = (n - int(n % stride == 0 < n) for n in (int(near[-1]), -int(near[0])))
    sides: Parameters = (
        {"window_left": left}
        if is_causal
        else {
            "window_left": left,
            "window_right": right,
        }
    )
    name = "causal+strided" if is_causal else "strided"
    return Structure(name, {**sides, "alignment": "start", "stride": stride})


# ---- tables made of blocks --------------------------------------------------------------------


def _in_blocks(keep: BoolArray) -> Structure | None:
    """The structure of a table of which every block is kept or not as a whole."""
    row_changes = np.zeros(len(keep), np.bool_)
    key_changes = np.zeros(keep.shape[1], np.bool_)
    start = 0
    for stripe in stripes(keep):
        key_changes[1:] |= (stripe[:, 1:] != stripe[:, :-1]).any(axis=0)
        with_before = keep[max(0, start - 1) : start + len(stripe)]
        row_changes[start + (start == 0) : start + len(stripe)] = (
            with_before[1:] != with_before[:-1]
        ).any(axis=1)
        start += len(stripe)
    block = gcd(*np.flatnonzero(row_changes).tolist(), *np.flatnonzero(key_changes).tolist())
    if block < _SMALLEST_BLOCK:
        return None
    coarse = keep[::block, ::block]
    is_causal = not np.triu(coarse, 1).any()
    return window_and_globals(np.ascontiguousarray(coarse), is_causal, block)
