"""Causal masks and sliding windows: bounds on the distance from query to key.

With d = q - k (aligned at the start) or d = q + Sk - Sq - k (aligned at the end, as
with a KV cache), a band keeps ``-window_right <= d <= window_left``, both inclusive.

    causal                  d >= 0
    causal_sliding_window   0 <= d <= window_left
    sliding_window          -window_right <= d <= window_left
"""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, Op, Poly
from stof_onnx.ir.mask.families.family import FamilyMatch
from stof_onnx.ir.mask.program import K_INDEX, KEYS, Q_INDEX, QUERIES, MaskProgram

_DISTANCES = {
    "start": Poly.of(Q_INDEX) - Poly.of(K_INDEX),
    "end": Poly.of(Q_INDEX) + Poly.of(KEYS) - Poly.of(QUERIES) - Poly.of(K_INDEX),
}


def match(terms: tuple[Expr, ...], program: MaskProgram) -> FamilyMatch | None:
    """Take every bound on the distance that has one alignment."""
    for alignment, distance in _DISTANCES.items():
        found = _bounds(terms, distance)
        if found is None:
            continue
        left, right, used = found
        name, parameters = _describe(left, right)
        return FamilyMatch(name, {**parameters, "alignment": alignment}, used)
    return None


def _bounds(
    terms: tuple[Expr, ...], distance: Poly
) -> tuple[int | None, int | None, tuple[Expr, ...]] | None:
    """(largest d, largest -d, terms used); None for a bound that isn't there."""
    left: int | None = None
    right: int | None = None
    used = []
    for term in terms:
        if not (isinstance(term, Op) and term.name == "ge0"):
            continue
        poly = Poly.of(term.args[0])
        below, above = (poly - distance).constant, (poly + distance).constant
        if below is not None:
            right = below if right is None else min(right, below)
        elif above is not None:
            left = above if left is None else min(left, above)
        else:
            continue
        used.append(term)
    return (left, right, tuple(used)) if used else None


def _describe(left: int | None, right: int | None) -> tuple[str, dict[str, int | float | str]]:
    if left is None and right == 0:
        return "causal", {}
    parameters: dict[str, int | float | str] = {}
    if left is not None:
        parameters["window_left"] = left
    if right is not None:
        parameters["window_right"] = right
    return ("causal_sliding_window" if right == 0 else "sliding_window"), parameters
