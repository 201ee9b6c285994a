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
    not_,
    or_,
    sub,
    to_float,
    where,
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
    Operand("slopes", "tensor", 1),
    Operand("is_global", "tensor", 2),
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
        "dilated+padding",
        {"dilation": 4, "alignment": "start", "padding_input": "padding"},
    ),
    (
        and_(PADDING, eq0(mod(k, integer(4)))),
        "arbitrary+padding",
        {"padding_input": "padding"},
    ),
    (
        and_(PADDING, QUERY_PADDING, CAUSAL),
        "causal+padding",
        {"alignment": "start", "padding_input": "padding", "padding_queries": "padding"},
    ),
    (
        and_(TABLE, QUERY_PADDING, CAUSAL),
        "causal+arbitrary",
        {"alignment": "start", "table": "128x256"},
    ),
]


def chunk_of(position: Expr, size: int) -> Expr:
    return floordiv(position, integer(size))


def before(position: Expr, count: int) -> Expr:
    return gt(integer(count), position)


QUERY_AT_END = sub(add(q, KEYS), QUERIES)
WINDOW = at_most(absolute(START), 4)
WINDOW_4 = {"window_left": 4, "window_right": 4, "alignment": "start"}
EVERY_3 = eq0(mod(START, integer(3)))

DILATED = [
    (and_(at_most(absolute(START), 6), EVERY_3), 6, 6, "start"),
    (and_(CAUSAL, at_most(START, 6), EVERY_3), 6, 0, "start"),
    (and_(CAUSAL, EVERY_3), None, 0, "start"),
    (EVERY_3, None, None, "start"),
    # the same remainder, written in other ways
    (and_(CAUSAL, eq0(mod(sub(k, q), integer(3)))), None, 0, "start"),
    (and_(CAUSAL, eq0(mod(absolute(START), integer(3)))), None, 0, "start"),
    (and_(CAUSAL, eq(mod(q, integer(3)), mod(k, integer(3)))), None, 0, "start"),
    (and_(CAUSAL, eq(mod(add(START, integer(1)), integer(3)), integer(1))), None, 0, "start"),
    (
        not_(or_(gt(k, q), gt(START, integer(6)), not_(EVERY_3))),
        6,
        0,
        "start",
    ),
    (and_(ge0(END), at_most(END, 9), eq0(mod(END, integer(3)))), 9, 0, "end"),
    (and_(at_most(absolute(END), 9), eq0(mod(sub(k, QUERY_AT_END), integer(3)))), 9, 9, "end"),
]

CHUNKED = [
    (eq(chunk_of(q, 8), chunk_of(k, 8)), "chunked", {"alignment": "start"}),
    (eq(chunk_of(k, 8), chunk_of(q, 8)), "chunked", {"alignment": "start"}),
    (eq(chunk_of(QUERY_AT_END, 8), chunk_of(k, 8)), "chunked", {"alignment": "end"}),
    (and_(CAUSAL, eq(chunk_of(q, 8), chunk_of(k, 8))), "causal+chunked", {"alignment": "start"}),
    # from the first key of the chunk on
    (
        and_(CAUSAL, ge(k, mul(integer(8), chunk_of(q, 8)))),
        "causal+chunked",
        {"alignment": "start"},
    ),
    (
        and_(ge0(END), ge(k, mul(integer(8), chunk_of(QUERY_AT_END, 8)))),
        "causal+chunked",
        {"alignment": "end"},
    ),
    (
        and_(
            ge(k, mul(integer(8), chunk_of(q, 8))),
            gt(add(mul(integer(8), chunk_of(q, 8)), integer(8)), k),
        ),
        "chunked",
        {"alignment": "start"},
    ),
    (
        and_(at_most(START, 9), ge(k, mul(integer(8), chunk_of(q, 8)))),
        "sliding_window+chunked",
        {"window_left": 9, "chunks_left": 0, "alignment": "start"},
    ),
    # blocks of queries see their own block and the one before
    (
        and_(
            ge(integer(1), sub(chunk_of(q, 8), chunk_of(k, 8))),
            ge(chunk_of(q, 8), chunk_of(k, 8)),
        ),
        "chunked",
        {"chunks_left": 1, "chunks_right": 0, "alignment": "start"},
    ),
    (ge(chunk_of(q, 8), chunk_of(k, 8)), "chunked", {"chunks_right": 0, "alignment": "start"}),
]

