"""Families: which name and parameters a mask program gets, and what is not taken for one."""

from __future__ import annotations

import pytest

from stof_onnx.ir.expr import Const, Expr, Load
from stof_onnx.ir.expr.build import (
    FALSE,
    TRUE,
    absolute,
    add,
    and_,
    eq,
    eq0,
    fmul,
    ge,
    ge0,
    gt,
    integer,
    maximum,
    mod,
    mul,
    not_,
    or_,
    sub,
    to_float,
)
from stof_onnx.ir.mask import MaskKind, MaskProgram, Operand, classify
from stof_onnx.ir.mask.program import B_INDEX, H_INDEX, K_INDEX, KEYS, Q_INDEX, QUERIES

b, h, q, k = B_INDEX, H_INDEX, Q_INDEX, K_INDEX
START = sub(q, k)
END = sub(sub(add(q, KEYS), QUERIES), k)
CAUSAL = ge0(START)

OPERANDS = (
    Operand("padding", "tensor", 2),
    Operand("lengths", "tensor", 1),
    Operand("global", "tensor", 1),
    Operand("by_head", "tensor", 2),
    Operand("document", "tensor", 2),
    Operand("dense", "tensor", 4),
    Operand("dense_qk", "tensor", 2),
    Operand("table", "block_table", 3, (1, 128, 256), (64, 64)),
    Operand("table_by_head", "block_table", 3, (4, 64, 64), (64, 64)),
)

PADDING = Load("padding", (b, k), "bool")
QUERY_PADDING = Load("padding", (b, q), "bool")
LENGTH = Load("lengths", (b,), "int")
DENSE = Load("dense", (b, h, q, k), "bool")
TABLE = Load("table", (integer(0), q, k), "bool")


def at_most(distance: Expr, width: int) -> Expr:
    return ge(integer(width), distance)


def kind_of(keep: Expr, bias: Expr | None = None) -> MaskKind:
    program = MaskProgram(keep, bias, operands=OPERANDS)
    program.validate()
    return classify(program)


BANDS = [
    (CAUSAL, "causal", {"alignment": "start"}),
    (ge(q, k), "causal", {"alignment": "start"}),
    (gt(add(q, integer(1)), k), "causal", {"alignment": "start"}),
    (not_(gt(k, q)), "causal", {"alignment": "start"}),
    (ge0(END), "causal", {"alignment": "end"}),
    (
        and_(CAUSAL, gt(integer(8), START)),
        "causal_sliding_window",
        {"window_left": 7, "window_right": 0, "alignment": "start"},
    ),
    (
        and_(ge0(END), at_most(END, 8)),
        "causal_sliding_window",
        {"window_left": 8, "window_right": 0, "alignment": "end"},
    ),
    (
        at_most(absolute(START), 8),
        "sliding_window",
        {"window_left": 8, "window_right": 8, "alignment": "start"},
    ),
    (
        at_most(absolute(END), 5),
        "sliding_window",
        {"window_left": 5, "window_right": 5, "alignment": "end"},
    ),
    (
        and_(at_most(START, 3), ge(START, integer(-6))),
        "sliding_window",
        {"window_left": 3, "window_right": 6, "alignment": "start"},
    ),
    # one side only
    (at_most(START, 4), "sliding_window", {"window_left": 4, "alignment": "start"}),
    (ge(START, integer(-4)), "sliding_window", {"window_right": 4, "alignment": "start"}),
    # not even the query's own key
    (ge(q, add(k, integer(1))), "sliding_window", {"window_right": -1, "alignment": "start"}),
    (
        and_(gt(q, k), at_most(START, 4)),
        "sliding_window",
        {"window_left": 4, "window_right": -1, "alignment": "start"},
    ),
    # the narrower of two bounds counts
    (
        and_(CAUSAL, at_most(absolute(START), 8)),
        "causal_sliding_window",
        {"window_left": 8, "window_right": 0, "alignment": "start"},
    ),
    (
        and_(at_most(START, 9), at_most(START, 4), CAUSAL),
        "causal_sliding_window",
        {"window_left": 4, "window_right": 0, "alignment": "start"},
    ),
]

OTHERS = [
    (TRUE, "none", {}),
    (PADDING, "padding", {"padding_input": "padding"}),
    (not_(PADDING), "padding", {"padding_input": "padding"}),
    (eq0(Load("padding", (b, k), "int")), "padding", {"padding_input": "padding"}),
    (gt(LENGTH, k), "padding", {"padding_input": "lengths"}),
    (ge0(sub(add(k, LENGTH), KEYS)), "padding", {"padding_input": "lengths"}),
    (Load("global", (k,), "bool"), "padding", {"padding_input": "global"}),
    (and_(PADDING, gt(LENGTH, k)), "padding", {"padding_input": "lengths, padding"}),
    (or_(PADDING, gt(LENGTH, k)), "padding", {"padding_input": "lengths, padding"}),
    (DENSE, "dense", {}),
    (not_(DENSE), "dense", {}),
    (Load("dense_qk", (q, k), "bool"), "dense", {}),
    (or_(DENSE, CAUSAL), "dense", {}),
    (TABLE, "arbitrary", {"table": "128x256"}),
    (or_(TABLE, CAUSAL), "arbitrary", {"table": "128x256"}),
    (Load("table_by_head", (h, q, k), "bool"), "arbitrary", {"table": "4x64x64"}),
]

