"""Comparisons that families are made of, read from expressions in normal form.

d is the distance from query to key, q - k, or q + Sk - Sq - k where the last query sits at the
last key ("end"); D is the same in chunks, q // c - k // c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stof_onnx.ir.expr import Const, Expr, Load, Op, Poly, variables
from stof_onnx.ir.expr.build import not_
from stof_onnx.ir.mask.families.family import Parameters, Terms
from stof_onnx.ir.mask.program import (
    B_INDEX,
    K_INDEX,
    KEYS,
    Q_INDEX,
    QUERIES,
    conjunction,
)

KEY = Poly.of(K_INDEX)
QUERY_POSITIONS = {
    "start": Poly.of(Q_INDEX),
    "end": Poly.of(Q_INDEX) + Poly.of(KEYS) - Poly.of(QUERIES),
}
DISTANCES = {alignment: position - KEY for alignment, position in QUERY_POSITIONS.items()}


@dataclass(frozen=True)
class Bound:
    """A comparison of a distance: ``d <= left``, ``-d <= right``, or both.

    Attributes:
        left: largest distance, None without such a bound.
        right: largest negative distance, None without such a bound.
        alignment: "start" or "end".
        chunk: tokens of a chunk if the distance is in chunks, else 1.
    """

    left: int | None
    right: int | None
    alignment: str
    chunk: int = 1

    def and_(self, other: Bound) -> Bound | None:
        """The narrower of both; None for distances that aren't comparable."""
        if (self.alignment, self.chunk) != (other.alignment, other.chunk):
            return None
        left = [n for n in (self.left, other.left) if n is not None]
        right = [n for n in (self.right, other.right) if n is not None]
        return Bound(min(left, default=None), min(right, default=None), self.alignment, self.chunk)

    @property
    def is_causal(self) -> bool:
        """Whether it keeps just d >= 0."""
        return (self.left, self.right, self.chunk) == (None, 0, 1)

    @property
    def is_same_chunk(self) -> bool:
        """Whether it keeps just the pairs of one chunk."""
        return self.chunk > 1 and (self.left, self.right) == (0, 0)

    @property
    def parameters(self) -> Parameters:
        """For the report: sides that aren't bounded are left out."""
        unit = "window" if self.chunk == 1 else "chunks"
        found: Parameters = {} if self.chunk == 1 else {"chunk": self.chunk}
        if not self.is_same_chunk:
            sides = {f"{unit}_left": self.left, f"{unit}_right": self.right}
            found.update({side: n for side, n in sides.items() if n is not None})
        return {**found, "alignment": self.alignment}


def bounds(term: Expr) -> Iterator[Bound]:
    """The readings of a term as a bound, at most one an alignment."""
    for alignment in DISTANCES:
        found = _token_bound(term, alignment) or _chunk_bound(term, alignment)
        if found is not None:
            yield found


def _token_bound(term: Expr, alignment: str) -> Bound | None:
    if not (isinstance(term, Op) and term.name == "ge0"):
        return None
    poly, distance = Poly.of(term.args[0]), DISTANCES[alignment]
    below, above = (poly - distance).constant, (poly + distance).constant
    if below is not None:
        return Bound(None, below, alignment)
    return None if above is None else Bound(above, None, alignment)


def _chunk_bound(term: Expr, alignment: str) -> Bound | None:
    if not (isinstance(term, Op) and term.name in ("ge0", "eq0")):
        return None
    poly = Poly.of(term.args[0])
    floors = [
        (atom, int(atom.args[1].value))
        for atom in sorted(poly.atoms(), key=repr)
        if isinstance(atom, Op) and atom.name == "floordiv" and isinstance(atom.args[1], Const)
    ]
    if len(floors) == 1 and term.name == "ge0":
        return _edge_bound(poly, *floors[0], alignment)
    if len(floors) != 2 or floors[0][1] != floors[1][1] or floors[0][1] < 2:
        return None
    for (query, chunk), (key, _) in (floors, floors[::-1]):
        sign = poly.terms.get((query,), 0)
        rest = poly - Poly.const(sign) * (Poly.of(query) - Poly.of(key))
        constant, moved = _constant_and_rest(rest)
        # x // c + n is (x + c * n) // c: the normal form takes multiples of c out of x.
        position = Poly.of(query.args[0]) + Poly.const(sign * chunk) * moved
        if abs(sign) != 1 or position - Poly.of(key.args[0]) != DISTANCES[alignment]:
            continue
        if term.name == "eq0":
            return Bound(-sign * constant, sign * constant, alignment, chunk)
        left, right = (None, constant) if sign == 1 else (constant, None)
        return Bound(left, right, alignment, chunk)
    return None