PREFIX = [
    (or_(CAUSAL, before(k, 5)), {"prefix": 5, "alignment": "start"}),
    (not_(and_(gt(k, q), ge(k, integer(5)))), {"prefix": 5, "alignment": "start"}),
    (or_(before(k, 5), ge0(END)), {"prefix": 5, "alignment": "end"}),
    (or_(CAUSAL, and_(before(q, 5), before(k, 5))), {"prefix": 5, "alignment": "start"}),
    (or_(CAUSAL, gt(LENGTH, k)), {"prefix_input": "lengths", "alignment": "start"}),
    (
        or_(ge0(END), and_(before(QUERY_AT_END, 5), before(k, 5))),
        {"prefix": 5, "alignment": "end"},
    ),
    (where(before(k, 5), TRUE, CAUSAL), {"prefix": 5, "alignment": "start"}),
]

DOCUMENTS = [
    (eq(Load("document", (b, q), "int"), Load("document", (b, k), "int")), "document"),
    (eq(Load("document", (b, k), "int"), Load("document", (b, QUERY_AT_END), "int")), "document"),
    (eq(Load("lengths", (q,), "int"), Load("lengths", (k,), "int")), "lengths"),
    (eq(Load("document", (b, q), "int"), Load("by_head", (b, k), "int")), "by_head, document"),
]

IS_GLOBAL = {index: Load("is_global", (b, index), "bool") for index in (q, k)}

LONGFORMER = [
    (or_(WINDOW, before(k, 2), before(q, 2)), {**WINDOW_4, "global_tokens": 2}),
    (or_(or_(before(k, 2), WINDOW), before(q, 2)), {**WINDOW_4, "global_tokens": 2}),
    (or_(WINDOW, before(k, 2)), {**WINDOW_4, "global_keys": 2}),
    (or_(WINDOW, before(k, 2), before(q, 1)), {**WINDOW_4, "global_keys": 2, "global_queries": 1}),
    (or_(WINDOW, IS_GLOBAL[q], IS_GLOBAL[k]), {**WINDOW_4, "global_input": "is_global"}),
    (
        or_(at_most(absolute(END), 4), before(k, 2), before(QUERY_AT_END, 2)),
        {**WINDOW_4, "alignment": "end", "global_tokens": 2},
    ),
    # each bound with the global tokens of its own
    (
        and_(or_(at_most(START, 4), before(k, 2)), or_(ge(START, integer(-4)), before(k, 2))),
        {**WINDOW_4, "global_keys": 2},
    ),
    # what is dropped
    (
        not_(and_(gt(absolute(START), integer(4)), ge(k, integer(2)), ge(q, integer(2)))),
        {**WINDOW_4, "global_tokens": 2},
    ),
    (where(before(k, 2), TRUE, WINDOW), {**WINDOW_4, "global_keys": 2}),
    (
        or_(
            at_most(absolute(sub(chunk_of(q, 8), chunk_of(k, 8))), 1),
            before(q, 8),
            before(k, 8),
        ),
        {"chunk": 8, "chunks_left": 1, "chunks_right": 1, "alignment": "start", "global_tokens": 8},
    ),
    (
        or_(and_(WINDOW, eq0(mod(START, integer(2)))), before(k, 2)),
        {**WINDOW_4, "dilation": 2, "global_keys": 2},
    ),
]

CAUSAL_LONGFORMER = {"window_left": 4, "alignment": "start", "global_keys": 2}
CAUSAL_STRIDED = {"window_left": 7, "alignment": "start", "stride": 8}
FIXED = {"chunk": 8, "alignment": "start", "stride": 8}

