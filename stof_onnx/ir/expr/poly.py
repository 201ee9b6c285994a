"""Integer expressions as polynomials over atoms.

The normal form makes equality decidable where it matters: index arithmetic on
symbolic dimensions (``b * S + k``), and comparisons (``q - k - 8 >= 0``).
"""

from __future__ import annotations

from stof_onnx.ir.expr.node import Const, Expr, Op

# A monomial is a sorted tuple of atoms (with repetition); () is the constant 1.
Monomial = tuple[Expr, ...]


class Poly:
    """A polynomial with integer coefficients; immutable by convention."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Monomial, int]) -> None:
        self.terms = {m: c for m, c in terms.items() if c != 0}

    @staticmethod
    def const(value: int) -> Poly:
        """The constant polynomial."""
        return Poly({(): value})

    @staticmethod
    def of(expr: Expr) -> Poly:
        """The polynomial of an int expression in normal form."""
        if isinstance(expr, Const):
            return Poly.const(int(expr.value))
        if isinstance(expr, Op) and expr.name == "add":
            total = Poly({})
            for arg in expr.args:
                total = total + Poly.of(arg)
            return total
        if isinstance(expr, Op) and expr.name == "mul":
            product = Poly.const(1)
            for arg in expr.args:
                product = product * Poly.of(arg)
            return product
        return Poly({(expr,): 1})

    def __add__(self, other: Poly) -> Poly:
        terms = dict(self.terms)
        for monomial, coefficient in other.terms.items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return Poly(terms)

    def __neg__(self) -> Poly:
        return Poly({m: -c for m, c in self.terms.items()})

    def __sub__(self, other: Poly) -> Poly:
        return self + (-other)

    def __mul__(self, other: Poly) -> Poly:
        terms: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                monomial = tuple(sorted(left + right, key=_order))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return Poly(terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    @property
    def constant(self) -> int | None:
        """The value, if the polynomial is a constant."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and () in self.terms:
            return self.terms[()]
        return None

    def atoms(self) -> set[Expr]:
        """Every atom that occurs."""
        return {atom for monomial in self.terms for atom in monomial}

    def split(self, atom: Expr) -> tuple[Poly, Poly] | None:
        """(coefficient, rest) with self = coefficient * atom + rest.

        None if the atom occurs to a higher power.
        """
        coefficient: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        for monomial, value in self.terms.items():
            count = monomial.count(atom)
            if count > 1:
                return None
            if count == 0:
                rest[monomial] = value
            else:
                where = monomial.index(atom)
                coefficient[monomial[:where] + monomial[where + 1 :]] = value
        return Poly(coefficient), Poly(rest)

    def divide(self, divisor: Poly) -> tuple[Poly, Poly]:
        """(quotient, rest) by a divisor of one term; rest gathers what doesn't divide."""
        if len(divisor.terms) != 1:
            return Poly({}), self
        ((by, factor),) = divisor.terms.items()
        quotient: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        for monomial, value in self.terms.items():
            left = _remove(monomial, by)
            if left is None or (by and value % factor):
                rest[monomial] = value
            elif value % factor:
                # A pure number divides in part: 7 = 1 * 4 + 3.
                quotient[left] = quotient.get(left, 0) + value // factor
                rest[monomial] = value % factor
            else:
                quotient[left] = quotient.get(left, 0) + value // factor
        return Poly(quotient), Poly(rest)

    def expr(self) -> Expr:
        """The canonical expression."""
        parts = [
            _term(monomial, value)
            for monomial, value in sorted(self.terms.items(), key=lambda t: _monomial_order(t[0]))
        ]
        if not parts:
            return Const(0)
        return parts[0] if len(parts) == 1 else Op("add", tuple(parts), "int")


def _term(monomial: Monomial, value: int) -> Expr:
    if not monomial:
        return Const(value)
    factors: tuple[Expr, ...] = monomial if value == 1 else (Const(value), *monomial)
    return factors[0] if len(factors) == 1 else Op("mul", factors, "int")


def _order(expr: Expr) -> str:
    return repr(expr)


def _monomial_order(monomial: Monomial) -> tuple[bool, int, list[str]]:
    # Constants last, so that text reads "q - k + 8".
    return (not monomial, len(monomial), [_order(atom) for atom in monomial])


def _remove(monomial: Monomial, by: Monomial) -> Monomial | None:
    left = list(monomial)
    for atom in by:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)
