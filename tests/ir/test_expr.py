"""Expressions: the simplifier against naive evaluation, proofs of signs, JSON, text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import (
    Const,
    Expr,
    Load,
    Op,
    Poly,
    Var,
    build,
    evaluate,
    from_json,
    loads,
    substitute,
    to_json,
    to_text,
    variables,
    walk,
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

Array = npt.NDArray[Any]
Tree = Any
"""A leaf (an Expr) or (name of a function of ``build``, sub-trees...): not normalised."""

B, H, Sq, Sk = (Var(name, positive=True) for name in ("B", "H", "Sq", "Sk"))
Sp = Var("Sp")  # may be 0, as the length of a KV cache before the first token
b, h, q, k, p = (Var(i, dim) for i, dim in (("b", B), ("h", H), ("q", Sq), ("k", Sk), ("p", Sp)))
DIMENSIONS, INDICES = (B, H, Sq, Sk, Sp), (b, h, q, k, p)
POSITIVE = (B, H, Sq, Sk)
VARIABLES = {var.name: var for var in (*DIMENSIONS, *INDICES)}

POSITION = Load("position", (b, k), "int")
IS_REAL = Load("is_real", (b, k), "bool")
SLOPE = Load("slope", (h,), "float")


def tiny(expr: Expr, bound: int = 4) -> Expr:
    """The expression modulo a number, for masks that are simple to write down."""
    return mod(expr, integer(bound))


# What each constructor has to mean, written without the simplifier's help.
MEANING: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "floordiv": lambda x, y: np.floor(np.divide(x, y)).astype(np.int64),
    "mod": lambda x, y: x - y * np.floor(np.divide(x, y)).astype(np.int64),
    "absolute": lambda x: np.where(x < 0, -x, x),
    "minimum": lambda x, y: np.where(x < y, x, y),
    "maximum": lambda x, y: np.where(x < y, y, x),
    "ge0": lambda x: x >= 0,
    "eq0": lambda x: x == 0,
    "ge": lambda x, y: x >= y,
    "gt": lambda x, y: x > y,
    "eq": lambda x, y: x == y,
    "not_": lambda x: ~x,
    "and_": lambda x, y: x & y,
    "or_": lambda x, y: x | y,
    "where": np.where,
    "to_bool": lambda x: x != 0,
    "to_int": lambda x: x.astype(np.int64),
    "to_float": lambda x: x.astype(np.float32),
    "fadd": np.add,
    "fsub": np.subtract,
    "fmul": np.multiply,
}


def construct(tree: Tree) -> Expr:
    """The tree through the simplifying constructors."""
    if isinstance(tree, Expr):
        return tree
    name, *parts = tree
    expr: Expr = getattr(build, name)(*(construct(part) for part in parts))
    return expr


def naive(tree: Tree, values: dict[str, Array], sources: dict[str, Array]) -> Array:
    """The tree's value, node by node."""
    if isinstance(tree, Const):
        types = {"bool": np.bool_, "int": np.int64, "float": np.float32}
        return np.asarray(tree.value, types[tree.kind])
    if isinstance(tree, Var):
        return values[tree.name]
    if isinstance(tree, Load):
        return sources[tree.source][tuple(values[i.name] for i in tree.index)]  # type: ignore[attr-defined]
    name, *parts = tree
    return np.asarray(MEANING[name](*(naive(part, values, sources) for part in parts)))


def grid(sizes: tuple[int, ...]) -> dict[str, Array]:
    """Dimensions as numbers, indices along one axis each."""
    values = {v.name: np.asarray(size) for v, size in zip(DIMENSIONS, sizes, strict=True)}
    for axis, (index, size) in enumerate(zip(INDICES, sizes, strict=True)):
        shape = [1, 1, 1, 1, 1]
        shape[axis] = size
        values[index.name] = np.arange(size).reshape(shape)
    return values


