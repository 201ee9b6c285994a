"""Expressions as text and JSON, substitution, and edges of evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import (
    Const,
    Expr,
    Load,
    Op,
    Var,
    evaluate,
    from_json,
    loads,
    substitute,
    to_json,
    to_text,
    variables,
    walk,
)
from stof_onnx.ir.expr.build import (
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
    integer,
    minimum,
    mod,
    mul,
    not_,
    or_,
    sub,
    to_bool,
    to_float,
    to_int,
    where,
)
from tests.ir.expression_trees import (
    IS_REAL,
    POSITION,
    SIZES,
    SLOPE,
    VARIABLES,
    B,
    Sk,
    Sq,
    Tree,
    b,
    bools,
    construct,
    floats,
    grid,
    h,
    ints,
    k,
    q,
    run_time,
)


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
