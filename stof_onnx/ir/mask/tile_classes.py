"""Which tiles of a mask hold the same pattern, known without looking inside.

A diagonal band looks the same in every tile on its edge: ``q - k >= 0`` over a tile depends on
the tile's corner only through q0 - k0, and ``(q - k) % 4 == 0`` only through its remainder. The
key of a tile lists, for each comparison that its range leaves open, the numbers through which
it depends on the corner. Tiles of equal size and equal keys hold equal patterns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from stof_onnx.ir.expr import Const, Expr, Load, Op, Var, variables
from stof_onnx.ir.expr.node import children
from stof_onnx.ir.mask.intervals import BoolArray, Bounds, Int64Array, Maybe, Range

_INDICES = frozenset("bhqk")


@dataclass(frozen=True)
class _Form:
    """An integer over a tile: ``base`` plus a function that ``keys`` determine."""

    base: Int64Array
    keys: tuple[Int64Array, ...] = ()

    @property
    def all(self) -> tuple[Int64Array, ...]:
        return (self.base, *self.keys)


def keys_of_tiles(
    keep: Expr, bounds: Mapping[Expr, Bounds], corners: Mapping[str, Int64Array]
) -> tuple[Int64Array, ...]:
    """The numbers that determine the pattern of each tile.

    Args:
        keep: bool expression over b, h, q, k and dimensions.
        bounds: of its sub-expressions over the tiles, of
            :func:`stof_onnx.ir.mask.intervals.evaluate_bounds`.
        corners: value of each variable at the corner of each tile.

    Returns:
        Arrays that broadcast against the tiles; equal numbers in all of them mean equal
        patterns, in tiles of one height and width.
    """
    return _Reader(bounds, corners).truth(keep)


class _Reader:
    def __init__(self, bounds: Mapping[Expr, Bounds], corners: Mapping[str, Int64Array]) -> None:
        self._bounds = bounds
        self._corners = corners
        self._forms: dict[Expr, _Form] = {}

    def truth(self, node: Expr) -> tuple[Int64Array, ...]:
        """Keys of a boolean: what it is where that is known, else keys of what is below."""
        known = cast(Maybe, self._bounds[node])
        if isinstance(node, Op) and node.name in ("and", "or", "not"):
            below = tuple(key for arg in node.args for key in self.truth(arg))
        else:
            below = tuple(key for part in children(node) for key in self._any(part))
        is_open: BoolArray = known.can_be_false & known.can_be_true
        state = known.can_be_true + is_open.astype(np.int64)
        return (state, *(np.where(is_open, key, 0) for key in below))

    def _any(self, node: Expr) -> tuple[Int64Array, ...]:
        return self.truth(node) if node.kind == "bool" else self._integer(node).all

    def _integer(self, node: Expr) -> _Form:
        if node not in self._forms:
            self._forms[node] = self._read(node)
        return self._forms[node]

    def _read(self, node: Expr) -> _Form:
        if isinstance(node, Const):
            return _Form(np.asarray(node.value, np.int64))
        if isinstance(node, Var):
            return _Form(self._corners[node.name])
        if isinstance(node, Op) and node.name == "add":
            parts = [self._integer(arg) for arg in node.args]
            base = sum((part.base for part in parts[1:]), start=parts[0].base)
            return _Form(base, tuple(key for part in parts for key in part.keys))
        if isinstance(node, Op) and node.name == "mul":
            scaled = self._scaled(node)
            if scaled is not None:
                return scaled
        if isinstance(node, Op) and node.name in ("mod", "floordiv"):
            divided = self._divided(node)
            if divided is not None:
                return divided
        assert isinstance(node, Op | Load)
        below = tuple(key for part in children(node) for key in self._any(part))
        return _Form(np.zeros((), np.int64), below)

    def _scaled(self, node: Op) -> _Form | None:
        """A product of which one factor at most varies within a tile."""
        fixed = [arg for arg in node.args if not variables(arg) & _INDICES]
        varying = [arg for arg in node.args if arg not in fixed]
        if len(varying) > 1:
            return None
        factor = np.asarray(1, np.int64)
        for arg in fixed:
            form = self._integer(arg)
            if form.keys:
                return None
            factor = factor * form.base
        inner = self._integer(varying[0]) if varying else _Form(np.asarray(1, np.int64))
        return _Form(inner.base * factor, inner.keys)

    def _divided(self, node: Op) -> _Form | None:
        """(base + f) // c is base // c plus a function of base % c and f; the rest likewise."""
        value, divisor = node.args
        if not isinstance(divisor, Const) or divisor.value == 0:
            return None
        if not cast(Range, self._bounds[value]).is_known.all():
            # The sum may wrap around in the middle of a tile.
            return None
        form, by = self._integer(value), int(divisor.value)
        quotient, rest = np.divmod(form.base, by)
        base = quotient if node.name == "floordiv" else np.zeros((), np.int64)
        return _Form(base, (rest, *form.keys))
