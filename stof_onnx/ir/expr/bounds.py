"""What can be proven about the sign of a polynomial.

A dimension is at least 0 (a KV cache starts empty), or 1 where that is known, and an
index runs over 0 <= index < bound, so that the bound of an index at hand is at least 1.
A run-time load can be anything. Every answer is a proof: False means "not proven",
never "refuted".
"""

from __future__ import annotations

from stof_onnx.ir.expr.node import Const, Expr, Op, Var
from stof_onnx.ir.expr.poly import Poly

_DEPTH = 12


def is_nonnegative(poly: Poly) -> bool:
    """Whether poly >= 0 for every value of its variables."""
    variables = [atom for atom in poly.atoms() if isinstance(atom, Var)]
    positive: set[Expr] = {var for var in variables if var.positive}
    for var in variables:
        if isinstance(var.bound, Var) and var.bound.bound is None:
            positive.add(var.bound)
    return _nonnegative(poly, frozenset(positive), _DEPTH)


def is_positive(poly: Poly) -> bool:
    """Whether poly >= 1 for every value of its variables."""
    return is_nonnegative(poly - Poly.const(1))


def _nonnegative(poly: Poly, positive: frozenset[Expr], depth: int) -> bool:
    if depth == 0:
        return False
    shifted = _shift_positive(poly, positive)
    if all(value >= 0 for value in shifted.terms.values()) and all(
        _atom_nonnegative(atom) for atom in shifted.atoms()
    ):
        return True
    for atom in sorted(poly.atoms(), key=repr):
        limit = _upper(atom)
        parts = poly.split(atom)
        if limit is None or parts is None:
            continue
        coefficient, rest = parts
        # Linear in the index, so the minimum is at one end; try both where the
        # coefficient's sign is not known.
        ends = (rest, coefficient * limit + rest)
        if all(_nonnegative(end, positive, depth - 1) for end in ends):
            return True
    return False


def _upper(atom: Expr) -> Poly | None:
    """The largest value of an atom whose smallest value is 0, if it has such a range."""
    if isinstance(atom, Var) and atom.bound is not None:
        return Poly.of(atom.bound) - Poly.const(1)
    if isinstance(atom, Op) and atom.name == "mod" and _is_positive_const(atom.args[1]):
        return Poly.of(atom.args[1]) - Poly.const(1)
    return None


def _is_positive_const(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.value > 0


def _shift_positive(poly: Poly, positive: frozenset[Expr]) -> Poly:
    """Write each dimension s >= 1 as 1 + s', so that s' >= 0 is all that is known."""
    result = Poly({})
    for monomial, value in poly.terms.items():
        product = Poly.const(value)
        for atom in monomial:
            factor = Poly({(atom,): 1})
            product = product * (factor + Poly.const(1) if atom in positive else factor)
        result = result + product
    return result


def _atom_nonnegative(atom: Expr) -> bool:
    if isinstance(atom, Var):
        return True
    if isinstance(atom, Op):
        if atom.name == "abs":
            return True
        if atom.name == "mod":
            return _is_positive_const(atom.args[1])
        if atom.name == "max":
            return any(is_nonnegative(Poly.of(arg)) for arg in atom.args)
        if atom.name in ("floordiv", "min"):
            return all(is_nonnegative(Poly.of(arg)) for arg in atom.args)
    return False
