"""Whether an expression's integers fit 32 bits, so that kernels may compute them there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stof_onnx.ir.expr import Const, Expr, Load, Op, Var, walk
from stof_onnx.ir.plan import DataType

LARGEST_DIMENSION = 2**24
"""The plan's checks refuse larger dimensions, and this analysis relies on it."""

_INT32 = (-(2**31), 2**31 - 1)
_INT64 = (-(2**63), 2**63 - 1)
_LOADED: dict[DataType, tuple[int, int]] = {
    DataType.INT8: (-(2**7), 2**7 - 1),
    DataType.INT32: _INT32,
}

Bounds = tuple[int, int]


def fits_int32(expr: Expr, types: Mapping[str, DataType]) -> bool:
    """Whether every integer that evaluating the expression makes fits in 32 bits.

    Args:
        expr: any expression; sums and products are evaluated from left to right.
        types: element type of each tensor that is loaded.
    """
    return all(
        _INT32[0] <= low and high <= _INT32[1]
        for node in walk(expr)
        if node.kind == "int"
        for low, high in _steps(node, types)
    )


def _bounds(expr: Expr, types: Mapping[str, DataType]) -> Bounds:
    return _steps(expr, types)[-1]


def _steps(expr: Expr, types: Mapping[str, DataType]) -> list[Bounds]:
    """Bounds of an integer expression; for a sum or product of each partial result."""
    if isinstance(expr, Const):
        return [(int(expr.value), int(expr.value))]
    if isinstance(expr, Var):
        return [(0, LARGEST_DIMENSION)]
    if isinstance(expr, Load):
        return [_LOADED.get(types[expr.source], _INT64)]
    assert isinstance(expr, Op)
    args = [_bounds(arg, types) for arg in expr.args if arg.kind == "int"]
    if expr.name in ("add", "mul"):
        steps = [args[0]]
        for arg in args[1:]:
            steps.append((_sum if expr.name == "add" else _product)(steps[-1], arg))
        return steps
    return [_OTHERS[expr.name](*args)]


def _sum(a: Bounds, b: Bounds) -> Bounds:
    return a[0] + b[0], a[1] + b[1]


def _product(a: Bounds, b: Bounds) -> Bounds:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _quotient(a: Bounds, b: Bounds) -> Bounds:
    # |a // b| <= |a| for integers, and a negative quotient rounds away from zero by less than 1.
    largest = max(abs(a[0]), abs(a[1]))
    return -largest - 1, largest


def _remainder(a: Bounds, b: Bounds) -> Bounds:
    largest = max(abs(b[0]), abs(b[1]))
    return -largest, largest


_OTHERS: dict[str, Callable[..., Bounds]] = {
    "floordiv": _quotient,
    "mod": _remainder,
    "abs": lambda a: (0, max(abs(a[0]), abs(a[1]))),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "where": lambda a, b: (min(a[0], b[0]), max(a[1], b[1])),
}