def run_time(sizes: tuple[int, ...], seed: int = 3) -> dict[str, Array]:
    """Tensors for the loads."""
    rng = np.random.default_rng(seed)
    batch, heads, _, keys, _ = sizes
    return {
        "position": rng.integers(-3, 8, (batch, keys)),
        "is_real": rng.random((batch, keys)) < 0.6,
        "slope": rng.integers(-4, 5, heads).astype(np.float32) / 4,
    }


@cache
def ints(depth: int) -> st.SearchStrategy[Tree]:
    """Trees of kind int."""
    leaves = st.one_of(
        st.sampled_from([b, h, q, k, *INDICES, *DIMENSIONS, POSITION]),
        st.integers(-4, 9).map(integer),
    )
    if depth == 0:
        return leaves
    below = ints(depth - 1)
    return st.one_of(
        leaves,
        st.tuples(st.sampled_from(["add", "sub", "mul", "minimum", "maximum"]), below, below),
        st.tuples(st.sampled_from(["neg", "absolute"]), below),
        st.tuples(st.sampled_from(["floordiv", "mod"]), below, divisors()),
        st.tuples(st.sampled_from(["floordiv", "mod"]), positions(), divisors()),
        st.tuples(st.just("to_int"), bools(depth - 1)),
        st.tuples(st.just("where"), bools(depth - 1), below, below),
    )


@cache
def divisors() -> st.SearchStrategy[Tree]:
    """Trees of kind int that are never 0."""
    return st.one_of(
        st.sampled_from([1, 2, 3, 4, 5, -1, -2, -3]).map(integer),
        st.sampled_from(POSITIVE),
        st.tuples(st.just("mul"), st.sampled_from(POSITIVE), st.sampled_from(POSITIVE)),
        st.tuples(st.just("mul"), st.sampled_from(POSITIVE), st.integers(1, 3).map(integer)),
        st.tuples(st.just("neg"), st.sampled_from(POSITIVE)),
        st.sampled_from([("add", k, integer(1)), ("sub", Sk, k), ("add", Sp, integer(1))]),
    )


@cache
def positions() -> st.SearchStrategy[Tree]:
    """Flattened positions such as (b * Sq + q) * Sk + k, and near-misses of them."""
    index, dim = st.sampled_from(INDICES), st.sampled_from([*DIMENSIONS, integer(2), integer(3)])
    row = st.tuples(st.just("add"), st.tuples(st.just("mul"), index, dim), index)
    deep = st.tuples(st.just("add"), st.tuples(st.just("mul"), row, dim), index)
    return st.one_of(
        row, deep, st.tuples(st.just("add"), st.one_of(row, deep), st.integers(-3, 3).map(integer))
    )


@cache
def bools(depth: int) -> st.SearchStrategy[Tree]:
    """Trees of kind bool."""
    if depth == 0:
        return st.sampled_from([IS_REAL, TRUE, FALSE, ("ge", q, k), ("ge", k, q), ("eq0", k)])
    number, below = ints(depth - 1), bools(depth - 1)
    return st.one_of(
        below,
        st.tuples(st.sampled_from(["ge0", "eq0", "to_bool"]), number),
        st.tuples(st.sampled_from(["ge", "gt", "eq"]), number, number),
        st.tuples(st.just("not_"), below),
        st.tuples(st.sampled_from(["and_", "or_", "eq"]), below, below),
        st.tuples(st.just("where"), below, below, below),
    )


@cache
def floats(depth: int) -> st.SearchStrategy[Tree]:
    """Trees of kind float."""
    leaves = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, -1e4, 3.0]).map(Const), st.just(SLOPE)
    )
    if depth == 0:
        return leaves
    below = floats(depth - 1)
    return st.one_of(
        leaves,
        st.tuples(st.sampled_from(["fadd", "fsub", "fmul"]), below, below),
        st.tuples(st.just("to_float"), st.one_of(ints(depth - 1), bools(depth - 1))),
        st.tuples(st.just("where"), bools(depth - 1), below, below),
    )


