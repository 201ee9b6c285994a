"""Quantities: arithmetic that templates write, and its values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stof_onnx.ir.errors import InputError
from stof_onnx.ir.plan import Ceil, Quantity, Term, evaluate

B, Sq, Sk = map(Quantity.of, ("B", "Sq", "Sk"))
VALUES = {"B": 3, "Sq": 130, "Sk": 0}


@pytest.mark.parametrize(
    ("quantity", "text", "value"),
    [
        (Quantity(), "0", 0),
        (Quantity.of(0), "0", 0),
        (Quantity.of(7), "7", 7),
        (Sq, "Sq", 130),
        (Sq.ceil(64), "ceil(Sq/64)", 3),
        (Sq.ceil(65), "ceil(Sq/65)", 2),
        (Sq.ceil(1), "Sq", 130),
        (Sq.ceil(8).ceil(8), "ceil(Sq/64)", 3),
        (Sk.ceil(64), "ceil(Sk/64)", 0),
        (Quantity.of(130).ceil(64), "3", 3),
        (Quantity.of(-130).ceil(64), "-2", -2),
        (Quantity().ceil(64), "0", 0),
        (4 * Sq.ceil(64) * B + 128, "4 * B * ceil(Sq/64) + 128", 164),
        (128 + B * Sq.ceil(64) * 4, "4 * B * ceil(Sq/64) + 128", 164),
        (Sq + Sq, "2 * Sq", 260),
        (Sq + -1, "Sq + -1", 129),
        (Sq + -1 * Sq, "0", 0),
        ((Sq + 1) * (B + 2), "B * Sq + B + 2 * Sq + 2", 655),
        (0 * Sq, "0", 0),
    ],
    ids=str,
)
def test_arithmetic_reads_and_computes_as_written(quantity, text, value):
    assert str(quantity) == text
    assert evaluate(quantity, VALUES) == value


def test_equal_sums_in_any_order_are_equal():
    assert B * Sq + Sk + 1 == 1 + Sk + Sq * B


@pytest.mark.parametrize("quantity", [2 * Sq, B * Sq, Sq + 1, 2 * Sq.ceil(4)], ids=str)
def test_only_symbols_and_constants_are_divided(quantity):
    with pytest.raises(ValueError, match="only a symbol or a constant can be"):
        quantity.ceil(2)


@pytest.mark.parametrize("divisor", [0, -1])
def test_divisors_are_positive(divisor):
    with pytest.raises(ValueError, match="division of Sq by"):
        Sq.ceil(divisor)


@given(st.integers(0, 10**6), st.integers(1, 1000), st.integers(1, 1000))
def test_repeated_rounding_up_is_one_division(value, first, second):
    assert evaluate(Sq.ceil(first).ceil(second), {"Sq": value}) == math.ceil(
        math.ceil(value / first) / second
    )


HALF = 2**62


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        (Quantity((Term(HALF), Term(HALF - 1))), 2**63 - 1),
        (Quantity((Term(HALF), Term(HALF))), None),
        (Quantity((Term(-HALF), Term(-HALF))), -(2**63)),
        (Quantity((Term(-HALF), Term(-HALF), Term(-1))), None),
        (Quantity((Term(1, (Ceil("big"), Ceil("two"))),)), None),
        (Quantity((Term(-1, (Ceil("big"), Ceil("two"))),)), -(2**63)),
        (Quantity((Term(1, (Ceil("two"), Ceil("big"), Ceil("zero"))),)), None),
        (Quantity((Term(1, (Ceil("zero"), Ceil("two"), Ceil("big"))),)), 0),
        (Quantity((Term(HALF), Term(HALF), Term(-HALF))), None),
    ],
    ids=str,
)
def test_every_step_stays_in_64_bits(quantity, value):
    symbols = {"big": HALF, "two": 2, "zero": 0}
    if value is None:
        with pytest.raises(InputError, match="overflows 64 bits"):
            evaluate(quantity, symbols)
    else:
        assert evaluate(quantity, symbols) == value