def _edge_bound(poly: Poly, floor: Op, chunk: int, alignment: str) -> Bound | None:
    """k against the first or last key of the query's chunk: ``k >= c * (q // c)``."""
    sign = poly.terms.get((K_INDEX,), 0)
    edge = Poly.const(chunk) * Poly.of(floor)
    constant, moved = _constant_and_rest(poly - Poly.const(sign) * (KEY - edge))
    position = Poly.of(floor.args[0]) - Poly.const(sign) * moved
    if chunk < 2 or abs(sign) != 1 or position != QUERY_POSITIONS[alignment]:
        return None
    if any(value % chunk for value in moved.terms.values()):
        return None
    if sign == 1 and constant % chunk == 0:
        return Bound(constant // chunk, None, alignment, chunk)
    if sign == -1 and (constant + 1) % chunk == 0:
        return Bound(None, (constant + 1) // chunk - 1, alignment, chunk)
    return None


def _constant_and_rest(poly: Poly) -> tuple[int, Poly]:
    constant = poly.terms.get((), 0)
    return constant, poly - Poly.const(constant)


@dataclass(frozen=True)
class Congruence:
    """``value % modulus == remainder``."""

    value: Poly
    modulus: int
    remainder: int

    def of_distance(self, alignment: str) -> int | None:
        """The remainder of d, if the value is d or -d and a number."""
        distance = DISTANCES[alignment]
        plus, minus = self._apart(distance), self._apart(-distance)
        if plus is not None:
            return (self.remainder - plus) % self.modulus
        return None if minus is None else (minus - self.remainder) % self.modulus

    def of_key(self) -> int | None:
        """The remainder of k, if the value is k and a number."""
        apart = self._apart(KEY)
        return None if apart is None else (self.remainder - apart) % self.modulus

    def _apart(self, other: Poly) -> int | None:
        """The value less another, if that is a number but for multiples of the modulus."""
        difference = (self.value - other).terms
        if any(n % self.modulus for monomial, n in difference.items() if monomial):
            return None
        return difference.get((), 0)


def congruence(term: Expr) -> Congruence | None:
    """A term that compares a remainder with a number, or two remainders with each other."""
    if not (isinstance(term, Op) and term.name == "eq0"):
        return None
    rest = Poly.of(term.args[0])
    found: list[tuple[Op, int]] = []
    for atom in sorted(rest.atoms(), key=repr):
        if isinstance(atom, Op) and atom.name == "mod":
            sign = rest.terms.get((atom,), 0)
            rest = rest - Poly({(atom,): sign})
            found.append((atom, sign))
    if not found or rest.constant is None or not isinstance(found[0][0].args[1], Const):
        return None
    modulus = int(found[0][0].args[1].value)
    if modulus < 2:
        return None
    (first, sign), *others = found
    if not others and abs(sign) == 1:
        remainder = -sign * rest.constant
        value = Poly.of(first.args[0])
        return Congruence(value if remainder else _signless(value), modulus, remainder)
    if len(others) == 1 and sign == -others[0][1] and rest.constant == 0:
        second = others[0][0]
        if abs(sign) == 1 and second.args[1] == first.args[1]:
            return Congruence(Poly.of(first.args[0]) - Poly.of(second.args[0]), modulus, 0)
    return None


def _signless(value: Poly) -> Poly:
    """x for |x|: a multiple of a number is one without its sign too."""
    atoms = value.atoms()
    if len(atoms) == 1 and value.terms == {(atom := atoms.pop(),): 1}:
        return Poly.of(atom.args[0]) if isinstance(atom, Op) and atom.name == "abs" else value
    return value


@dataclass(frozen=True)
class Window:
    """A band of distances, or every n-th distance of one."""

    bound: Bound
    dilation: int = 1

    @property
    def parameters(self) -> Parameters:
        """For the report."""
        dilation: Parameters = {} if self.dilation == 1 else {"dilation": self.dilation}
        return {**self.bound.parameters, **dilation}


def window(expr: Expr) -> Window | None:
    """An expression all of whose terms bound one distance, or take every n-th of it."""
    for alignment in DISTANCES:
        found = _window_at(conjunction(expr), alignment)
        if found is not None:
            return found
    return None


def _window_at(terms: Terms, alignment: str) -> Window | None:
    bound: Bound | None = None
    steps = []
    for term in terms:
        narrower = next((b for b in bounds(term) if b.alignment == alignment), None)
        step = dilation_of(term, alignment)
        if narrower is not None:
            bound = narrower if bound is None else bound.and_(narrower)
            if bound is None:
                return None
        elif step is not None:
            steps.append(step)
        else:
            return None
    return None if bound is None or len(steps) > 1 else Window(bound, *steps)


def dilation_of(term: Expr, alignment: str) -> int | None:
    """n if the term keeps just the multiples of n among the distances."""
    found = congruence(term)
    if found is None or found.of_distance(alignment) != 0:
        return None
    return found.modulus


def key_limit(term: Expr) -> int | None:
    """g if the term keeps just the keys before g, a number of at least 1."""
    return _limit(term, KEY)


def query_limit(term: Expr, alignment: str) -> int | None:
    """g if the term keeps just the queries at positions before g, a number of at least 1."""
    return _limit(term, QUERY_POSITIONS[alignment])


def _limit(term: Expr, position: Poly) -> int | None:
    if not (isinstance(term, Op) and term.name == "ge0"):
        return None
    last = (Poly.of(term.args[0]) + position).constant
    return last + 1 if last is not None and last >= 0 else None


def run_time_key_limit(term: Expr) -> str | None:
    """The operand if the term keeps just the keys before a number of the batch entry."""
    if not (isinstance(term, Op) and term.name == "ge0"):
        return None
    rest = Poly.of(term.args[0]) + KEY
    names = {atom.source for atom in rest.atoms() if isinstance(atom, Load)}
    is_length = len(names) == 1 and variables(rest.expr()) <= {B_INDEX.name}
    return names.pop() if is_length else None


def flag_of(term: Expr, index: Expr) -> str | None:
    """The operand if the term is an element, or its negation, at an index and maybe the batch."""
    load = not_(term) if isinstance(term, Op) and term.name == "not" else term
    if not isinstance(load, Load) or load.kind != "bool":
        return None
    return load.source if load.index in ((index,), (B_INDEX, index)) else None


def union_with_window(term: Expr) -> tuple[Window, Terms] | None:
    """(window, other alternatives) of a term of which just one alternative is a window."""
    if not (isinstance(term, Op) and term.name == "or"):
        return None
    windows = [(arg, found) for arg in term.args if (found := window(arg)) is not None]
    if len(windows) != 1:
        return None
    return windows[0][1], tuple(arg for arg in term.args if arg != windows[0][0])
