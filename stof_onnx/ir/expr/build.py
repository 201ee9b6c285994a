"""Constructors that keep expressions in normal form.

Every function returns an expression equal in value to what its name says for all
values of the variables (dimensions >= 1, indices inside their bounds).
"""

from __future__ import annotations

import numpy as np

from stof_onnx.ir.expr.bounds import is_nonnegative, is_positive
from stof_onnx.ir.expr.node import Const, Expr, Op
from stof_onnx.ir.expr.poly import Poly

TRUE = Const(True)
FALSE = Const(False)
# A where-tree wider than this is left alone when an operation could be moved into it.
_MAX_LEAVES = 16
# Floats of at most this magnitude are exact for every int; no int64 is larger than the other.
_EXACT_INTEGERS = 2.0**24
_LARGEST_INTEGER = 2.0**64
# A junction of more comparisons than this isn't searched for superfluous ones.
_MAX_BOUNDS = 8


def integer(value: int) -> Const:
    """An int literal."""
    return Const(int(value))


def add(left: Expr, right: Expr) -> Expr:
    """left + right on ints."""
    return _distribute_int("add", left, right) or _rejoined(Poly.of(left) + Poly.of(right)).expr()


def _rejoined(poly: Poly) -> Poly:
    """c * (x // c) + x % c is x: an index that was split and put together again."""
    for atom in poly.atoms():
        if not (isinstance(atom, Op) and atom.name == "mod"):
            continue
        value, divisor = atom.args
        factor = poly.terms.get((atom,))
        if factor is None:
            continue
        quotient = Poly.of(floordiv(value, divisor)) * Poly.of(divisor) * Poly.const(factor)
        if quotient.terms and all(
            poly.terms.get(monomial) == count for monomial, count in quotient.terms.items()
        ):
            whole = Poly.of(value) * Poly.const(factor)
            return _rejoined(poly - quotient - Poly({(atom,): factor}) + whole)
    return poly


def mul(left: Expr, right: Expr) -> Expr:
    """left * right on ints."""
    return _distribute_int("mul", left, right) or (Poly.of(left) * Poly.of(right)).expr()


def neg(value: Expr) -> Expr:
    """-value on ints."""
    return mul(integer(-1), value)


def sub(left: Expr, right: Expr) -> Expr:
    """left - right on ints."""
    return add(left, neg(right))


def _distribute_int(name: str, left: Expr, right: Expr) -> Expr | None:
    """Move integer arithmetic into a where of constants: w(c, 1, 0) * 3 = w(c, 3, 0)."""
    function = add if name == "add" else mul
    for arg, other, first in ((left, right, True), (right, left, False)):
        if isinstance(arg, Op) and arg.name == "where" and isinstance(other, Const):
            condition, yes, no = arg.args
            pairs = [(yes, other), (no, other)] if first else [(other, yes), (other, no)]
            return where(condition, function(*pairs[0]), function(*pairs[1]))
    return None