UNIONS = [
    (and_(CAUSAL, or_(at_most(START, 4), before(k, 2))), "causal+longformer", CAUSAL_LONGFORMER),
    (
        or_(and_(CAUSAL, at_most(START, 4)), and_(CAUSAL, before(k, 2))),
        "causal+longformer",
        CAUSAL_LONGFORMER,
    ),
    (
        and_(or_(WINDOW, before(k, 2), before(q, 2)), PADDING),
        "longformer+padding",
        {**WINDOW_4, "global_tokens": 2, "padding_input": "padding"},
    ),
    (
        or_(WINDOW, before(k, 2), before(q, 2), TABLE),
        "bigbird",
        {**WINDOW_4, "global_tokens": 2, "table": "128x256"},
    ),
    (
        and_(CAUSAL, or_(at_most(START, 7), eq0(mod(START, integer(8))))),
        "causal+strided",
        CAUSAL_STRIDED,
    ),
    (
        or_(and_(CAUSAL, at_most(START, 7)), and_(CAUSAL, eq0(mod(START, integer(8))))),
        "causal+strided",
        CAUSAL_STRIDED,
    ),
    (or_(WINDOW, eq0(mod(START, integer(8)))), "strided", {**WINDOW_4, "stride": 8}),
    (
        and_(CAUSAL, or_(eq(chunk_of(q, 8), chunk_of(k, 8)), eq(mod(k, integer(8)), integer(7)))),
        "causal+strided",
        {**FIXED, "stride_keys": 1},
    ),
    (
        or_(eq(chunk_of(q, 8), chunk_of(k, 8)), ge(mod(k, integer(8)), integer(6))),
        "strided",
        {**FIXED, "stride_keys": 2},
    ),
    (
        and_(CAUSAL, DOCUMENTS[0][0], PADDING),
        "causal+document+padding",
        {"alignment": "start", "document_input": "document", "padding_input": "padding"},
    ),
    (
        and_(at_most(START, 4), or_(CAUSAL, before(k, 5))),
        "sliding_window+prefix",
        {"window_left": 4, "prefix": 5, "alignment": "start"},
    ),
]

