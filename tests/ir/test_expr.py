"""Expressions: the simplifier against naive evaluation, and proofs of signs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx.ir.expr import (
    Const,
    Expr,
    Load,
    Poly,
    evaluate,
    variables,
)
from stof_onnx.ir.expr.bounds import is_nonnegative, is_positive
from stof_onnx.ir.expr.build import (
    FALSE,
    TRUE,
    absolute,
    add,
    and_,
    eq,
    eq0,
    fadd,
    floordiv,
    fmul,
    ge,
    ge0,
    gt,
    integer,
    maximum,
    minimum,
    mod,
    mul,
    neg,
    not_,
    or_,
    sub,
    to_bool,
    to_float,
    to_int,
    where,
)
from tests.ir.expression_trees import (
    DIMENSIONS,
    INDICES,
    IS_REAL,
    POSITION,
    POSITIVE,
    SIZES,
    SLOPE,
    Sk,
    Sp,
    Sq,
    Tree,
    b,
    bools,
    check_value,
    construct,
    divisors,
    floats,
    grid,
    h,
    ints,
    k,
    nested_choices,
    p,
    positions,
    q,
    run_time,
    tiny,
)


@settings(max_examples=600, deadline=None)
@given(ints(3), SIZES)
def test_integers_keep_their_value(tree: Tree, sizes: tuple[int, ...]) -> None:
    check_value(tree, sizes)


@settings(max_examples=600, deadline=None)
@given(bools(4), SIZES)
def test_booleans_keep_their_value(tree: Tree, sizes: tuple[int, ...]) -> None:
    check_value(tree, sizes)


@settings(max_examples=150, deadline=None)
@given(floats(3), SIZES)
def test_floats_keep_their_value(tree: Tree, sizes: tuple[int, ...]) -> None:
    check_value(tree, sizes)


@settings(max_examples=40, deadline=None)
@given(nested_choices(3), SIZES)
def test_choices_are_distributed_without_changing_values(
    tree: Tree, sizes: tuple[int, ...]
) -> None:
    check_value(tree, sizes)


@settings(max_examples=100, deadline=None)
@given(st.one_of(positions(), ints(2)), divisors(), SIZES)
def test_quotient_and_rest_belong_together(
    number: Tree, divisor: Tree, sizes: tuple[int, ...]
) -> None:
    whole = ("add", ("mul", ("floordiv", number, divisor), divisor), ("mod", number, divisor))
    check_value(("eq", whole, number), sizes)
    values, sources = grid(sizes), run_time(sizes)
    assert np.all(evaluate(construct(("eq", whole, number)), values, sources))


FLAT = add(mul(b, Sk), k)
DEEP = add(mul(add(mul(b, Sq), q), Sk), k)


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        # b * Sk + k is the flat position of (b, k), because k < Sk.
        (floordiv(FLAT, Sk), b),
        (mod(FLAT, Sk), k),
        (floordiv(DEEP, mul(Sq, Sk)), b),
        (mod(DEEP, mul(Sq, Sk)), add(mul(q, Sk), k)),
        (floordiv(mod(DEEP, mul(Sq, Sk)), Sk), q),
        (mod(DEEP, Sk), k),
        (floordiv(k, Sk), integer(0)),
        (mod(k, Sk), k),
        (floordiv(sub(sub(Sk, integer(1)), k), Sk), integer(0)),
        # constants
        (floordiv(add(mul(integer(4), k), integer(3)), integer(4)), k),
        (floordiv(add(mul(integer(4), k), integer(5)), integer(4)), add(k, integer(1))),
        (floordiv(sub(mul(integer(4), k), integer(1)), integer(4)), sub(k, integer(1))),
        (mod(sub(mul(integer(4), k), integer(1)), integer(4)), integer(3)),
        (floordiv(add(mul(integer(4), q), tiny(k)), integer(4)), q),
        (mod(tiny(k), integer(5)), tiny(k)),
        (floordiv(integer(-7), integer(2)), integer(-4)),
        (mod(integer(-7), integer(2)), integer(1)),
        (mod(integer(7), integer(-2)), integer(-1)),
        (floordiv(k, integer(1)), k),
        (floordiv(k, integer(-1)), neg(k)),
        (mod(k, integer(1)), integer(0)),
        # comparisons that the ranges decide
        (ge(sub(Sk, integer(1)), k), TRUE),
        (gt(Sk, k), TRUE),
        (ge(k, Sk), FALSE),
        (ge(add(k, integer(1)), integer(1)), TRUE),
        (ge0(neg(add(k, integer(1)))), FALSE),
        (eq0(add(k, integer(1))), FALSE),
        (eq(q, q), TRUE),
        (eq(add(q, k), add(k, q)), TRUE),
        (ge0(absolute(sub(q, k))), TRUE),
        # |x|, min and max
        (absolute(k), k),
        (absolute(neg(k)), k),
        (absolute(sub(q, k)), absolute(sub(k, q))),
        (
            ge0(sub(integer(8), absolute(sub(q, k)))),
            and_(ge0(add(sub(q, k), integer(8))), ge0(add(sub(k, q), integer(8)))),
        ),
        (gt(absolute(sub(q, k)), integer(8)), not_(ge(integer(8), absolute(sub(q, k))))),
        (minimum(k, Sk), k),
        (minimum(sub(Sk, integer(1)), k), k),
        (minimum(q, k), minimum(k, q)),
        (maximum(k, integer(0)), k),
        (maximum(k, Sk), Sk),
        # predicates
        (not_(ge(q, k)), gt(k, q)),
        (not_(not_(IS_REAL)), IS_REAL),
        (and_(ge(q, k), gt(k, q)), FALSE),
        (or_(ge(q, k), gt(k, q)), TRUE),
        (and_(IS_REAL, not_(IS_REAL)), FALSE),
        (and_(IS_REAL, TRUE, IS_REAL), IS_REAL),
        (or_(IS_REAL, FALSE), IS_REAL),
        (and_(), TRUE),
        (or_(), FALSE),
        (and_(and_(ge(q, k), IS_REAL), eq0(h)), and_(eq0(h), and_(IS_REAL, ge(q, k)))),
        (not_(and_(ge(q, k), IS_REAL)), or_(gt(k, q), not_(IS_REAL))),
        (eq(IS_REAL, TRUE), IS_REAL),
        (eq(IS_REAL, FALSE), not_(IS_REAL)),
        # casts and selections
        (to_bool(to_int(IS_REAL)), IS_REAL),
        (to_bool(to_float(IS_REAL)), IS_REAL),
        (to_bool(to_float(POSITION)), not_(eq0(POSITION))),
        (ge0(sub(to_int(IS_REAL), integer(1))), IS_REAL),
        (eq0(sub(integer(1), to_int(IS_REAL))), IS_REAL),
        (eq0(mul(to_int(IS_REAL), integer(3))), not_(IS_REAL)),
        (where(not_(IS_REAL), q, k), where(IS_REAL, k, q)),
        (where(IS_REAL, where(IS_REAL, q, k), h), where(IS_REAL, q, h)),
        (where(IS_REAL, q, where(IS_REAL, k, h)), where(IS_REAL, q, h)),
        (where(IS_REAL, q, q), q),
        (
            fmul(fadd(Const(1.0), fmul(Const(-1.0), to_float(IS_REAL))), Const(-1e4)),
            where(IS_REAL, Const(0.0), Const(-1e4)),
        ),
        (fadd(SLOPE, Const(0.0)), SLOPE),
        (fmul(Const(1.0), SLOPE), SLOPE),
        (Const(-0.0), Const(0.0)),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_equal_expressions_have_one_form(got: Expr, wanted: Expr) -> None:
    assert got == wanted
    assert hash(got) == hash(wanted)


@pytest.mark.parametrize(
    ("got", "unsound"),
    [
        (floordiv(add(mul(b, Sk), q), Sk), b),  # q may exceed Sk
        (floordiv(add(FLAT, integer(1)), Sk), b),  # the last key belongs to the next row
        (mod(add(FLAT, integer(1)), Sk), add(k, integer(1))),
        (floordiv(sub(FLAT, integer(1)), Sk), b),
        (floordiv(add(mul(b, Sq), k), Sk), b),  # another row length
        (floordiv(q, Sk), integer(0)),
        (floordiv(sub(Sk, k), Sk), integer(0)),  # 1 at key 0
        (mod(Sk, add(k, integer(1))), integer(0)),
        (floordiv(add(mul(integer(4), q), mod(k, integer(5))), integer(4)), q),
        (floordiv(mul(k, Sk), integer(4)), k),
        (floordiv(POSITION, integer(4)), integer(0)),
        (mod(POSITION, Sk), POSITION),
        (ge(sub(Sk, integer(2)), k), TRUE),  # not with the last key
        (gt(Sq, k), TRUE),
        (ge(q, k), TRUE),
        (ge0(neg(k)), FALSE),  # key 0
        (eq0(k), FALSE),
        (ge0(POSITION), TRUE),  # a run-time number may be negative
        (absolute(POSITION), POSITION),
        (minimum(sub(Sk, integer(2)), k), k),
        (maximum(q, k), q),
        (and_(ge(q, k), ge(k, q)), FALSE),  # both hold on the diagonal
        (or_(ge(q, k), ge(k, q)), eq0(k)),
        (and_(IS_REAL, not_(Load("is_real", (b, q), "bool"))), FALSE),
        (eq(POSITION, Load("position", (b, q), "int")), TRUE),
        (mul(sub(k, q), sub(k, q)), integer(0)),
        (fadd(SLOPE, Const(1.0)), SLOPE),
        (fmul(SLOPE, Const(0.0)), Const(0.0)),  # inf * 0 is NaN
    ],
    ids=lambda value: repr(value)[:60],
)
def test_near_misses_stay_open(got: Expr, unsound: Expr) -> None:
    assert got != unsound
    assert not isinstance(got, Const)


@pytest.mark.parametrize(
    ("expr", "proven"),
    [
        (integer(0), True),
        (integer(-1), False),
        (k, True),
        (sub(Sk, k), True),
        (sub(sub(Sk, integer(1)), k), True),
        (sub(sub(Sk, integer(2)), k), False),
        (sub(Sk, integer(1)), True),
        (sub(Sk, integer(2)), False),
        (Sp, True),
        (sub(Sp, integer(1)), False),
        (sub(mul(Sp, Sk), Sp), True),
        (sub(mul(Sp, Sk), Sk), False),
        (p, True),
        (sub(sub(Sp, integer(1)), p), True),
        (add(p, sub(Sp, integer(1))), True),  # there is an index, so there is a length
        (sub(mul(Sk, Sq), Sk), True),
        (sub(sub(mul(Sq, Sk), integer(1)), add(mul(q, Sk), k)), True),
        (sub(sub(mul(Sq, Sk), integer(1)), add(mul(q, Sk), q)), False),
        (sub(q, k), False),
        (tiny(POSITION), True),
        (sub(integer(3), tiny(POSITION)), True),
        (sub(integer(2), tiny(POSITION)), False),
        (floordiv(k, integer(4)), True),
        (floordiv(POSITION, integer(4)), False),
        (mod(k, integer(-4)), False),
        (minimum(q, k), True),
        (maximum(q, k), True),
        (minimum(q, POSITION), False),
        (absolute(POSITION), True),
        (POSITION, False),
        # not negative for key 0, nor for the last but one, but for the last
        (add(sub(sub(mul(Sk, Sk), mul(Sk, k)), mul(integer(2), Sk)), integer(1)), False),
        (mul(sub(q, k), sub(q, k)), False),  # true, but beyond what is looked for
    ],
    ids=repr,
)
def test_what_is_proven_not_negative(expr: Expr, proven: bool) -> None:
    assert is_nonnegative(Poly.of(expr)) is proven
    assert is_positive(Poly.of(add(expr, integer(1)))) is proven


ATOMS = [*INDICES, *DIMENSIONS, tiny(q, 3), floordiv(k, integer(2)), minimum(q, k)]
polynomials = st.dictionaries(
    st.lists(st.sampled_from(ATOMS), max_size=2).map(lambda m: tuple(sorted(m, key=repr))),
    st.integers(-2, 3).filter(bool),
    min_size=1,
    max_size=5,
).map(Poly)


@settings(max_examples=150, deadline=None)
@given(st.lists(polynomials, min_size=4, max_size=4))
def test_proven_signs_are_true(drawn: list[Poly]) -> None:
    for poly in drawn:
        checks = [(is_nonnegative(poly), 0), (is_positive(poly), 1)]
        if not any(proven for proven, _ in checks):
            continue
        used = sorted(variables(poly.expr()), key=str)
        bounded = [v for v in DIMENSIONS if {v.name, v.name.lower()[-1]} & set(used)]
        ranges = [range(v in POSITIVE, 4) if v in bounded else (2,) for v in DIMENSIONS]
        for sizes in itertools.product(*ranges):
            values = evaluate(poly.expr(), grid(sizes), {})
            for proven, least in checks:
                assert not proven or np.all(values >= least), sizes


@settings(max_examples=100, deadline=None)
@given(polynomials, polynomials)
def test_polynomials_are_a_ring(left: Poly, right: Poly) -> None:
    assert Poly.of(left.expr()) == left
    assert left + right == right + left
    assert left * right == right * left
    assert hash(left * right) == hash(right * left)
    assert (left - left).constant == 0
    assert (left + right) * left == left * left + right * left
    for atom in left.atoms():
        parts = left.split(atom)
        if parts is not None:
            assert parts[0] * Poly.of(atom) + parts[1] == left
            assert atom not in parts[0].atoms() | parts[1].atoms()


@settings(max_examples=100, deadline=None)
@given(polynomials, polynomials)
def test_division_leaves_nothing_out(number: Poly, divisor: Poly) -> None:
    quotient, rest = number.divide(divisor)
    assert quotient * divisor + rest == number


@pytest.mark.parametrize(
    ("number", "divisor", "quotient", "rest"),
    [
        (FLAT, Sk, b, k),
        (DEEP, Sk, add(mul(b, Sq), q), k),
        (DEEP, mul(Sq, Sk), b, add(mul(q, Sk), k)),
        (add(mul(integer(4), k), integer(7)), integer(4), add(k, integer(1)), integer(3)),
        (add(mul(integer(6), k), q), integer(4), k, add(mul(integer(2), k), q)),
        (mul(integer(3), Sk), mul(integer(2), Sk), integer(0), mul(integer(3), Sk)),
        (mul(Sk, Sk), Sk, Sk, integer(0)),
        (k, add(Sk, integer(1)), integer(0), k),  # only divisors of one term
        (k, integer(0), integer(0), k),
    ],
    ids=repr,
)
def test_division_of_polynomials(number: Expr, divisor: Expr, quotient: Expr, rest: Expr) -> None:
    got = Poly.of(number).divide(Poly.of(divisor))
    assert got == (Poly.of(quotient), Poly.of(rest))


def test_split_refuses_a_square() -> None:
    assert Poly.of(mul(k, k)).split(k) is None
    assert Poly.of(mul(k, q)).split(k) == (Poly.of(q), Poly.const(0))
