"""Mask programs: JSON, validation, rows without keys, evaluation against the reference."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import Expr, Load, to_json
from stof_onnx.ir.expr.build import (
    FALSE,
    TRUE,
    absolute,
    add,
    and_,
    eq0,
    floordiv,
    fmul,
    ge,
    ge0,
    gt,
    integer,
    not_,
    or_,
    sub,
    to_float,
)
from stof_onnx.ir.mask.program import (
    B_INDEX,
    H_INDEX,
    K_INDEX,
    KEYS,
    Q_INDEX,
    QUERIES,
    MaskProgram,
    Operand,
    conjunction,
    index_grid,
    swallows_scores,
)
from tests.reference.attention import (
    bigbird_keep,
    causal_keep,
    causal_window_keep,
    padding_keep,
    sliding_window_keep,
)

Array = npt.NDArray[Any]

DISTANCE = sub(Q_INDEX, K_INDEX)
END_DISTANCE = sub(sub(add(Q_INDEX, KEYS), QUERIES), K_INDEX)
CAUSAL = ge0(DISTANCE)
FLOAT32_MIN = float(np.finfo(np.float32).min)
FLOAT16_MIN = float(np.finfo(np.float16).min)
BFLOAT16_MIN = -float.fromhex("0x1.fep127")

PADDING = Operand("attention_mask", "tensor", 2)
TABLE = Operand("table", "block_table", 3, (1, 64, 80), (64, 64))
SLOPES = Operand("slopes", "tensor", 1)
IS_REAL = Load("attention_mask", (B_INDEX, K_INDEX), "bool")
IN_TABLE = Load("table", (integer(0), Q_INDEX, K_INDEX), "bool")
ALIBI = fmul(Load("slopes", (H_INDEX,), "float"), to_float(DISTANCE))

PROGRAMS = {
    "none": MaskProgram(),
    "causal": MaskProgram(CAUSAL),
    "padding": MaskProgram(IS_REAL, operands=(PADDING,), fill=FLOAT32_MIN, fill_mode="add"),
    "causal+padding": MaskProgram(and_(CAUSAL, IS_REAL), operands=(PADDING,), nan_to_zero=True),
    "table": MaskProgram(IN_TABLE, operands=(TABLE,), fill=FLOAT16_MIN),
    "alibi": MaskProgram(CAUSAL, ALIBI, operands=(SLOPES,)),
    "all": MaskProgram(
        or_(and_(CAUSAL, IS_REAL), not_(IN_TABLE)),
        ALIBI,
        fill=-1e4,
        fill_mode="add",
        operands=(SLOPES, TABLE, PADDING),
    ),
    "nothing": MaskProgram(FALSE),
    "twice": MaskProgram(
        and_(CAUSAL, IS_REAL),
        fill=FLOAT32_MIN,
        fill_mode="add",
        operands=(PADDING, TABLE),
        again=and_(not_(CAUSAL), not_(IS_REAL), IN_TABLE),
    ),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))
def test_json_round_trip(program: MaskProgram) -> None:
    text = program.to_json()
    again = MaskProgram.from_json(text)
    assert again == program
    assert again.to_json() == text
    data = json.loads(text)
    assert list(data) == sorted(data)
    assert text == json.dumps(data, separators=(",", ":"))


def test_json_form() -> None:
    assert json.loads(PROGRAMS["padding"].to_json()) == {
        "version": 1,
        "keep": ["load", "attention_mask", "bool", ["b", "k"]],
        "bias": None,
        "fill": "-3.4028234663852886e+38",
        "fill_mode": "add",
        "nan_to_zero": False,
        "operands": [
            {"name": "attention_mask", "kind": "tensor", "rank": 2, "shape": [], "tile": []}
        ],
    }
    assert json.loads(MaskProgram().to_json())["fill"] == "-inf"


def test_again_is_written_where_there_is_any() -> None:
    assert [name for name, one in PROGRAMS.items() if '"again":' in one.to_json()] == ["twice"]
    small = MaskProgram(CAUSAL, again=not_(CAUSAL))
    assert json.loads(small.to_json())["again"] == to_json(not_(CAUSAL))
    none = json.dumps({**json.loads(small.to_json()), "again": False})
    assert MaskProgram.from_json(none) == MaskProgram(CAUSAL)


def test_only_a_program_without_mask_and_bias_is_empty() -> None:
    assert [name for name, program in PROGRAMS.items() if program.is_empty] == ["none"]
    assert not MaskProgram(TRUE, ALIBI, operands=(SLOPES,)).is_empty


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none", "all pairs"),
        ("causal", "-k + q >= 0"),
        ("causal+padding", "attention_mask[b, k] and -k + q >= 0"),
        ("table", "table[0, q, k]"),
        ("alibi", "-k + q >= 0; bias (slopes[h] * float(-k + q))"),
        ("nothing", "False"),
    ],
)
def test_text(name: str, text: str) -> None:
    assert PROGRAMS[name].to_text() == text


def changed(**entries: Any) -> str:
    """The JSON of a sound program with some entries replaced."""
    return json.dumps({**json.loads(PROGRAMS["all"].to_json()), **entries})


def operand_entry(**entries: Any) -> dict[str, Any]:
    return {"name": "m", "kind": "tensor", "rank": 2, "shape": [], "tile": [], **entries}


def load_entry(name: str = "m", kind: str = "bool", rank: int = 2) -> list[Any]:
    return ["load", name, kind, ["b", "q", "k"][:rank]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the mask attribute is not a mask program"),
        ("{", "the mask attribute is not a mask program"),
        ("[]", "the mask attribute is not a mask program"),
        ("{}", "the mask attribute is not a mask program"),
        ("3", "the mask attribute is not a mask program"),
        ("[" * 100_000, "the mask attribute is not a mask program"),
        (
            changed(version=2),
            "mask program of version 2; wanted version 1; optimize the model again with this "
            "release",
        ),
        ('{"version": 1}', "a mask program without 'keep'"),
        (changed(keep=["ge0"]), "mask operation 'ge0' with 0 arguments"),
        (changed(keep="x"), "'x' is not a mask expression"),
        (changed(keep="q"), "a mask program whose keep is not bool or bias not float"),
        (changed(bias="q"), "a mask program whose keep is not bool or bias not float"),
        (changed(bias=True), "a mask program whose keep is not bool or bias not float"),
        (changed(fill="deep"), "damaged mask program: could not convert string to float: 'deep'"),
        (changed(fill="nan"), "mask fill nan with mode 'add'; wanted a negative fill"),
        (changed(fill="0.0"), "mask fill 0.0 with mode 'add'; wanted a negative fill"),
        (changed(fill="1.5"), "mask fill 1.5 with mode 'add'; wanted a negative fill"),
        (changed(fill="inf"), "mask fill inf with mode 'add'; wanted a negative fill"),
        (changed(fill_mode="multiply"), "mask fill -10000.0 with mode 'multiply'"),
        (changed(fill=None), "damaged mask program: "),
        (changed(operands=None), "damaged mask program: "),
        (changed(operands=["m"]), "damaged mask program: "),
        (changed(operands=[{}]), "a mask program without 'kind'"),
        (
            changed(operands=[operand_entry(kind="scalar")]),
            "damaged mask program: operand kind 'scalar'",
        ),
        (changed(operands=[operand_entry(rank=math.inf)]), "damaged mask program: "),
        (
            changed(keep=load_entry(), bias=None, operands=[]),
            "mask program loads 'm' with 2 indices; wanted one of its operands {}",
        ),
        (
            changed(keep=load_entry(rank=3), bias=None, operands=[operand_entry()]),
            "mask program loads 'm' with 3 indices; wanted one of its operands {'m': 2}",
        ),
        (
            changed(bias=load_entry("s", "float"), keep=True, operands=[operand_entry()]),
            "mask program loads 's' with 2 indices; wanted one of its operands {'m': 2}",
        ),
        (
            changed(keep=load_entry(), bias=None, operands=[operand_entry(), operand_entry()]),
            "a mask program with two operands of one name",
        ),
        (
            changed(keep=True, bias=None, operands=[operand_entry(kind="block_table", rank=3)]),
            "mask operand 'm' of kind block_table and rank 3 with shape () and tile ()",
        ),
        (
            changed(
                keep=load_entry(),
                bias=None,
                operands=[operand_entry(kind="block_table", shape=[1, 8, 8], tile=[8, 8])],
            ),
            "mask operand 'm' of kind block_table and rank 2",
        ),
        (
            changed(
                keep=["eq0", load_entry(kind="int", rank=3)],
                bias=None,
                operands=[operand_entry(kind="block_table", rank=3, shape=[1, 8, 8], tile=[8, 8])],
            ),
            "mask program loads block table 'm' as int; wanted bool",
        ),
        (
            changed(
                keep=["load", "m", "bool", [1, "q", "k"]],
                bias=None,
                operands=[operand_entry(kind="block_table", rank=3, shape=[1, 8, 8], tile=[8, 8])],
            ),
            "mask program loads group 1 of block table 'm'; wanted 0 to 0",
        ),
        (changed(again="q"), "a mask program whose again is not bool"),
        (changed(again=None), "None is not a mask expression"),
        (changed(again=["ge0"]), "mask operation 'ge0' with 0 arguments"),
        (
            changed(again=load_entry()),
            "mask program loads 'm' with 2 indices; wanted one of its operands",
        ),
        (
            changed(again=load_entry("table", "int", rank=3)),
            "a mask program whose again is not bool",
        ),
        (
            changed(again=["load", "table", "bool", [1, "q", "k"]]),
            "mask program loads group 1 of block table 'table'; wanted 0 to 0",
        ),
        (
            changed(keep=True, bias=None, operands=[operand_entry(rank=-1)]),
            "mask operand 'm' of kind tensor and rank -1",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_a_damaged_program_is_refused(text: str, message: str) -> None:
    with pytest.raises(MalformedNodeError) as caught:
        MaskProgram.from_json(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fill", "mode", "dtype", "is_guarded", "wanted"),
    [
        (-math.inf, "add", "float32", False, "nan"),
        (-math.inf, "replace", "float32", False, "nan"),
        (-math.inf, "add", "float16", True, "zero"),
        (-math.inf, "replace", "bfloat16", True, "zero"),
        (FLOAT32_MIN, "add", "float32", False, "mean"),
        (FLOAT32_MIN, "add", "float32", True, "mean"),
        (FLOAT32_MIN, "replace", "float32", False, "mean"),
        (FLOAT32_MIN, "add", "float64", False, "mean"),
        (BFLOAT16_MIN, "add", "bfloat16", False, "mean"),
        (BFLOAT16_MIN, "replace", "bfloat16", False, "mean"),
        (FLOAT16_MIN, "replace", "float16", False, "mean"),
        (FLOAT16_MIN, "add", "float16", False, "softmax"),
        (FLOAT16_MIN, "add", "float16", True, "softmax"),
        (FLOAT16_MIN, "add", "float32", False, "softmax"),
        (FLOAT16_MIN, "add", "bfloat16", False, "softmax"),
        (-1e4, "add", "float32", False, "softmax"),
        (-1e4, "replace", "float32", False, "mean"),
        (-1e4, "replace", "float16", True, "mean"),
        (-1e9, "add", "float32", False, "softmax"),
        (-1e9, "add", "bfloat16", False, "softmax"),
        (-1e18, "add", "float32", False, "mean"),
        (-1e18, "add", "float64", False, "softmax"),
        # A fill beyond the type's range is infinite there.
        (FLOAT32_MIN, "add", "float16", False, "nan"),
        (FLOAT32_MIN, "replace", "float16", True, "zero"),
        (FLOAT32_MIN, "add", "bfloat16", False, "nan"),
        (-65519.0, "replace", "float16", False, "mean"),
        (-65520.0, "replace", "float16", False, "nan"),
        (-1e9, "replace", "float16", False, "nan"),
        (-1e300, "replace", "float32", True, "zero"),
        (-1e300, "replace", "float64", True, "mean"),
    ],
)
def test_what_a_row_without_keys_yields(
    fill: float, mode: Any, dtype: str, is_guarded: bool, wanted: str
) -> None:
    program = MaskProgram(CAUSAL, fill=fill, fill_mode=mode, nan_to_zero=is_guarded)
    assert program.empty_row(dtype) == wanted
    # With pairs that are hidden twice the others have all the weight, in place of a mean of all.
    twice = replace(program, again=gt(K_INDEX, integer(3)))
    assert twice.empty_row(dtype) == {"mean": "softmax"}.get(wanted, wanted)


@pytest.mark.parametrize(
    ("fill", "dtype", "wanted"),
    [
        (FLOAT32_MIN, "float32", True),
        (BFLOAT16_MIN, "bfloat16", True),
        (FLOAT16_MIN, "float16", False),
        (-1e4, "float32", False),
        (-(2.0**48), "float32", False),
        (-(2.0**49), "float32", True),
        (-(2.0**33), "bfloat16", True),
        (-(2.0**32), "bfloat16", False),
        (-1e-30, "float32", False),
        (-(2.0**78), "float64", True),
        (-(2.0**77), "float64", False),
    ],
)
def test_which_fills_swallow_scores(fill: float, dtype: str, wanted: bool) -> None:
    assert swallows_scores(fill, dtype) is wanted


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([np.float32, np.float64]),
    st.floats(20.0, 127.0),
    st.lists(st.floats(-(2.0**24), 2.0**24, exclude_min=True, exclude_max=True), min_size=1),
)
def test_a_swallowing_fill_is_what_the_sum_rounds_to(
    dtype: type[np.floating[Any]], exponent: float, scores: list[float]
) -> None:
    fill = dtype(-(2.0**exponent))
    if swallows_scores(float(fill), np.dtype(dtype).name):
        assert np.all(np.asarray(scores, dtype) + fill == fill)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fill_that_does_not_swallow_shows_some_score(dtype: type[np.floating[Any]]) -> None:
    largest = dtype(np.nextafter(dtype(2.0**24), dtype(0)))
    for exponent in range(20, 100):
        fill = dtype(-(2.0**exponent))
        if not swallows_scores(float(fill), np.dtype(dtype).name):
            assert fill - largest < fill or fill + largest > fill


LENGTHS = [(1, 1), (1, 7), (7, 1), (8, 8), (13, 13), (5, 11), (11, 5), (33, 64)]


def evaluated(keep: Expr, sizes: tuple[int, int], **sources: Array) -> Array:
    """[2, 3, Sq, Sk], of a program with the operands at hand."""
    operands = tuple(
        TABLE if name == "table" else Operand(name, "tensor", array.ndim)
        for name, array in sources.items()
    )
    program = MaskProgram(keep, operands=operands)
    program.validate()
    named = {"B": 2, "H": 3, "Sq": sizes[0], "Sk": sizes[1]}
    result = program.evaluate_keep(named, sources)
    assert result.dtype == np.bool_
    return np.broadcast_to(result, (2, 3, *sizes))


@pytest.mark.parametrize("sizes", LENGTHS, ids=str)
def test_bands_are_those_of_the_reference(sizes: tuple[int, int]) -> None:
    for distance, offset in ((DISTANCE, 0), (END_DISTANCE, sizes[1] - sizes[0])):
        for window in (1, 3, 8, 100):
            pairs = [
                (ge0(distance), causal_keep(*sizes, query_offset=offset)),
                (
                    ge(integer(window), absolute(distance)),
                    sliding_window_keep(*sizes, window=window, query_offset=offset),
                ),
                (
                    and_(ge0(distance), gt(integer(window), distance)),
                    causal_window_keep(*sizes, window=window, query_offset=offset),
                ),
            ]
            for keep, wanted in pairs:
                np.testing.assert_array_equal(
                    evaluated(keep, sizes), np.broadcast_to(wanted, (2, 3, *sizes))
                )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("sizes", LENGTHS, ids=str)
def test_padding_is_that_of_the_reference(sizes: tuple[int, int], side: Any) -> None:
    lengths = [0, max(1, sizes[1] - 2)]
    wanted = padding_keep(lengths, sizes[1], side=side)
    vector = wanted[:, 0, 0].astype(np.int8)
    got = evaluated(IS_REAL, sizes, attention_mask=vector)
    np.testing.assert_array_equal(got, np.broadcast_to(wanted, got.shape))
    # The same mask from the lengths, as exporters that take lengths write it.
    length = Load("lengths", (B_INDEX,), "int")
    keep = gt(length, K_INDEX) if side == "right" else ge0(add(sub(K_INDEX, KEYS), length))
    got = evaluated(keep, sizes, lengths=np.asarray(lengths))
    np.testing.assert_array_equal(got, np.broadcast_to(wanted, got.shape))


@pytest.mark.parametrize("sizes", LENGTHS, ids=str)
def test_a_table_is_read_from_its_corner(sizes: tuple[int, int]) -> None:
    dense = np.random.default_rng(1).random((1, 64, 80)) < 0.5
    got = evaluated(and_(IN_TABLE, CAUSAL), sizes, table=dense)
    wanted = dense[0, : sizes[0], : sizes[1]] & causal_keep(*sizes)
    np.testing.assert_array_equal(got, np.broadcast_to(wanted, got.shape))


def test_bigbird_is_that_of_the_reference() -> None:
    blocks = np.random.default_rng(2).random((5, 5)) < 0.3
    size = (37, 37)
    chosen = Load("blocks", (floordiv(Q_INDEX, integer(8)), floordiv(K_INDEX, integer(8))), "bool")
    keep = or_(
        ge(integer(3), absolute(DISTANCE)),
        gt(integer(2), Q_INDEX),
        gt(integer(2), K_INDEX),
        chosen,
    )
    wanted = bigbird_keep(*size, window=3, global_tokens=2, block=8, random_blocks=blocks)
    got = evaluated(keep, size, blocks=blocks)
    np.testing.assert_array_equal(got, np.broadcast_to(wanted, got.shape))


def test_documents_do_not_see_each_other() -> None:
    documents = np.asarray([[0, 0, 1, 1, 2], [4, 4, 4, 4, 4]])
    rows = [Load("document", (B_INDEX, index), "int") for index in (Q_INDEX, K_INDEX)]
    got = evaluated(eq0(sub(*rows)), (5, 5), document=documents)
    np.testing.assert_array_equal(got[:, 1], documents[:, :, None] == documents[:, None, :])


def test_evaluation_keeps_axes_of_size_one() -> None:
    sizes = {"B": 2, "H": 3, "Sq": 5, "Sk": 7}
    assert MaskProgram().evaluate_keep(sizes, {}).shape == ()
    assert MaskProgram(CAUSAL).evaluate_keep(sizes, {}).shape == (1, 1, 5, 7)
    assert index_grid(sizes)["h"].shape == (1, 3, 1, 1)  # type: ignore[union-attr]
    assert index_grid(sizes)["Sk"] == 7


def test_conjunctions() -> None:
    assert conjunction(TRUE) == ()
    assert conjunction(FALSE) == (FALSE,)
    assert conjunction(CAUSAL) == (CAUSAL,)
    assert set(conjunction(and_(CAUSAL, IS_REAL))) == {CAUSAL, IS_REAL}
    assert conjunction(or_(CAUSAL, IS_REAL)) == (or_(CAUSAL, IS_REAL),)
