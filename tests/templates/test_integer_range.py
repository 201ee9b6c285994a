"""fits_int32 against exact evaluation, step by step as the kernels compute."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx.ir.expr import Const, Expr, Load, Op, Var
from stof_onnx.ir.expr.build import (
    absolute,
    add,
    eq0,
    floordiv,
    ge,
    integer,
    maximum,
    minimum,
    mod,
    mul,
    neg,
    sub,
    where,
)
from stof_onnx.ir.mask.program import K_INDEX, KEYS, Q_INDEX, QUERIES
from stof_onnx.ir.plan import DataType
from stof_onnx.templates.integer_range import LARGEST_DIMENSION, fits_int32
from tests.ir.expression_trees import bools, construct, ints

q, k = Q_INDEX, K_INDEX
LOADED = {
    DataType.INT8: (-128, 127),
    DataType.INT32: (-(2**31), 2**31 - 1),
    DataType.INT64: (-(2**63), 2**63 - 1),
}
TYPES = {
    "position": DataType.INT8,
    "is_real": DataType.INT8,
    "byte": DataType.INT8,
    "word": DataType.INT32,
    "long": DataType.INT64,
}


def load(name: str) -> Load:
    return Load(name, (k,), "int")


@pytest.mark.parametrize(
    ("fitting", "near_miss"),
    [
        (mul(q, integer(127)), mul(q, integer(128))),
        # 128 * 2^24 is 2^31, which is too large by 1; -2^31 isn't too small.
        (mul(q, integer(-128)), mul(q, integer(-129))),
        (sub(mul(q, integer(-127)), k), sub(mul(q, integer(-128)), k)),
        (add(mul(q, integer(63)), mul(k, integer(64))), mul(add(q, k), integer(64))),
        (load("byte"), load("long")),
        (load("word"), add(load("word"), integer(1))),
        (minimum(load("word"), q), minimum(load("long"), q)),
        (mod(load("word"), integer(7)), mod(load("long"), integer(7))),
        (floordiv(q, integer(-3)), floordiv(load("word"), integer(-1))),
        (absolute(load("byte")), absolute(load("word"))),
        (mul(load("byte"), q), mul(load("byte"), mul(q, k))),
        (mul(load("byte"), integer(2**24)), mul(load("byte"), integer(2**24 + 1))),
        (integer(2**31 - 1), integer(2**31)),
        (integer(-(2**31)), integer(-(2**31) - 1)),
        (where(eq0(q), integer(2**31 - 1), q), where(eq0(q), integer(2**31), q)),
        (ge(mul(q, integer(100)), k), ge(mul(q, QUERIES), k)),
        # A negative quotient is rounded away from 0.
        (
            mul(floordiv(load("byte"), integer(3)), integer(2**31 // 129)),
            mul(floordiv(load("byte"), integer(3)), integer(2**31 // 129 + 1)),
        ),
        # What is compared or looked up counts as well as what comes of it.
        (Load("is_real", (mul(k, integer(9)),), "bool"), Load("is_real", (mul(k, k),), "bool")),
        (eq0(mod(sub(q, k), integer(3))), eq0(mod(mul(q, KEYS), integer(3)))),
    ],
)  # fmt: skip
def test_near_misses(fitting, near_miss):
    assert fits_int32(fitting, TYPES)
    assert not fits_int32(near_miss, TYPES)


def test_a_partial_result_counts():
    # -2^31 negated is the step that leaves 32 bits, before the sum comes back to 0.
    assert not fits_int32(Op("add", (load("word"), neg(load("word"))), "int"), TYPES)
    large, small = integer(2**31 - 1), integer(-(2**24))
    assert fits_int32(Op("add", (q, small, large), "int"), TYPES)
    assert not fits_int32(Op("add", (q, large, small), "int"), TYPES)
    assert not fits_int32(Op("mul", (q, k, integer(0)), "int"), TYPES)
    assert fits_int32(Op("mul", (q, integer(0), k), "int"), TYPES)


def steps(expr: Expr, point: dict[str, int], loaded: dict[str, int], made: list[int]) -> int:
    """The value of an expression in exact integers; ``made`` gets everything computed on the way.

    Bools are 0 and 1. Both sides of a where are computed, as in a kernel.
    """
    if isinstance(expr, Const):
        value = int(expr.value)
    elif isinstance(expr, Var):
        value = point[expr.name]
    elif isinstance(expr, Load):
        for index in expr.index:
            steps(index, point, loaded, made)
        value = loaded[expr.source] if expr.kind == "int" else loaded[expr.source] % 2
    else:
        assert isinstance(expr, Op)
        value = operation(expr, [steps(arg, point, loaded, made) for arg in expr.args], made)
    if expr.kind == "int":
        made.append(value)
    return value


def operation(expr: Op, args: list[int], made: list[int]) -> int:
    if expr.name in ("add", "mul", "and", "or"):
        value = args[0]
        for arg in args[1:]:
            value = {
                "add": value + arg, "mul": value * arg, "and": value & arg, "or": value | arg,
            }[expr.name]  # fmt: skip
            if expr.kind == "int":
                made.append(value)
        return value
    if expr.name in ("floordiv", "mod"):
        a, b = args
        if b == 0:  # programs don't divide by 0
            return 0
        truncated = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        # What C++ computes before it corrects the rounding.
        made += [truncated, a - truncated * b]
        return a // b if expr.name == "floordiv" else a % b
    return {
        "abs": abs,
        "min": min,
        "max": max,
        "ge0": lambda x: int(x >= 0),
        "eq0": lambda x: int(x == 0),
        "not": lambda x: 1 - x,
        "where": lambda c, x, y: x if c else y,
    }[expr.name](*args)


EDGES = [1, 2, 3, 181, 46341, LARGEST_DIMENSION - 1, LARGEST_DIMENSION]


@st.composite
def points(draw):
    """Values of the variables, mostly at the edges of what they can be."""
    size = st.one_of(st.sampled_from(EDGES), st.integers(1, LARGEST_DIMENSION))
    point = {}
    for dimension, index in (("B", "b"), ("H", "h"), ("Sq", "q"), ("Sk", "k"), ("Sp", "p")):
        point[dimension] = draw(size)
        edges = [0, point[dimension] // 2, point[dimension] - 1]
        point[index] = draw(st.sampled_from(edges))
    loaded = {}
    for name, dtype in TYPES.items():
        low, high = LOADED[dtype]
        loaded[name] = draw(st.sampled_from([low, -1, 0, 1, high]))
    return point, loaded


def scaled(trees):
    """Trees times constants that bring them to the edge of 32 bits, and loads of every type."""
    edge = st.sampled_from([1, 100, 127, 128, -128, 2**20, 2**31 - 1, -(2**31)]).map(integer)
    divisor = st.sampled_from([2, -1, -3]).map(integer)
    leaf = st.sampled_from([load("byte"), load("word"), load("long")])
    return st.one_of(
        trees,
        st.tuples(st.just("mul"), trees, edge),
        st.tuples(st.sampled_from(["add", "sub", "minimum", "maximum"]), trees, leaf),
        st.tuples(st.sampled_from(["floordiv", "mod"]), leaf, divisor),
        st.tuples(st.just("absolute"), leaf),
    )


@settings(max_examples=400, deadline=None)
@given(st.one_of(scaled(ints(2)), bools(3)), st.lists(points(), min_size=1, max_size=8))
def test_what_is_said_to_fit_fits(tree, some):
    expr = construct(tree)
    if not fits_int32(expr, TYPES):
        return
    for point, loaded in some:
        made: list[int] = []
        steps(expr, point, loaded, made)
        assert all(-(2**31) <= value < 2**31 for value in made), (expr, point, loaded)


@pytest.mark.parametrize("name", ["floordiv", "mod", "minimum", "maximum", "add", "sub", "mul"])
def test_every_pair_of_small_numbers(name):
    """Two leaves of 8 bits, at all pairs of their values that matter: exact, or too wide by 1."""
    functions = {
        "floordiv": floordiv, "mod": mod, "minimum": minimum, "maximum": maximum,
        "add": add, "sub": sub, "mul": mul,
    }  # fmt: skip
    byte = {"x": DataType.INT8, "y": DataType.INT8}
    x, y = Load("x", (q,), "int"), Load("y", (k,), "int")
    values = []
    for a, b in product(range(-128, 128, 5), [-128, -3, -1, 1, 2, 127]):
        made: list[int] = []
        steps(functions[name](x, y), {"q": 0, "k": 0}, {"x": a, "y": b}, made)
        values += made
    # Scaled so that the largest value is the last that fits: one more and it must be refused.
    largest = max(abs(value) for value in values)
    assert not fits_int32(mul(functions[name](x, y), integer(2**31 // largest + 1)), byte)
    assert fits_int32(mul(functions[name](x, y), integer((2**31 - 1) // (largest + 130))), byte)