@cache
def nested_choices(depth: int) -> st.SearchStrategy[Tree]:
    """Sums and products of trees of where, up to more leaves than are distributed."""
    below = nested_choices(depth - 1) if depth else st.sampled_from([Const(2.0), SLOPE])
    condition = st.sampled_from([IS_REAL, ("ge", q, k), ("eq0", h), ("not_", ("eq0", h))])
    choice = st.tuples(st.just("where"), condition, below, below)
    return st.one_of(choice, st.tuples(st.sampled_from(["fadd", "fmul"]), choice, choice))


SIZES = st.tuples(*[st.integers(1, 4)] * 4, st.integers(0, 3))


def check_value(tree: Tree, sizes: tuple[int, ...]) -> None:
    """Compare both readings of a tree at one size."""
    values, sources = grid(sizes), run_time(sizes)
    expr = construct(tree)
    wanted = naive(tree, values, sources)
    got = evaluate(expr, values, sources)
    full = np.broadcast_shapes(wanted.shape, got.shape, sizes)
    np.testing.assert_array_equal(
        np.broadcast_to(got, full), np.broadcast_to(wanted, full), err_msg=repr(expr)
    )
    assert {"b": "bool", "i": "int", "f": "float"}[wanted.dtype.kind] == expr.kind
    if expr.kind == "float":
        assert got.dtype == np.float32


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


@settings(max_examples=200, deadline=None)
@given(st.one_of(ints(3), bools(3), floats(2)))
def test_json_gives_the_same_expression(tree: Tree) -> None:
    expr = construct(tree)
    text = json.dumps(to_json(expr))
    again = from_json(json.loads(text), VARIABLES)
    values, sources = grid((2, 3, 4, 5, 2)), run_time((2, 3, 4, 5, 2))
    got, wanted = (evaluate(e, values, sources) for e in (again, expr))
    np.testing.assert_array_equal(got, wanted)
    assert again.kind == expr.kind
    # Numbers may move into a selection of integers when it is read again.
    if not any(isinstance(e, Op) and e.name == "where" and e.kind == "int" for e in walk(expr)):
        assert again == expr
        assert json.dumps(to_json(again)) == text


@pytest.mark.parametrize(
    ("expr", "wanted"),
    [
        (ge(q, k), ["ge0", ["add", ["mul", -1, "k"], "q"]]),
        (and_(IS_REAL, ge0(k)), ["load", "is_real", "bool", ["b", "k"]]),
        (TRUE, True),
        (integer(-3), -3),
        (Const(0.1), ["float_const", "0.1"]),
        (Const(float("-inf")), ["float_const", "-inf"]),
        (Load("t", (integer(2), q), "float"), ["load", "t", "float", [2, "q"]]),
    ],
    ids=repr,
)
def test_json_form(expr: Expr, wanted: Any) -> None:
    assert to_json(expr) == wanted
    assert from_json(wanted, VARIABLES) == expr


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("x", "'x' is not a mask expression"),
        (None, "None is not a mask expression"),
        (1.5, "1.5 is not a mask expression"),
        ([], "[] is not a mask expression"),
        ({"ge0": 1}, "mask operation 'ge0' with 0 arguments"),
        (["power", "q", 2], "unknown mask operation 'power'; wanted one of ['abs', 'add', "),
        (["ge0"], "mask operation 'ge0' with 0 arguments"),
        (["ge0", "q", "k"], "mask operation 'ge0' with 2 arguments"),
        (["where", True, 1], "mask operation 'where' with 2 arguments"),
        (["add"], "mask operation 'add' with 0 arguments"),
        (["floordiv", "q"], "mask operation 'floordiv' with 1 arguments"),
        (["floordiv", "q", 0], "mask operation 'floordiv' divides by 0"),
        (["mod", 7, ["add", "q", ["mul", -1, "q"]]], "mask operation 'mod' divides by 0"),
        (["ge0", ["ge0", "q"]], "mask operation 'ge0' on bool"),
        (["ge0", ["float_const", "-inf"]], "mask operation 'ge0' on float"),
        (["and", "q", "k"], "mask operation 'and' on int, int"),
        (["not", "q"], "mask operation 'not' on int"),
        (["add", "q", True], "mask operation 'add' on int, bool"),
        (["where", "q", 1, 2], "mask operation 'where' on int, int, int"),
        (["where", True, 1, False], "mask operation 'where' on bool, int, bool"),
        (["fadd", "q", ["float_const", "1"]], "mask operation 'fadd' on int, float"),
        (["float", ["float_const", "1"]], "mask operation 'float' on float"),
        (["float_const"], "is not a mask expression"),
        (["float_const", "one"], "is not a mask expression"),
        (["float_const", "nan"], "is not a mask expression"),
        (["fmul", ["float_const", "inf"], ["float_const", "0"]], "is not a mask expression"),
        (["load", "t", "int"], "is not a mask expression"),
        (["load", "t", "text", ["q"]], "is not a mask expression"),
        (["load", "t", ["int"], ["q"]], "is not a mask expression"),
        (["load", "t", "int", [["ge0", "q"]]], "load of 't' with an index of kind bool"),
        (["load", "t", "int", [["float_const", "1"]]], "load of 't' with an index of kind float"),
    ],
    ids=str,
)
def test_damaged_json_is_refused(data: Any, message: str) -> None:
    with pytest.raises(MalformedNodeError) as caught:
        from_json(data, VARIABLES)
    assert message in str(caught.value)


