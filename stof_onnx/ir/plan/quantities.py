"""Numbers of a launch that depend on the shapes: sums of products of rounded-up quotients.

A kernel template writes them as arithmetic::

    B, H, Sq = map(Quantity.of, ("B", "H", "Sq"))
    grid = (Sq.ceil(64), B * H, Quantity.of(1))
    workspace = 4 * B * H * Sq.ceil(64) + 256

and the plugin, which knows nothing of the template, evaluates them when it knows the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stof_onnx.ir.errors import InputError

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, order=True)
class Ceil:
    """A symbol divided by a constant, rounded up; the symbol itself if the divisor is 1."""

    symbol: str
    divisor: int = 1

    def __str__(self) -> str:
        """As "Sq" or "ceil(Sq/64)"."""
        return self.symbol if self.divisor == 1 else f"ceil({self.symbol}/{self.divisor})"


@dataclass(frozen=True)
class Term:
    """A factor times the product of the parts."""

    factor: int
    parts: tuple[Ceil, ...] = ()

    def __str__(self) -> str:
        """As "4 * B * ceil(Sq/64)"."""
        factor = [] if self.factor == 1 and self.parts else [str(self.factor)]
        return " * ".join([*factor, *map(str, self.parts)])


@dataclass(frozen=True)
class Quantity:
    """The sum of the terms; 0 without any.

    Sums and products are brought to one form, so that quantities that are built in different
    orders are equal: parts sorted, like terms merged, longer products first.
    """

    terms: tuple[Term, ...] = ()

    @classmethod
    def of(cls, value: int | str | Quantity) -> Quantity:
        """A constant, a symbol's value, or the quantity itself."""
        if isinstance(value, Quantity):
            return value
        if isinstance(value, str):
            return cls((Term(1, (Ceil(value),)),))
        return cls((Term(value),)) if value else cls()

    def ceil(self, divisor: int) -> Quantity:
        """The quantity divided by a constant and rounded up.

        Raises:
            ValueError: a divisor below 1, or a quantity that is neither a constant nor a
                (rounded-up part of a) symbol: plans have no other quotients.
        """
        if divisor < 1:
            raise ValueError(f"division of {self} by {divisor}")
        match self.terms:
            case ():
                return self
            case (Term(factor, ()),):
                return Quantity.of(-(-factor // divisor))
            case (Term(1, (part,)),):
                return Quantity((Term(1, (Ceil(part.symbol, part.divisor * divisor),)),))
        raise ValueError(f"{self} divided by {divisor}: only a symbol or a constant can be")

    def __add__(self, other: Quantity | int) -> Quantity:
        """The sum."""
        return _collected((*self.terms, *Quantity.of(other).terms))

    def __mul__(self, other: Quantity | int) -> Quantity:
        """The product."""
        return _collected(
            tuple(
                Term(mine.factor * theirs.factor, tuple(sorted(mine.parts + theirs.parts)))
                for mine in self.terms
                for theirs in Quantity.of(other).terms
            )
        )

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        """As "4 * B * ceil(Sq/64) + 256"."""
        return " + ".join(map(str, self.terms)) or "0"


def _collected(terms: tuple[Term, ...]) -> Quantity:
    factors: dict[tuple[Ceil, ...], int] = {}
    for term in terms:
        factors[term.parts] = factors.get(term.parts, 0) + term.factor
    ordered = sorted(factors, key=lambda parts: (-len(parts), parts))
    return Quantity(tuple(Term(factors[parts], parts) for parts in ordered if factors[parts]))


def evaluate(quantity: Quantity, symbols: Mapping[str, int]) -> int:
    """Value of a quantity, in the order and width that the plugin computes it.

    Args:
        quantity: what to evaluate.
        symbols: values of the symbols, none negative.

    Raises:
        InputError: a step leaves 64 bits.
    """
    total = 0
    for term in quantity.terms:
        product = term.factor
        for part in term.parts:
            product = in_int64(product * -(-symbols[part.symbol] // part.divisor), quantity)
        total = in_int64(total + product, quantity)
    return total


def in_int64(value: int, what: object) -> int:
    """The value.

    Raises:
        InputError: it doesn't fit in 64 bits.
    """
    if not INT64_MIN <= value <= INT64_MAX:
        raise InputError(f"{what} overflows 64 bits at these shapes", next_step="use smaller ones")
    return value
