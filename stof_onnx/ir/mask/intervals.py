"""What is known of a mask expression over a box of indices.

Each variable is given a range instead of a value; the answer for an integer is a range that
holds all its values in the box, for a boolean whether it can be false and whether it can be
true. Answers are conservative: what is said to be impossible is. The ranges are arrays, so that
one evaluation answers for many boxes, such as all tiles of a mask. The kernels' C++ counterpart
is ``plugins/kernels/mask_algebra.cuh``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.expr import Const, Expr, Load, Op, Var
from stof_onnx.ir.expr.node import children
from stof_onnx.ir.expr.ops import Array

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]

_LOWEST, _HIGHEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
# Beyond these a sum, or a product, of two numbers may not fit in 64 bits: nothing is known then.
_LARGEST_TERM = 2**62 - 1
_LARGEST_FACTOR = 2**31 - 1


class Range(NamedTuple):
    """Bounds of an integer, both inclusive; the whole of int64 where nothing is known."""

    lo: Int64Array
    hi: Int64Array

    @property
    def is_known(self) -> BoolArray:
        """Where the bounds are known, and small enough to be added."""
        return (self.lo >= -_LARGEST_TERM) & (self.hi <= _LARGEST_TERM)


class Maybe(NamedTuple):
    """What a boolean can be."""

    can_be_false: BoolArray
    can_be_true: BoolArray


Bounds = Range | Maybe


def evaluate_bounds(
    expr: Expr, ranges: Mapping[str, Range], sources: Mapping[str, Array]
) -> dict[Expr, Bounds]:
    """What is known of an expression and of all its sub-expressions.

    Args:
        expr: of kind bool or int.
        ranges: of each variable; arrays of one rank that broadcast against each other, one
            element for each box.
        sources: arrays of the operands; of others nothing is known.
    """
    memo: dict[Expr, Bounds] = {}
    _visit(expr, ranges, sources, memo)
    return memo


def _visit(
    node: Expr,
    ranges: Mapping[str, Range],
    sources: Mapping[str, Array],
    memo: dict[Expr, Bounds],
) -> Bounds:
    # Not a closure: it would be in a cycle with itself, and the arrays would stay for a while.
    if node not in memo:
        below = [_visit(part, ranges, sources, memo) for part in children(node)]
        if isinstance(node, Const):
            value = np.asarray(node.value)
            memo[node] = Maybe(~value, value) if node.kind == "bool" else exactly(value)
        elif isinstance(node, Var):
            memo[node] = ranges[node.name]
        elif isinstance(node, Load):
            memo[node] = _loaded(node, cast(list[Range], below), sources.get(node.source))
        else:
            memo[node] = _OPERATIONS[cast(Op, node).name](*below)
    return memo[node]


def exactly(value: Array | int) -> Range:
    """The range of a known integer."""
    array = np.asarray(value, np.int64)
    return Range(array, array)


def _where_known(known: Any, lo: Array, hi: Array) -> Range:
    return Range(np.where(known, lo, _LOWEST), np.where(known, hi, _HIGHEST))


def _add(a: Range, b: Range) -> Range:
    known = a.is_known & b.is_known
    a, b = (Range(np.where(known, r.lo, 0), np.where(known, r.hi, 0)) for r in (a, b))
    return _where_known(known, a.lo + b.lo, a.hi + b.hi)


def _multiply(a: Range, b: Range) -> Range:
    known = _small(a) & _small(b)
    a, b = (Range(np.where(known, r.lo, 0), np.where(known, r.hi, 0)) for r in (a, b))
    corners = [x * y for x in a for y in b]
    return _where_known(known, reduce(np.minimum, corners), reduce(np.maximum, corners))


def _small(a: Range) -> BoolArray:
    return (a.lo >= -_LARGEST_FACTOR) & (a.hi <= _LARGEST_FACTOR)


def _floordiv(a: Range, b: Range) -> Range:
    # Monotone in either argument while the divisor keeps its sign.
    known = a.is_known & b.is_known & ((b.lo > 0) | (b.hi < 0))
    a = Range(np.where(known, a.lo, 0), np.where(known, a.hi, 0))
    b = Range(np.where(known, b.lo, 1), np.where(known, b.hi, 1))
    corners = [x // y for x in a for y in b]
    return _where_known(known, reduce(np.minimum, corners), reduce(np.maximum, corners))


def _modulo(a: Range, b: Range) -> Range:
    known = a.is_known & b.is_known & ((b.lo > 0) | (b.hi < 0))
    a = Range(np.where(known, a.lo, 0), np.where(known, a.hi, 0))
    b = Range(np.where(known, b.lo, 1), np.where(known, b.hi, 1))
    # Within one period of one divisor the remainder is monotone; else it can be anything.
    one_period = (b.lo == b.hi) & (a.lo // b.lo == a.hi // b.lo)
    lo = np.where(one_period, a.lo % b.lo, np.where(b.lo > 0, 0, b.lo + 1))
    hi = np.where(one_period, a.hi % b.lo, np.where(b.lo > 0, b.hi - 1, 0))
    return _where_known(known, lo, hi)


def _absolute(a: Range) -> Range:
    known = a.is_known
    lo, hi = np.where(known, a.lo, 0), np.where(known, a.hi, 0)
    smallest = np.where(lo > 0, lo, np.where(hi < 0, -hi, 0))
    return _where_known(known, smallest, np.maximum(-lo, hi))


def _select(condition: Maybe, yes: Bounds, no: Bounds) -> Bounds:
    always, never = ~condition.can_be_false, ~condition.can_be_true
    if isinstance(yes, Range) and isinstance(no, Range):
        lo, hi = np.minimum(yes.lo, no.lo), np.maximum(yes.hi, no.hi)
        return Range(
            np.where(always, yes.lo, np.where(never, no.lo, lo)),
            np.where(always, yes.hi, np.where(never, no.hi, hi)),
        )
    assert isinstance(yes, Maybe)
    assert isinstance(no, Maybe)
    return _either(_both(condition, yes), _both(_negated(condition), no))


def _both(a: Maybe, b: Maybe) -> Maybe:
    return Maybe(a.can_be_false | b.can_be_false, a.can_be_true & b.can_be_true)


def _either(a: Maybe, b: Maybe) -> Maybe:
    return Maybe(a.can_be_false & b.can_be_false, a.can_be_true | b.can_be_true)


def _negated(a: Maybe) -> Maybe:
    return Maybe(a.can_be_true, a.can_be_false)


_OPERATIONS: dict[str, Callable[..., Bounds]] = {
    "add": lambda *args: reduce(_add, args),
    "mul": lambda *args: reduce(_multiply, args),
    "floordiv": _floordiv,
    "mod": _modulo,
    "abs": _absolute,
    "min": lambda a, b: Range(np.minimum(a.lo, b.lo), np.minimum(a.hi, b.hi)),
    "max": lambda a, b: Range(np.maximum(a.lo, b.lo), np.maximum(a.hi, b.hi)),
    "ge0": lambda a: Maybe(a.lo < 0, a.hi >= 0),
    "eq0": lambda a: Maybe((a.lo != 0) | (a.hi != 0), (a.lo <= 0) & (a.hi >= 0)),
    "and": lambda *args: reduce(_both, args),
    "or": lambda *args: reduce(_either, args),
    "not": _negated,
    "where": _select,
}


def _loaded(load: Load, index: list[Range], source: Array | None) -> Bounds:
    """What a load can be: the extremes of its source over the box of its indices."""
    found = None
    if source is not None:
        is_truth = load.kind == "bool" and source.dtype != np.bool_
        found = _extremes(source != 0 if is_truth else source, index)
    if load.kind == "bool":
        anything = np.ones((), np.bool_)
        return Maybe(anything, anything) if found is None else Maybe(~found[0], found[1])
    if found is None:
        return Range(np.asarray(_LOWEST), np.asarray(_HIGHEST))
    return Range(found[0].astype(np.int64), found[1].astype(np.int64))


def _extremes(source: Array, index: list[Range]) -> tuple[Array, Array] | None:
    """(smallest, largest) element over the box of each element of the indices' arrays.

    None where an index varies along more than one axis of the boxes, two along the same, or
    one leaves the source.
    """
    rank = max((bound.ndim for r in index for bound in r), default=0)
    axes: list[int | None] = []
    smallest = largest = source
    for axis, (lo, hi) in enumerate(index):
        lo, hi = np.broadcast_arrays(lo, hi)  # noqa: PLW2901
        varying = [rank - lo.ndim + i for i, size in enumerate(lo.shape) if size > 1]
        if len(varying) > 1 or (varying and varying[0] in axes):
            return None
        if lo.min() < 0 or hi.max() >= source.shape[axis]:
            return None
        axes.append(varying[0] if varying else None)
        pieces = list(zip(lo.reshape(-1).tolist(), hi.reshape(-1).tolist(), strict=True))
        smallest = _by_piece(smallest, axis, pieces, np.min)
        largest = _by_piece(largest, axis, pieces, np.max)
    return _placed(smallest, axes, rank), _placed(largest, axes, rank)


def _by_piece(
    array: Array, axis: int, pieces: list[tuple[int, int]], extreme: Callable[..., Array]
) -> Array:
    """The extreme over each piece lo..hi of one axis."""
    before = (slice(None),) * axis
    if all(lo == hi for lo, hi in pieces):
        first, count = pieces[0][0], len(pieces)
        points = [lo for lo, _ in pieces]
        if points == list(range(first, first + count)):
            # A view: a table of all heads is large.
            return array[(*before, slice(first, first + count))]
        return array.take(points, axis=axis)
    return np.stack([extreme(array[(*before, slice(a, b + 1))], axis) for a, b in pieces], axis)


def _placed(array: Array, axes: list[int | None], rank: int) -> Array:
    """The array with its axes at the boxes' axes; those without one have size 1."""
    order = sorted((i for i, axis in enumerate(axes) if axis is not None), key=lambda i: axes[i])  # type: ignore[arg-type,return-value]
    shape = [1] * rank
    for i in order:
        shape[cast(int, axes[i])] = array.shape[i]
    constant = [i for i, axis in enumerate(axes) if axis is None]
    return array.transpose([*constant, *order]).reshape(shape)