def test_json_without_end_is_refused() -> None:
    data: Any = "q"
    for _ in range(100_000):
        data = ["not", data]
    with pytest.raises(MalformedNodeError, match="nested too deeply"):
        from_json(data, VARIABLES)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (ge(q, k), "-k + q >= 0"),
        (ge(sub(add(q, Sk), Sq), k), "Sk - Sq - k + q >= 0"),
        (
            ge(integer(8), absolute(sub(q, k))),
            "-k + q + 8 >= 0 and k - q + 8 >= 0",
        ),
        (and_(ge(q, k), IS_REAL), "is_real[b, k] and -k + q >= 0"),
        (
            or_(ge(q, k), and_(IS_REAL, ge(k, integer(3)))),
            "(is_real[b, k] and k - 3 >= 0) or -k + q >= 0",
        ),
        (and_(IS_REAL, or_(eq0(q), eq0(k))), "is_real[b, k] and (k == 0 or q == 0)"),
        (not_(IS_REAL), "not is_real[b, k]"),
        (not_(eq0(POSITION)), "position[b, k] != 0"),
        (eq(q, k), "-k + q == 0"),
        (floordiv(q, integer(4)), "(q // 4)"),
        (floordiv(add(q, k), Sk), "((k + q) // Sk)"),
        (mod(h, mul(Sk, Sq)), "(h % (Sk * Sq))"),
        (floordiv(mul(q, k), Sk), "((k * q) // Sk)"),
        (mul(integer(3), floordiv(q, integer(4))), "3 * (q // 4)"),
        (absolute(sub(q, k)), "|-k + q|"),
        (minimum(q, sub(k, integer(1))), "min(k - 1, q)"),
        (mul(integer(-2), q), "-2 * q"),
        (sub(integer(-2), q), "-q - 2"),
        (sub(mul(q, q), mul(k, k)), "-k * k + q * q"),
        (where(IS_REAL, Const(0.0), Const(-1e4)), "(0 if is_real[b, k] else -10000)"),
        (
            fmul(Const(-0.5), to_float(absolute(sub(q, k)))),
            "(-0.5 * float(|-k + q|))",
        ),
        (fadd(SLOPE, to_float(POSITION)), "(slope[h] + float(position[b, k]))"),
        (TRUE, "True"),
        (Const(float("-inf")), "-inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text(expr: Expr, text: str) -> None:
    assert to_text(expr) == text


@settings(max_examples=100, deadline=None)
@given(st.one_of(ints(3), bools(3)), SIZES)
def test_substitution_is_evaluation_elsewhere(tree: Tree, sizes: tuple[int, ...]) -> None:
    """k becomes (k + q) % Sk, a value of its range; B becomes 2 * B."""
    expr = construct(tree)
    moved = {"k": mod(add(k, q), Sk), "B": mul(integer(2), B)}
    replaced = substitute(expr, lambda e: moved.get(e.name) if isinstance(e, Var) else None)
    values, sources = grid(sizes), run_time(sizes)
    elsewhere = {**values, "k": (values["k"] + values["q"]) % sizes[3], "B": 2 * values["B"]}
    got, wanted = evaluate(replaced, values, sources), evaluate(expr, elsewhere, sources)
    np.testing.assert_array_equal(*np.broadcast_arrays(got, wanted))


def test_substitution_offers_loads_with_their_new_index() -> None:
    offered = []

    def replace(expr: Expr) -> Expr | None:
        if isinstance(expr, Load):
            offered.append(expr)
            return None if expr.source == "kept" else ge(q, expr.index[1])
        return q if expr == k else None

    expr = and_(IS_REAL, Load("kept", (k,), "bool"))
    assert substitute(expr, replace) == Load("kept", (q,), "bool")  # q >= q is true
    assert set(offered) == {Load("is_real", (b, q), "bool"), Load("kept", (q,), "bool")}


def test_evaluation_rounds_loaded_floats_to_float32() -> None:
    load = Load("slope", (h,), "float")
    thirds = np.asarray([1 / 3])
    half = np.asarray([1 / 3], np.float16)
    for source in (thirds, half):
        got = evaluate(fadd(load, load), grid((1, 1, 1, 1, 1)), {"slope": source})
        wanted = source.astype(np.float32) + source.astype(np.float32)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got.reshape(-1), wanted)


