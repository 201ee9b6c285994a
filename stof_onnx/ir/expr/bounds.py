"""What can be proven about the sign of a polynomial.

Dimensions are at least 1 and an index runs over 0 <= index < bound; a run-time load
can be anything. Every answer is a proof: False means "not proven", never "refuted".
"""

from __future__ import annotations

from stof_onnx.ir.expr.node import Const, Expr, Op, Var
from stof_onnx.ir.expr.poly import Poly

_DEPTH = 12


def is_nonnegative(poly: Poly) -> bool:
    """Whether poly >= 0 for every value of its variables."""
    return _nonnegative(poly, _DEPTH)


def is_positive(poly: Poly) -> bool:
    """Whether poly >= 1 for every value of its variables."""
    return is_nonnegative(poly - Poly.const(1))


def _nonnegative(poly: Poly, depth: int) -> bool:
    if depth == 0:
        return False
    shifted = _shift_dimensions(poly)
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
        if _nonnegative(rest, depth - 1) and _nonnegative(coefficient * limit + rest, depth - 1):
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


def _shift_dimensions(poly: Poly) -> Poly:
    """Write each dimension s as 1 + s', so that s' >= 0 is all that is known."""
    result = Poly({})
    for monomial, value in poly.terms.items():
        product = Poly.const(value)
        for atom in monomial:
            factor = Poly({(atom,): 1})
            if isinstance(atom, Var) and atom.bound is None:
                factor = factor + Poly.const(1)
            product = product * factor
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
        if atom.name in ("floordiv", "min", "max"):
            return all(is_nonnegative(Poly.of(arg)) for arg in atom.args)
    return False