JOINED = [
    (and_(CAUSAL, PADDING), "causal+padding", {"alignment": "start", "padding_input": "padding"}),
    (
        and_(ge0(END), gt(LENGTH, k)),
        "causal+padding",
        {"alignment": "end", "padding_input": "lengths"},
    ),
    (
        and_(at_most(absolute(START), 2), PADDING),
        "sliding_window+padding",
        {"window_left": 2, "window_right": 2, "alignment": "start", "padding_input": "padding"},
    ),
    (and_(TABLE, PADDING), "arbitrary+padding", {"table": "128x256", "padding_input": "padding"}),
    (and_(TABLE, CAUSAL), "causal+arbitrary", {"table": "128x256", "alignment": "start"}),
    (and_(DENSE, CAUSAL), "causal+dense", {"alignment": "start"}),
    (
        and_(DENSE, CAUSAL, PADDING, TABLE),
        "causal+arbitrary+dense+padding",
        {"alignment": "start", "table": "128x256", "padding_input": "padding"},
    ),
    # the part that nobody knows makes the whole arbitrary
    (
        and_(CAUSAL, QUERY_PADDING),
        "arbitrary+causal",
        {"alignment": "start"},
    ),
    (
        and_(PADDING, eq0(mod(START, integer(4)))),
        "arbitrary+padding",
        {"padding_input": "padding"},
    ),
    (
        and_(TABLE, QUERY_PADDING, CAUSAL),
        "causal+arbitrary",
        {"alignment": "start", "table": "128x256"},
    ),
]

NEAR_MISSES = {
    "nothing kept": FALSE,
    "every second key": eq0(mod(k, integer(2))),
    "dilated": eq0(mod(START, integer(4))),
    "a wall": gt(integer(8), k),
    "a prefix of queries": gt(integer(8), q),
    "the diagonal": eq(q, k),
    "twice the distance": ge0(sub(mul(integer(2), q), k)),
    "a sum of positions": ge0(sub(integer(9), add(q, k))),
    "aligned elsewhere": ge0(sub(sub(add(q, QUERIES), KEYS), k)),
    "aligned at twice the end": ge0(sub(add(q, mul(integer(2), sub(KEYS, QUERIES))), k)),
    "causal but by head": ge0(add(START, h)),
    "a window that grows with the head": ge0(sub(add(h, integer(4)), START)),
    "a window of run-time width": ge0(sub(LENGTH, START)),
    "a window or global keys": or_(at_most(absolute(START), 4), gt(integer(2), k)),
    "not a window": gt(absolute(START), integer(4)),
    "causal or padding": or_(CAUSAL, PADDING),
    "prefix or causal": or_(CAUSAL, gt(LENGTH, k)),
    "query padding": QUERY_PADDING,
    "padding by head": Load("by_head", (h, k), "bool"),
    "padding of a head": or_(PADDING, eq0(h)),
    "padding and query padding in one": or_(PADDING, QUERY_PADDING),
    "batches that are switched off": gt(LENGTH, integer(0)),
    "documents": eq(Load("document", (b, q), "int"), Load("document", (b, k), "int")),
    "a maximum": ge0(maximum(START, sub(k, integer(30)))),
}


@pytest.mark.parametrize(
    ("keep", "name", "parameters"), BANDS + OTHERS + JOINED, ids=lambda v: repr(v)[:50]
)
def test_families(keep: Expr, name: str, parameters: dict[str, int | str]) -> None:
    assert kind_of(keep) == MaskKind(name, parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", NEAR_MISSES.values(), ids=list(NEAR_MISSES))
def test_near_misses_are_arbitrary(keep: Expr) -> None:
    assert kind_of(keep) == MaskKind("arbitrary", {})


def test_two_alignments_are_two_masks() -> None:
    kind = kind_of(and_(CAUSAL, at_most(END, 4)))
    assert kind == MaskKind("arbitrary+causal", {"alignment": "start"})


@pytest.mark.parametrize(
    ("keep", "name"),
    [
        (TRUE, "bias"),
        (CAUSAL, "causal+bias"),
        (eq(q, k), "arbitrary+bias"),
        (TABLE, "arbitrary+bias"),
    ],
    ids=["none", "causal", "diagonal", "table"],
)
def test_a_bias_is_named(keep: Expr, name: str) -> None:
    slope = fmul(Const(-0.5), to_float(absolute(START)))
    assert kind_of(keep, slope).name == name