def test_evaluation_reads_bool_loads_as_truth() -> None:
    sources = {"is_real": np.asarray([[0, 1, 2]], np.int8)}
    got = evaluate(not_(IS_REAL), grid((1, 1, 1, 3, 1)), sources)
    np.testing.assert_array_equal(got.reshape(-1), [True, False, False])
    got = evaluate(IS_REAL, grid((1, 1, 1, 3, 1)), sources)
    assert got.dtype == np.bool_


def test_a_load_outside_its_tensor_is_an_error() -> None:
    with pytest.raises(IndexError):
        evaluate(IS_REAL, grid((1, 1, 1, 4, 1)), {"is_real": np.ones((1, 3), np.bool_)})


def test_nan_is_no_constant() -> None:
    with pytest.raises(FloatingPointError, match="NaN"):
        Const(float("nan"))


@pytest.mark.parametrize(
    "make", [lambda: to_bool(SLOPE), lambda: to_int(SLOPE)], ids=["to_bool", "to_int"]
)
def test_a_run_time_float_has_no_truth_and_no_integer(make: Callable[[], Expr]) -> None:
    with pytest.raises(NotImplementedError):
        make()


def test_kinds_are_part_of_a_constant() -> None:
    assert Const(True) != Const(1)
    assert Const(1) != Const(1.0)
    assert len({Const(True), Const(1), Const(1.0)}) == 3


def test_walk_visits_each_expression_once() -> None:
    expr = and_(ge(q, k), IS_REAL)
    assert len(list(walk(expr))) == len(set(walk(expr)))
    assert variables(expr) == {"b", "q", "k"}
    assert loads(or_(expr, and_(IS_REAL, eq0(POSITION)))) == [IS_REAL, POSITION] or set(
        loads(or_(expr, and_(IS_REAL, eq0(POSITION))))
    ) == {IS_REAL, POSITION}


def test_wide_choices_are_left_alone() -> None:
    """Distributing has a limit, so that expressions can't explode."""
    choice: Expr = Const(1.0)
    for number in range(2, 8):
        choice = where(eq0(sub(k, integer(number))), Const(float(number)), choice)
    product = fmul(choice, choice)
    assert isinstance(product, Op)
    assert product.name == "fmul"
    assert len(list(walk(product))) < 80
