"""Masks of every family, with odd sizes, as cases of :mod:`tests.templates.mask_on_cpu`.

EXACT are those of which a kernel must skip every empty tile and mask no full one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import Const, Expr, Load
from stof_onnx.ir.expr.build import (
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
    not_,
    or_,
    sub,
    to_float,
    where,
)
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import (
    B_INDEX,
    BATCH,
    H_INDEX,
    HEADS,
    K_INDEX,
    KEYS,
    Q_INDEX,
    QUERIES,
    MaskProgram,
    Operand,
)
from stof_onnx.ir.operators.masked_attention import TableInput
from tests.templates.mask_on_cpu import Case

b, h, q, k = B_INDEX, H_INDEX, Q_INDEX, K_INDEX
SIZES = (2, 4, 37, 53)
_RNG = np.random.default_rng(7)

CAUSAL = ge(q, k)
END = sub(KEYS, QUERIES)
"""Added to q aligns the last query with the last key."""


def window(width: int, position: Expr = q) -> Expr:
    """A causal window of ``width`` keys."""
    return and_(ge(position, k), gt(integer(width), sub(position, k)))


def load(name: str, *index: Expr, kind: str = "bool") -> Expr:
    """A load of an operand."""
    return Load(name, index, kind)  # type: ignore[arg-type]


def case(
    keep: Expr,
    sources: Mapping[str, Array | BlockTable] | None = None,
    *,
    bias: Expr | None = None,
    sizes: tuple[int, int, int, int] = SIZES,
    tile: tuple[int, int] = (16, 16),
    beyond: bool = True,
) -> Case:
    """A case whose operands are described by their values."""
    sources = sources or {}
    operands = tuple(
        Operand(name, "block_table", 3, value.shape, value.tile)
        if isinstance(value, BlockTable)
        else Operand(name, "tensor", value.ndim)
        for name, value in sources.items()
    )
    program = MaskProgram(keep=keep, bias=bias, operands=operands)
    program.validate()
    return Case(program, sizes, sources, tile, beyond)


def random_bool(*shape: int, density: float = 0.6) -> Array:
    """Bools, true with this probability."""
    return _RNG.random(shape) < density


def padding(*lengths: int, keys: int = 53) -> Array:
    """The first keys of each batch."""
    return np.arange(keys) < np.array(lengths)[:, None]


def documents(dtype: str, length: int = 53) -> Array:
    """Ascending ids of documents that lie side by side, [2, length]."""
    return np.cumsum(_RNG.random((2, length)) < 0.07, axis=1).astype(dtype)


def same_document(name: str, position: Expr = q) -> Expr:
    """Whether query and key are of one document."""
    return eq(load(name, b, position, kind="int"), load(name, b, k, kind="int"))


def dense_table(groups: int, queries: int = 37, keys: int = 53) -> Array:
    """A mask with empty, full and partial tiles of 16x16, [groups, queries, keys]."""
    keep = _RNG.random((groups, queries, keys)) < 0.5
    tiles = _RNG.integers(0, 4, (groups, -(-queries // 16), -(-keys // 16)))
    tiles = tiles.repeat(16, 1).repeat(16, 2)[:, :queries, :keys]
    return np.where(tiles == 0, False, np.where(tiles == 1, True, keep))


def table(groups: int, tile: tuple[int, int] = (16, 16), **sizes: int) -> BlockTable:
    """The table of :func:`dense_table`."""
    return BlockTable.from_dense(dense_table(groups, **sizes), tile)


BANDS = {
    "causal from the start": case(CAUSAL),
    "causal to the end": case(ge(add(q, END), k)),
    "causal, more queries": case(ge(add(q, END), k), sizes=(1, 1, 61, 29)),
    "strictly causal": case(gt(q, k)),
    "window": case(window(9)),
    "window to the end": case(window(20, add(q, END))),
    "window of 1": case(window(1)),
    "both ways": case(and_(ge(add(q, integer(5)), k), ge(add(k, integer(5)), q))),
    "block diagonal": case(eq(floordiv(q, integer(11)), floordiv(k, integer(11)))),
    "block causal": case(ge(floordiv(q, integer(7)), floordiv(k, integer(7)))),
    "one distance": case(eq(absolute(sub(q, k)), integer(3))),
    "global tokens on the grid": case(or_(gt(integer(16), k), gt(integer(16), q))),
    "heads look both ways": case(
        ge0(add(where(gt(integer(2), h), sub(q, k), sub(k, q)), mul(h, integer(2))))
    ),
    "chunks to the end": case(ge(floordiv(add(q, END), integer(16)), floordiv(k, integer(16)))),
}
VECTORS = {
    "padding": case(load("m", b, k), {"m": padding(53, 20)}),
    "padding of 0": case(load("m", b, k), {"m": padding(16, 0)}),
    "padding with holes": case(load("m", b, k), {"m": random_bool(2, 53, density=0.9)}),
    "padding, INT8 but not 1": case(
        load("m", b, k), {"m": _RNG.choice([0, 2, -1, -128], (2, 53)).astype(np.int8)}
    ),
    "lengths": case(gt(load("n", b, kind="int"), k), {"n": np.array([53, 17], np.int32)}),
    "documents int32": case(same_document("d"), {"d": documents("int32")}, sizes=(2, 1, 53, 53)),
    "documents int64": case(same_document("d"), {"d": documents("int64")}, sizes=(2, 2, 53, 53)),
    "documents int8": case(same_document("d"), {"d": documents("int8")}, sizes=(2, 2, 53, 53)),
    "scalar": case(gt(load("n", kind="int"), k), {"n": np.array(23, np.int64)}),
    "rounded down": case(
        ge0(add(floordiv(load("p", b, k, kind="int"), integer(3)), integer(2))),
        {"p": np.sort(_RNG.integers(-20, 9, (2, 53)))},
    ),
    "query padding": case(load("m", b, q), {"m": padding(37, 11, keys=37)}),
}
TABLES = {
    "table": case(load("t", integer(0), q, k), {"t": table(1)}),
    "table a head": case(load("t", h, q, k), {"t": table(4)}),
    "table a group": case(load("t", floordiv(h, integer(2)), q, k), {"t": table(2)}),
    "last group of a table": case(load("t", integer(1), q, k), {"t": table(2)}),
    "larger tiles of a table": case(load("t", h, q, k), {"t": table(4, (32, 64))}, tile=(16, 32)),
    "inverted table": case(not_(load("t", h, q, k)), {"t": table(4)}),
    "smallest tiles": case(load("t", h, q, k), {"t": table(4, (8, 8))}, tile=(8, 8)),
    "empty table": case(
        load("t", integer(0), q, k),
        {"t": BlockTable.from_dense(np.zeros((37, 53), bool), (16, 16))},
    ),
    "full table": case(
        load("t", integer(0), q, k), {"t": BlockTable.from_dense(np.ones((37, 53), bool), (16, 16))}
    ),
}
_SPARSE = dense_table(8).reshape(2, 4, 37, 53)
RUN_TIME_TABLES = {
    "run-time table a batch and head": replace(
        case(load("m", b, h, q, k), {"m": _SPARSE}), table=TableInput((16, 16), True, True)
    ),
    "run-time table a batch": replace(
        case(load("m", b, q, k), {"m": _SPARSE[:, 0]}, tile=(16, 16)),
        table=TableInput((32, 16), True, False),
    ),
    "run-time table a head": replace(
        case(load("m", h, q, k), {"m": _SPARSE[0]}), table=TableInput((16, 32), False, True)
    ),
    "one run-time table": replace(
        case(load("m", q, k), {"m": _SPARSE[1, 1]}), table=TableInput((16, 16), False, False)
    ),
    "run-time table and bias": replace(
        case(
            load("m", b, q, k),
            {"m": _SPARSE[:, 0], "s": np.arange(4, dtype=np.float32)},
            bias=load("s", h, kind="float"),
        ),
        table=TableInput((16, 16), True, False),
    ),
}
EXACT = {**BANDS, **VECTORS, **TABLES, **RUN_TIME_TABLES}

_TABLE_AND_VECTOR = {"m": padding(53, 30), "t": table(4)}
_TWO_TABLES = {"s": table(1), "t": table(4)}
COMBINATIONS = {
    "table's group by a vector of queries": case(
        load("t", load("g", q, kind="int"), q, k), {"t": table(4), "g": np.arange(37) % 4}
    ),
    "table's group by the query": case(load("t", mod(q, integer(4)), q, k), {"t": table(4)}),
    "group beyond what ranges hold": case(
        load("t", load("g", b, kind="int"), q, k), {"t": table(4), "g": np.array([2**41, 0])}
    ),
    "product of int64, one of which is 0": case(
        ge0(mul(load("x", b, k, kind="int"), load("y", b, k, kind="int"))),
        {"x": np.array([[2**40, 0, 5]] * 2), "y": np.array([[0, 2**40, -5]] * 2)},
    ),
    "empty tensor": case(load("m", k, b), {"m": np.zeros((0, 2), bool)}),
    "no mask": case(Const(True)),
    "nothing kept": case(Const(False)),
    "both ways, absolute": case(ge(integer(5), absolute(sub(q, k)))),
    "dilated": case(and_(window(30), eq0(mod(sub(q, k), integer(3))))),
    "dilated, negative divisor": case(eq0(mod(sub(q, k), integer(-4)))),
    "dilated blocks": case(
        eq0(mod(sub(floordiv(q, integer(4)), floordiv(k, integer(4))), integer(2)))
    ),
    "negative divisor": case(ge0(sub(floordiv(sub(q, k), integer(-3)), integer(2)))),
    "divided by a size": case(eq0(mod(add(mul(q, integer(3)), k), KEYS))),
    "global tokens": case(or_(window(6), gt(integer(3), k), gt(integer(2), q))),
    "alternatives": case(or_(and_(CAUSAL, gt(integer(20), k)), not_(window(8)), eq(q, k))),
    "head's own window": case(ge(mul(add(h, integer(1)), integer(6)), absolute(sub(q, k)))),
    "batch and heads as numbers": case(ge(add(q, add(b, HEADS)), add(k, BATCH))),
    "minimum and maximum": case(
        ge(minimum(q, integer(20)), maximum(sub(k, integer(9)), sub(q, integer(30))))
    ),
    "causal and padding": case(and_(CAUSAL, load("m", b, k)), {"m": padding(53, 20)}),
    "left padding": case(and_(CAUSAL, load("m", b, k)), {"m": ~padding(7, 30)}),
    "positions": case(
        ge(load("p", b, q, kind="int"), load("p", b, k, kind="int")),
        {"p": _RNG.integers(-5, 60, (2, 53))},
    ),
    "documents to the end": case(
        and_(same_document("d", add(q, END)), ge(add(q, END), k)), {"d": documents("int64")}
    ),
    "where of vectors": case(
        ge0(where(load("m", b, k), sub(q, k), load("n", b, q, kind="int"))),
        {"m": random_bool(2, 53), "n": _RNG.integers(-2, 3, (2, 37)).astype(np.int32)},
    ),
    "dense run-time mask": case(load("m", b, h, q, k), {"m": random_bool(2, 4, 37, 53)}),
    "dense mask of one head": case(
        load("m", b, integer(0), q, k), {"m": random_bool(2, 1, 37, 53)}
    ),
    "shifted vector": case(load("m", b, add(k, integer(9))), {"m": random_bool(2, 53)}),
    "vector that is too short": case(load("m", b, k), {"m": random_bool(2, 20)}),
    "vector of another batch": case(load("m", sub(b, integer(3)), k), {"m": random_bool(2, 53)}),
    "index out of a vector": case(
        load("m", b, load("i", b, k, kind="int")),
        {"m": random_bool(2, 53), "i": _RNG.integers(-(2**62), 2**62, (2, 53))},
    ),
    "long vector": case(
        load("m", b, k),
        {"m": np.arange(2 * 300).reshape(2, 300) > 258},
        sizes=(2, 1, 3, 300),
        tile=(16, 272),
    ),
    "table and padding": case(and_(load("t", h, q, k), load("m", b, k)), _TABLE_AND_VECTOR),
    "table or padding": case(or_(not_(load("t", h, q, k)), load("m", b, k)), _TABLE_AND_VECTOR),
    "table chosen by a vector": case(
        where(load("m", b, k), load("t", h, q, k), CAUSAL), _TABLE_AND_VECTOR
    ),
    "two tables": case(or_(load("s", integer(0), q, k), load("t", h, q, k)), _TWO_TABLES),
    "two groups of a table": case(
        and_(load("t", integer(0), q, k), not_(load("t", integer(3), q, k))), {"t": table(4)}
    ),
    "table and itself, shifted": case(
        or_(load("t", h, q, k), load("t", h, sub(q, integer(20)), add(k, integer(5)))),
        {"t": table(4)},
    ),
    "shifted table": case(
        load("t", integer(0), add(q, integer(3)), sub(k, integer(18))), {"t": table(1)}
    ),
    "shifted table of small tiles": case(
        load("t", h, add(q, integer(3)), sub(k, integer(5))), {"t": table(4, (8, 8))}
    ),
    "table to the end": case(
        load("t", integer(0), add(q, END), k), {"t": table(1, queries=53, keys=53)}
    ),
    "transposed table": case(load("t", integer(0), k, q), {"t": table(1, queries=53, keys=37)}),
    "indices out of a table": case(
        load("t", add(h, integer(2)), mul(q, integer(3)), sub(integer(9), k)), {"t": table(4)}
    ),
    "table by vectors": case(
        load("t", load("g", b, kind="int"), load("p", b, q, kind="int"), k),
        {
            "t": table(4),
            "g": np.array([3, 1], np.int32),
            "p": _RNG.integers(-50, 99, (2, 37)),
        },
    ),
}

SLOPES = np.array([0.5, 0.25, 0.1, 0.7], np.float32)
_DISTANCE = to_float(sub(q, k))
BIASES = {
    f"alibi {name}": case(CAUSAL, {"s": slopes}, bias=fmul(load("s", h, kind="float"), _DISTANCE))
    for name, slopes in {
        "float32": SLOPES,
        "float16": SLOPES.astype(np.float16),
        "bfloat16": (SLOPES.view(np.uint32) >> 16).astype(np.uint16),
    }.items()
} | {
    "every float16": case(
        Const(True),
        # Without NaN: which one a bias holds is nobody's concern.
        {
            "x": np.delete(
                np.arange(2**16, dtype=np.uint16), np.r_[0x7C01:0x8000, 0xFC01:0x10000]
            ).view(np.float16)
        },
        bias=load("x", add(mul(q, KEYS), k), kind="float"),
        sizes=(1, 1, 248, 256),
        tile=(64, 64),
    ),
    "dense bias": case(
        load("m", b, k),
        {"x": _RNG.normal(size=(2, 4, 37, 53)).astype(np.float16), "m": padding(53, 9)},
        bias=load("x", b, h, q, k, kind="float"),
    ),
    "bias of a table": case(
        Const(True),
        {"t": table(4)},
        bias=where(load("t", h, q, k), Const(0.0), Const(-10000.0)),
    ),
    "bias and mask of a table": case(
        load("t", h, q, k),
        {"t": table(4)},
        bias=fadd(to_float(load("t", h, q, k)), to_float(load("t", h, k, q))),
    ),
    "infinite bias": case(CAUSAL, bias=where(gt(integer(30), k), Const(0.1), Const(-math.inf))),
    "bias beyond float32": case(CAUSAL, bias=where(eq(q, k), Const(-1e300), Const(1e-46))),
    "rounded twice": case(
        CAUSAL,
        {"s": SLOPES},
        bias=fadd(fmul(load("s", h, kind="float"), Const(0.1)), fmul(Const(1 / 3), _DISTANCE)),
    ),
}

_EXTREMES = np.array([[-(2**31), 2**31 - 1, 0, -1, 1] * 11] * 2, np.int32)[:, :53]
_HUGE = np.array([[-(2**62), 2**62, 0, 2**40, -(2**40) - 1] * 11] * 2)[:, :53]
WIDTHS = {
    # name: (case, type of the index)
    "largest 32-bit product": (case(ge0(sub(mul(q, integer(127)), integer(300)))), "int"),
    "smallest 64-bit product": (case(ge0(sub(mul(q, integer(128)), integer(300)))), "long long"),
    "product that overflows": (
        case(gt(mul(q, integer(2**31 - 1)), mul(k, integer(2**30)))), "long long",
    ),
    "constant that overflows": (
        case(ge(mul(sub(q, k), integer(2**40)), integer(-(2**42)))), "long long",
    ),
    "int32 compared with 0": (
        case(ge0(load("x", b, k, kind="int")), {"x": _EXTREMES}), "int",
    ),
    "int32 compared with 1": (
        case(ge0(sub(load("x", b, k, kind="int"), integer(1))), {"x": _EXTREMES}), "long long",
    ),
    "difference of int32": (
        case(gt(load("x", b, k, kind="int"), load("x", b, q, kind="int")), {"x": _EXTREMES}),
        "long long",
    ),
    "absolute int32": (
        case(ge(integer(2), absolute(load("x", b, k, kind="int"))), {"x": _EXTREMES}), "long long",
    ),
    "int8": (
        case(
            gt(mul(integer(2**20), load("x", b, k, kind="int")), q),
            {"x": _RNG.integers(-128, 128, (2, 53)).astype(np.int8)},
        ),
        "int",
    ),
    "int64 compared with 0": (
        case(ge0(load("x", b, k, kind="int")), {"x": _HUGE}), "long long",
    ),
    "int64 on both sides": (
        case(eq(load("x", b, k, kind="int"), load("x", b, q, kind="int")), {"x": _HUGE // 2}),
        "long long",
    ),
    "sum of int64, one of which is 0": (
        case(
            gt(add(load("x", b, k, kind="int"), load("y", b, k, kind="int")), integer(2**62 - 1)),
            {"x": np.array([[2**62, 0, 5]] * 2), "y": np.array([[0, 2**62, 5]] * 2)},
        ),
        "long long",
    ),
    "wide bias": (
        case(CAUSAL, bias=fmul(Const(-0.5), to_float(mul(integer(2**33), sub(q, k))))), "long long",
    ),
    "wide index of a load": (
        case(load("m", b, mul(k, integer(2**9))), {"m": random_bool(2, 53)}), "long long",
    ),
}  # fmt: skip

FAMILIES = {**EXACT, **COMBINATIONS, **BIASES, **{name: one for name, (one, _) in WIDTHS.items()}}