NEAR_MISSES = {
    "the second of three": eq(mod(START, integer(3)), integer(1)),
    "a sum of three": eq0(mod(add(q, k), integer(3))),
    "a remainder by head": eq0(mod(add(START, h), integer(3))),
    "remainders of different numbers": eq(mod(q, integer(3)), mod(k, integer(4))),
    "a short remainder": gt(integer(2), mod(START, integer(4))),
    "chunks of different sizes": eq(chunk_of(q, 8), chunk_of(k, 16)),
    "chunks shifted against each other": eq(chunk_of(add(q, integer(1)), 8), chunk_of(k, 8)),
    "not quite the chunk's first key": ge(k, add(mul(integer(8), chunk_of(q, 8)), integer(1))),
    "chunks of positions that are moved twice": ge(
        add(k, mul(integer(3), KEYS)),
        mul(integer(8), chunk_of(add(q, mul(integer(3), KEYS)), 8)),
    ),
    "chunks by head": eq(chunk_of(add(q, h), 8), chunk_of(k, 8)),
    "causal or last keys": or_(CAUSAL, ge(k, integer(5))),
    "causal or prefix of another length": or_(CAUSAL, and_(before(q, 4), before(k, 5))),
    "causal or a prefix of queries": or_(CAUSAL, before(q, 5)),
    "causal or a length by head": or_(CAUSAL, gt(Load("slopes", (h,), "int"), k)),
    "a window or late keys": or_(WINDOW, ge(k, integer(2))),
    "a window and global queries that are aligned elsewhere": or_(WINDOW, before(QUERY_AT_END, 2)),
    "causal or a prefix aligned elsewhere": or_(ge0(END), and_(before(q, 5), before(k, 5))),
    "a window or the head": or_(WINDOW, eq0(h)),
    "a window or flags by head": or_(WINDOW, Load("by_head", (h, k), "bool")),
    "two windows": or_(and_(CAUSAL, at_most(START, 2)), and_(ge0(END), at_most(END, 2))),
    "a window or both ends": or_(WINDOW, and_(before(k, 2), before(q, 2))),
    "a window or early keys of a chunk": or_(WINDOW, gt(integer(2), mod(k, integer(8)))),
    "documents next to each other": eq(
        Load("document", (b, q), "int"), add(Load("document", (b, k), "int"), integer(1))
    ),
    "documents of a head": eq(Load("by_head", (h, q), "int"), Load("by_head", (h, k), "int")),
    "the narrower of two": ge0(minimum(START, sub(k, integer(3)))),
    "nothing kept": FALSE,
    "every second key": eq0(mod(k, integer(2))),
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
    "not a window": gt(absolute(START), integer(4)),
    "causal or padding": or_(CAUSAL, PADDING),
    "query padding": QUERY_PADDING,
    "padding by head": Load("by_head", (h, k), "bool"),
    "padding of a head": or_(PADDING, eq0(h)),
    "padding and query padding in one": or_(PADDING, QUERY_PADDING),
    "batches that are switched off": gt(LENGTH, integer(0)),
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


@pytest.mark.parametrize(
    ("keep", "left", "right", "alignment"), DILATED, ids=[str(i) for i in range(len(DILATED))]
)
def test_dilated(keep: Expr, left: int | None, right: int | None, alignment: str) -> None:
    sides = {"window_left": left, "window_right": right}
    parameters = {side: n for side, n in sides.items() if n is not None}
    expected = {**parameters, "dilation": 3, "alignment": alignment}
    assert kind_of(keep) == MaskKind("dilated", expected)


@pytest.mark.parametrize(
    ("keep", "name", "parameters"), CHUNKED, ids=[str(i) for i in range(len(CHUNKED))]
)
def test_chunked(keep: Expr, name: str, parameters: dict[str, int | float | str]) -> None:
    assert kind_of(keep) == MaskKind(name, {"chunk": 8, **parameters})


@pytest.mark.parametrize(("keep", "parameters"), PREFIX, ids=lambda v: repr(v)[:50])
def test_prefix(keep: Expr, parameters: dict[str, int | float | str]) -> None:
    assert kind_of(keep) == MaskKind("prefix", parameters)


@pytest.mark.parametrize(("keep", "source"), DOCUMENTS, ids=lambda v: repr(v)[:50])
def test_documents(keep: Expr, source: str) -> None:
    assert kind_of(keep) == MaskKind("document", {"document_input": source})


@pytest.mark.parametrize(
    ("keep", "parameters"), LONGFORMER, ids=[str(i) for i in range(len(LONGFORMER))]
)
def test_longformer(keep: Expr, parameters: dict[str, int | float | str]) -> None:
    assert kind_of(keep) == MaskKind("longformer", parameters)


@pytest.mark.parametrize(
    ("keep", "name", "parameters"), UNIONS, ids=[str(i) for i in range(len(UNIONS))]
)
def test_unions(keep: Expr, name: str, parameters: dict[str, int | float | str]) -> None:
    assert kind_of(keep) == MaskKind(name, parameters)


@pytest.mark.parametrize(
    ("keep", "lengths", "name"),
    [
        (ge0(add(START, integer(120))), (8, 128), "causal"),
        (ge0(add(START, integer(120))), (8, 127), "sliding_window"),
        (ge0(add(START, integer(120))), None, "sliding_window"),
        (CAUSAL, (8, 128), "causal"),
        (and_(ge0(add(START, integer(9))), at_most(START, -3)), (5, 14), "causal_sliding_window"),
        (at_most(absolute(add(START, integer(9))), 3), (5, 14), "sliding_window"),
    ],
    ids=["end", "off by one", "unknown", "start", "window", "symmetric"],
)
def test_constant_lengths(keep: Expr, lengths: tuple[int, int] | None, name: str) -> None:
    kind = classify(MaskProgram(keep), lengths=lengths)
    assert kind.name == name
    moved = lengths is not None and lengths[1] - lengths[0] in (120, 9) and keep != CAUSAL
    assert kind.parameters["alignment"] == ("end" if moved else "start")
    if name == "causal_sliding_window":
        assert kind.parameters["window_left"] == 6


SLOPE = Load("slopes", (h,), "float")


@pytest.mark.parametrize(
    ("bias", "name"),
    [
        (fmul(SLOPE, to_float(sub(k, q))), "alibi"),
        (fmul(to_float(mul(integer(-1), absolute(START))), SLOPE), "alibi"),
        (fmul(SLOPE, to_float(k)), "alibi"),
        (fmul(fmul(Const(-2.0), SLOPE), to_float(absolute(END))), "alibi"),
        (fmul(SLOPE, to_float(sub(k, sub(KEYS, integer(1))))), "alibi"),
        (fmul(SLOPE, to_float(q)), "bias"),
        (fmul(SLOPE, to_float(mul(q, k))), "bias"),
        (fmul(SLOPE, to_float(mul(h, k))), "bias"),
        (fmul(SLOPE, to_float(add(absolute(START), k))), "bias"),
        (fmul(SLOPE, to_float(absolute(sub(k, integer(5))))), "bias"),
        (fmul(Load("slopes", (q,), "float"), to_float(START)), "bias"),
        (fmul(SLOPE, fmul(SLOPE, to_float(START))), "bias"),
        (fmul(Const(-0.5), to_float(START)), "bias"),
        (SLOPE, "bias"),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_alibi(bias: Expr, name: str) -> None:
    assert kind_of(TRUE, bias) == MaskKind(name, {})


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
