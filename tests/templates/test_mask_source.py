"""The C++ of mask programs: run on the CPU under sanitizers, against numpy.

Device code of plugins/kernels is compiled as it is, but for numbers.cuh, whose PTX is replaced by
tests/templates/cpu/numbers.cuh.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from stof_onnx.ir.block_table import ARRAY_NAMES, BlockTable
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import Const, Expr, Load, Var, substitute
from stof_onnx.ir.expr.build import FALSE, and_, ge0, integer, not_
from stof_onnx.ir.mask.program import MaskProgram, Operand
from stof_onnx.ir.plan import DataType
from stof_onnx.templates.mask_source import float_literal, mask_source
from tests.ir.expression_trees import bools, construct, floats, run_time
from tests.templates.mask_cases import (
    BIASES,
    CAUSAL,
    COMBINATIONS,
    EXACT,
    FAMILIES,
    WIDTHS,
    case,
    k,
    load,
    q,
    table,
)
from tests.templates.mask_on_cpu import Case, CompiledMasks, check, dense_states

ODD_SIZES = ((2, 3, 5, 11), (1, 2, 13, 4), (3, 1, 1, 9))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return CompiledMasks(FAMILIES.values(), tmp_path_factory.mktemp("masks"))


@pytest.mark.parametrize("name", [*COMBINATIONS, *BIASES])
def test_elements_are_right_and_tiles_sound(compiled, name):
    (outcome,) = compiled.run([FAMILIES[name]])
    check(FAMILIES[name], outcome)


@pytest.mark.parametrize("name", EXACT)
def test_tiles_are_exact(compiled, name):
    one = EXACT[name]
    (outcome,) = compiled.run([one])
    check(one, outcome)
    dropped, kept = dense_states(one.wanted_keep(), table_tile(one))
    # A kernel's tile inside a larger tile of a table has that tile's state.
    repeat = np.array(table_tile(one)) // one.tile
    rows, columns = outcome.can_be_true.shape[2:]
    for got, wanted in ((outcome.can_be_false, dropped), (outcome.can_be_true, kept)):
        spread = wanted.repeat(repeat[0], 2).repeat(repeat[1], 3)[:, :, :rows, :columns]
        np.testing.assert_array_equal(got, spread)
    # These cases are there to tell tiles apart.
    assert name == "full table" or not kept.all() or dropped.any()


def table_tile(one: Case) -> tuple[int, int]:
    if one.table is not None:
        return one.table.tile
    tiles = [value.tile for value in one.sources.values() if isinstance(value, BlockTable)]
    return tiles[0] if tiles else one.tile


@pytest.mark.parametrize("name", WIDTHS)
def test_integers_are_as_wide_as_they_must_be(compiled, name):
    one, index = WIDTHS[name]
    assert f"using Index = {index};" in one.source().text
    (outcome,) = compiled.run([one])
    check(one, outcome)


# ---- random programs ----------------------------------------------------------------------------


def random_cases(count: int, *, derandomize: bool) -> list[Case]:
    """Cases of programs that hypothesis draws, each at every one of ODD_SIZES."""
    programs: dict[str, tuple[Expr, Expr | None]] = {}

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=derandomize,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bools(3), floats(2))
    def collect(keep, bias):
        exprs = (without_cache(construct(keep)), without_cache(construct(bias)))
        programs[repr(exprs)] = exprs

    collect()
    cases = []
    for keep, bias in programs.values():
        if isinstance(keep, Const):
            continue
        for sizes in ODD_SIZES:
            sources = run_time((*sizes, 2))
            cases.append(case(keep, sources, bias=bias, sizes=sizes, tile=(4, 3), beyond=False))
    return cases


def without_cache(expr: Expr) -> Expr:
    """Programs have no cache dimension Sp, and no index p over it."""
    values = {"Sp": 2, "p": 1}

    def replace(node: Expr) -> Expr | None:
        return Const(values[node.name]) if isinstance(node, Var) and node.name in values else None

    return substitute(expr, replace)


def check_random(cases, directory):
    outcomes = CompiledMasks(cases, directory).run(cases)
    for one, outcome in zip(cases, outcomes, strict=True):
        check(one, outcome)
    # Ranges that always said "maybe" would pass; these say something of many tiles.
    states = [outcome.can_be_false & outcome.can_be_true for outcome in outcomes]
    maybe = sum(int(state.sum()) for state in states)
    assert maybe < 0.7 * sum(state.size for state in states)


def test_random_programs(tmp_path):
    check_random(random_cases(100, derandomize=True), tmp_path)


@pytest.mark.slow
def test_many_random_programs(tmp_path):
    check_random(random_cases(1500, derandomize=False), tmp_path)


# ---- the text -----------------------------------------------------------------------------------


def test_no_name_of_the_model_gets_into_the_source():
    text = case(load("; system(", k), {"; system(": np.ones(53, bool)}).source().text
    assert "system" not in text
    assert "operand0" in text


def test_unused_operands_are_left_out():
    operands = (Operand("t", "block_table", 3, (1, 37, 53), (16, 16)), Operand("m", "tensor", 1))
    program = MaskProgram(keep=load("m", k), operands=operands)
    types = (DataType.INT32,) * 5 + (DataType.INT8,)
    source = mask_source(program, (DataType.HALF,) * 3 + types, 3)
    assert [parameter.name for parameter in source.parameters] == ["operand1", "operand1_size0"]
    assert source.parameters[0].argument.tensor == 3 + 5
    assert [(s.name, s.tensor, s.axes) for s in source.symbols] == [("operand1_size0", 8, (0,))]


def test_bias_can_be_left_out():
    one = case(CAUSAL, {"x": np.zeros(53, np.float32)}, bias=load("x", k, kind="float"))
    types = (DataType.HALF,) * 3 + (DataType.FLOAT,)
    without = mask_source(one.program, types, 3, use_bias=False)
    assert not without.parameters
    assert "kHasBias = false" in without.text
    assert "kHasBias = true" in mask_source(one.program, types, 3).text


def test_again_is_a_method_where_it_is_used():
    program = MaskProgram(
        CAUSAL,
        fill=-1e4,
        operands=(Operand("x", "tensor", 1), Operand("t", "block_table", 3, (1, 64, 64), (8, 8))),
        again=and_(load("x", k), not_(load("t", integer(0), q, k))),
    )
    types = (DataType.HALF,) * 3 + (DataType.INT8,) + (DataType.INT32,) * 5
    without = mask_source(program, types, 3)
    assert not without.parameters
    assert without == mask_source(replace(program, again=FALSE), types, 3, use_again=True)
    assert "kHasAgain = false" in without.text
    assert "again(" not in without.text
    source = mask_source(program, types, 3, use_again=True)
    assert "kHasAgain = true" in source.text
    assert "bool again(T b, T h, T q, T k) const" in source.text
    arrays = [f"operand1_{name}" for name in ARRAY_NAMES]
    assert [one.name for one in source.parameters] == ["operand0", "operand0_size0", *arrays]
    assert source.reads == (("operand0_size0", "Sk"),)
    assert source.tables == 0  # of keep() alone


def test_only_loads_at_exactly_the_pair_have_cursors():
    sources = {"t": table(4)}
    pair = load("t", integer(0), q, k)
    shifted = load("t", integer(0), q, Load("p", (k,), "int"))
    one = case(and_(pair, shifted), {**sources, "p": np.arange(53)})
    assert one.source().tables == 1
    assert case(CAUSAL).source().tables == 0


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("bool", DataType.INT32),
        ("int", DataType.FLOAT),
        ("float", DataType.INT8),
        ("bool", DataType.BOOL),
        ("float", DataType.FP8),
    ],
)
def test_loads_of_another_type_are_refused(kind, dtype):
    value = Load("x", (k,), kind)
    keep, bias = (CAUSAL, value) if kind == "float" else (CAUSAL, None)
    if kind == "bool":
        keep = value
    elif kind == "int":
        keep = ge0(value)
    program = MaskProgram(keep=keep, bias=bias, operands=(Operand("x", "tensor", 1),))
    with pytest.raises(MalformedNodeError, match=f"'x' of type {dtype.name}"):
        mask_source(program, (DataType.HALF,) * 3 + (dtype,), 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "0x1.0000000000000p+0f"),
        (0.1, "0x1.99999a0000000p-4f"),
        (-1e300, "-stof::kInfinity"),
        (float("inf"), "stof::kInfinity"),
        (3.4028234663852886e38, "0x1.fffffe0000000p+127f"),
        (1e-46, "0x0.0p+0f"),
    ],
)
def test_float_literals_are_float32(value, text):
    assert float_literal(value) == text