def floordiv(left: Expr, right: Expr) -> Expr:
    """Floor of left / right on ints; exact where the ranges allow it."""
    numerator, divisor = Poly.of(left), Poly.of(right)
    if divisor.constant == 1:
        return left
    if numerator.constant is not None and divisor.constant:
        return integer(numerator.constant // divisor.constant)
    if _inside(numerator, divisor):
        return integer(0)
    if isinstance(left, Op) and left.name == "floordiv" and isinstance(right, Const):
        value, inner = left.args
        if isinstance(inner, Const) and inner.value > 0 and right.value > 0:
            return floordiv(value, integer(int(inner.value * right.value)))
    quotient, rest = numerator.divide(divisor)
    if _inside(rest, divisor):
        return quotient.expr()
    if rest.constant is not None and divisor.constant:
        return (quotient + Poly.const(rest.constant // divisor.constant)).expr()
    if quotient.terms:
        return (quotient + Poly.of(Op("floordiv", (rest.expr(), right), "int"))).expr()
    return Op("floordiv", (left, right), "int")


def mod(left: Expr, right: Expr) -> Expr:
    """left modulo right on ints, with the sign of the divisor."""
    numerator, divisor = Poly.of(left), Poly.of(right)
    if divisor.constant == 1:
        return integer(0)
    if numerator.constant is not None and divisor.constant:
        return integer(numerator.constant % divisor.constant)
    if _inside(numerator, divisor):
        return left
    _, rest = numerator.divide(divisor)
    if _inside(rest, divisor):
        return rest.expr()
    if rest.constant is not None and divisor.constant:
        return integer(rest.constant % divisor.constant)
    return Op("mod", (rest.expr(), right), "int")


def _inside(rest: Poly, divisor: Poly) -> bool:
    """Whether 0 <= rest < divisor."""
    return is_nonnegative(rest) and is_positive(divisor - rest)


def absolute(value: Expr) -> Expr:
    """|value| on ints; |x| and |-x| are the same expression."""
    poly = Poly.of(value)
    if is_nonnegative(poly):
        return value
    if is_nonnegative(-poly):
        return neg(value)
    return Op("abs", (min(value, neg(value), key=_shortest),), "int")


def _shortest(value: Expr) -> tuple[int, str]:
    """Sorts x before -x, and -k + q before k - q."""
    return len(repr(value)), repr(value)


def minimum(left: Expr, right: Expr) -> Expr:
    """The smaller of two ints."""
    difference = Poly.of(right) - Poly.of(left)
    if is_nonnegative(difference):
        return left
    if is_nonnegative(-difference):
        return right
    return Op("min", tuple(sorted((left, right), key=repr)), "int")


def maximum(left: Expr, right: Expr) -> Expr:
    """The larger of two ints."""
    difference = Poly.of(right) - Poly.of(left)
    if is_nonnegative(difference):
        return right
    if is_nonnegative(-difference):
        return left
    return Op("max", tuple(sorted((left, right), key=repr)), "int")


def ge0(value: Expr) -> Expr:
    """value >= 0 on an int."""
    if isinstance(value, Op) and value.name == "where":
        condition, yes, no = value.args
        return where(condition, ge0(yes), ge0(no))
    poly = Poly.of(value)
    if is_nonnegative(poly):
        return TRUE
    if is_nonnegative(-poly - Poly.const(1)):
        return FALSE
    return _open_abs(poly) or Op("ge0", (poly.expr(),), "bool")


def _open_abs(poly: Poly) -> Expr | None:
    """c - |x| >= 0 becomes two comparisons, |x| - c >= 0 either of two."""
    for atom in sorted(poly.atoms(), key=repr):
        if not (isinstance(atom, Op) and atom.name == "abs"):
            continue
        parts = poly.split(atom)
        if parts is None or parts[0].constant not in (1, -1):
            continue
        inner, rest = Poly.of(atom.args[0]), parts[1]
        if parts[0].constant == -1:
            return and_(ge0((rest - inner).expr()), ge0((rest + inner).expr()))
        return or_(ge0((rest + inner).expr()), ge0((rest - inner).expr()))
    return None


def ge(left: Expr, right: Expr) -> Expr:
    """left >= right on ints."""
    return ge0(sub(left, right))


def gt(left: Expr, right: Expr) -> Expr:
    """left > right on ints."""
    return ge0(sub(sub(left, right), integer(1)))


def eq(left: Expr, right: Expr) -> Expr:
    """left == right on ints or bools."""
    if left.kind == "bool":
        return or_(and_(left, right), and_(not_(left), not_(right)))
    return eq0(sub(left, right))


def eq0(value: Expr) -> Expr:
    """value == 0 on an int."""
    if isinstance(value, Op) and value.name == "where":
        condition, yes, no = value.args
        return where(condition, eq0(yes), eq0(no))
    poly = Poly.of(value)
    if poly.constant is not None:
        return Const(poly.constant == 0)
    if is_positive(poly) or is_positive(-poly):
        return FALSE
    return Op("eq0", (min(poly.expr(), (-poly).expr(), key=_shortest),), "bool")


def not_(value: Expr) -> Expr:
    """Logical negation, pushed down to the predicates."""
    if isinstance(value, Const):
        return Const(not value.value)
    if isinstance(value, Op):
        if value.name == "not":
            return value.args[0]
        if value.name == "ge0":
            return ge0((-Poly.of(value.args[0]) - Poly.const(1)).expr())
        if value.name == "and":
            return or_(*(not_(arg) for arg in value.args))
        if value.name == "or":
            return and_(*(not_(arg) for arg in value.args))
        if value.name == "where":
            return where(value.args[0], not_(value.args[1]), not_(value.args[2]))
    return Op("not", (value,), "bool")


def and_(*values: Expr) -> Expr:
    """Conjunction; flat, without repetitions, in a canonical order."""
    return _junction("and", values, neutral=TRUE, absorbing=FALSE)


def or_(*values: Expr) -> Expr:
    """Disjunction; flat, without repetitions, in a canonical order."""
    return _junction("or", values, neutral=FALSE, absorbing=TRUE)


def _junction(name: str, values: tuple[Expr, ...], neutral: Const, absorbing: Const) -> Expr:
    flat: set[Expr] = set()
    for value in values:
        parts = value.args if isinstance(value, Op) and value.name == name else (value,)
        flat.update(parts)
    flat.discard(neutral)
    if absorbing in flat or any(not_(part) in flat for part in flat if _is_literal(part)):
        return absorbing
    ordered = sorted(_without_implied(name, flat), key=repr)
    if not ordered or ordered == [neutral]:
        return neutral
    return ordered[0] if len(ordered) == 1 else Op(name, tuple(ordered), "bool")


def _without_implied(name: str, parts: set[Expr]) -> set[Expr]:
    """The parts of a junction without those that another part makes superfluous.

    x or (x and y) is x; q >= 0 or q >= 5 is q >= 0; and the other way round for "and".
    """
    other = "or" if name == "and" else "and"
    resolved = {_resolved(part, other, parts) for part in parts}
    if resolved != parts:
        # What is left of a part may be a junction of the same kind, or new to resolve with.
        joined = and_(*resolved) if name == "and" else or_(*resolved)
        return set(joined.args) if isinstance(joined, Op) and joined.name == name else {joined}
    kept = {
        part
        for part in parts
        if not (isinstance(part, Op) and part.name == other and not parts.isdisjoint(part.args))
    }
    bounds = [part for part in kept if isinstance(part, Op) and part.name == "ge0"]
    if len(bounds) > _MAX_BOUNDS:
        return kept
    for strict in bounds:
        for loose in bounds:
            if strict is loose or not {strict, loose} <= kept:
                continue
            if is_nonnegative(Poly.of(loose.args[0]) - Poly.of(strict.args[0])):
                kept.discard(loose if name == "and" else strict)
    return kept


def _resolved(part: Expr, other: str, parts: set[Expr]) -> Expr:
    """(x and y) or not x is y or not x: the part without what a neighbour denies."""
    if not (isinstance(part, Op) and part.name == other):
        return part
    left = [arg for arg in part.args if not _is_literal(arg) or not_(arg) not in parts]
    if len(left) == len(part.args):
        return part
    return and_(*left) if other == "and" else or_(*left)


def _is_literal(value: Expr) -> bool:
    return not (isinstance(value, Op) and value.name in ("and", "or", "where"))


def where(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Yes where the condition holds, else no."""
    if yes == no:
        return yes
    if isinstance(condition, Const):
        return yes if condition.value else no
    if yes.kind == "bool":
        return or_(and_(condition, yes), and_(not_(condition), no))
    if isinstance(condition, Op) and condition.name == "not":
        condition, yes, no = condition.args[0], no, yes
    if isinstance(yes, Op) and yes.name == "where" and yes.args[0] == condition:
        yes = yes.args[1]
    if isinstance(no, Op) and no.name == "where" and no.args[0] == condition:
        no = no.args[2]
    if yes == no:
        return yes
    return Op("where", (condition, yes, no), yes.kind)


def to_bool(value: Expr) -> Expr:
    """ONNX Cast to BOOL: false for zero, true for anything else."""
    if value.kind == "bool":
        return value
    if isinstance(value, Const):
        return Const(value.value != 0)
    if isinstance(value, Op) and value.name == "where":
        return where(value.args[0], to_bool(value.args[1]), to_bool(value.args[2]))
    if value.kind == "int":
        return not_(eq0(value))
    if isinstance(value, Op) and value.name == "float":
        return to_bool(value.args[0])
    return not_(equals_number(value, 0.0))


def equals_number(value: Expr, number: float) -> Expr:
    """Whether a float that was converted from an int, plus or minus a number, is ``number``.

    Converted ints are exact up to 2**24 and stay beyond a smaller number above it.

    Raises:
        NotImplementedError: the float is anything else.
    """
    offset, sign, term = 0.0, 1, value
    if isinstance(value, Op) and value.name == "fadd":
        numbers = [arg for arg in value.args if isinstance(arg, Const)]
        others = [arg for arg in value.args if not isinstance(arg, Const)]
        if len(numbers) == 1:
            offset, (term,) = float(numbers[0].value), others
    if isinstance(term, Op) and term.name == "fmul" and Const(-1.0) in term.args:
        (term,) = (arg for arg in term.args if arg != Const(-1.0))
        sign = -1
    if not (isinstance(term, Op) and term.name == "float"):
        raise NotImplementedError("a run-time float compared with a number")
    wanted = number - offset
    if not abs(wanted) < _LARGEST_INTEGER:
        return FALSE
    if abs(wanted) >= _EXACT_INTEGERS or abs(offset) >= _EXACT_INTEGERS:
        raise NotImplementedError(f"a run-time int compared with {wanted}")
    if wanted != int(wanted):
        return FALSE
    return eq(term.args[0], integer(sign * int(wanted)))


def to_int(value: Expr) -> Expr:
    """ONNX Cast of a bool or int to an integer type."""
    if value.kind == "int":
        return value
    if value.kind == "bool":
        return where(value, integer(1), integer(0))
    if isinstance(value, Const):
        return integer(int(value.value))
    if isinstance(value, Op) and value.name == "where":
        return where(value.args[0], to_int(value.args[1]), to_int(value.args[2]))
    raise NotImplementedError("a run-time float as integer")


def to_float(value: Expr) -> Expr:
    """ONNX Cast of a bool or int to a float type."""
    if value.kind == "float":
        return value
    if isinstance(value, Const):
        return Const(float(value.value))
    if value.kind == "bool":
        return where(value, Const(1.0), Const(0.0))
    if isinstance(value, Op) and value.name == "where":
        return where(value.args[0], to_float(value.args[1]), to_float(value.args[2]))
    return Op("float", (value,), "float")


def fadd(left: Expr, right: Expr) -> Expr:
    """left + right on floats, rounded to float32."""
    return _float_binary("fadd", left, right)


def fmul(left: Expr, right: Expr) -> Expr:
    """left * right on floats, rounded to float32."""
    return _float_binary("fmul", left, right)


def fsub(left: Expr, right: Expr) -> Expr:
    """left - right on floats, rounded to float32."""
    return fadd(left, fmul(Const(-1.0), right))


def _float_binary(name: str, left: Expr, right: Expr) -> Expr:
    if isinstance(left, Const) and isinstance(right, Const):
        with np.errstate(over="ignore", invalid="ignore"):
            a, b = np.float32(left.value), np.float32(right.value)
            return Const(float(a + b if name == "fadd" else a * b))
    neutral = 0.0 if name == "fadd" else 1.0
    for arg, other in ((left, right), (right, left)):
        if isinstance(arg, Const) and arg.value == neutral:
            return other
    if where_leaves(left) * where_leaves(right) <= _MAX_LEAVES:
        for arg, other, swapped in ((left, right, False), (right, left, True)):
            if isinstance(arg, Op) and arg.name == "where":
                yes, no = (
                    _float_binary(name, *((other, leaf) if swapped else (leaf, other)))
                    for leaf in arg.args[1:]
                )
                return where(arg.args[0], yes, no)
    return Op(name, (left, right), "float")


def where_leaves(value: Expr) -> int:
    """How many alternatives a tree of wheres has."""
    if isinstance(value, Op) and value.name == "where":
        return where_leaves(value.args[1]) + where_leaves(value.args[2])
    return 1
