"""StofMaskedAttention with a softcap and with sinks: expansion against the oracle, attributes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.operators.mask_table import OUTPUT_NAMES
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TableInput, node_attributes
from tests.ir.attention_cases import (
    FLOAT16_MIN,
    FLOAT32_MIN,
    MASKS,
    NODE,
    Case,
    Sizes,
    check,
    model_of,
    node_of,
    run,
)

GROUPED = Sizes(batch=2, kv_heads=2, groups=3, queries=9, keys=5, head_dim=8, value_head_dim=3)


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str) -> None:
    check(Case(GROUPED, mask, softcap=1.25, sinks=0.5))


@pytest.mark.parametrize("softcap", [2.0**-10, 0.5, 50.0, 2.0**20])
@pytest.mark.parametrize("mask", ["causal", "alibi"])
def test_softcaps(mask: str, softcap: float) -> None:
    check(Case(GROUPED, mask, softcap=softcap, scale=1.5), tolerance=2e-5)


@pytest.mark.parametrize("sinks", [-math.inf, FLOAT32_MIN, -40.0, 0.0, 40.0, 1e30])
@pytest.mark.parametrize("mask", ["causal", "bias_by_head"])
def test_sinks(mask: str, sinks: float) -> None:
    check(Case(GROUPED, mask, sinks=sinks))


@pytest.mark.parametrize("mask", ["causal", "bias_by_head"])
@pytest.mark.parametrize(
    ("dtype", "score_dtype"),
    [("float16", "float32"), ("float16", "float16"), ("float32", "float16")],
)
def test_types(mask: str, dtype: str, score_dtype: str) -> None:
    check(Case(GROUPED, mask, dtype=dtype, score_dtype=score_dtype, softcap=3.0, sinks=1.0))


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_opsets(opset: int) -> None:
    node = node_of(Case(GROUPED, "documents", softcap=2.0, sinks=0.0))
    got = run(model_of(node, opset=opset), node)
    np.testing.assert_allclose(got, node.wanted, rtol=2e-6, atol=2e-6)


def test_softcap_bounds_what_a_key_can_weigh() -> None:
    """Whatever the scores, weights of two keys are e^2 apart at most with a softcap of 1."""
    node = node_of(Case(Sizes(keys=2), "no_mask", softcap=1.0, scale=1e4))
    value = np.zeros_like(node.inputs[2][1])
    value[:, 0] = 1.0
    node.inputs[2] = ("value", value)
    got = run(model_of(node), node)
    lowest = 1 / (1 + math.e**2)
    assert lowest * 0.999 < got.min() < lowest * 1.001
    assert got.max() <= 1 - lowest * 0.999


@pytest.mark.parametrize(
    ("dtype", "mode", "fill", "is_guarded", "sinks", "wanted"),
    [
        ("float32", "replace", -math.inf, False, 0.0, "zero"),
        ("float32", "add", -math.inf, False, 0.0, "zero"),
        ("float32", "add", -math.inf, True, 0.0, "zero"),
        ("float16", "replace", FLOAT32_MIN, False, 0.0, "zero"),
        ("float32", "replace", FLOAT32_MIN, False, 0.0, "zero"),
        ("float32", "add", FLOAT32_MIN, False, -1e30, "zero"),
        ("float16", "replace", FLOAT16_MIN, False, -100.0, "zero"),
        ("float32", "replace", -1e4, True, 0.0, "zero"),
        ("float32", "add", -1e4, False, 0.0, "zero"),
        # A sink as low as the fill has a weight like the keys'.
        ("float32", "replace", FLOAT32_MIN, False, FLOAT32_MIN, "shared"),
        ("float32", "add", FLOAT32_MIN, True, FLOAT32_MIN, "shared"),
        ("float32", "replace", -1e4, False, -1e4, "shared"),
        ("float32", "add", -1e4, False, -1e4, "shared"),
        # A lower one, or -inf, has none.
        ("float32", "replace", -1e4, False, -2e4, "keys"),
        ("float32", "add", -1e4, False, FLOAT32_MIN, "keys"),
        ("float32", "replace", FLOAT32_MIN, False, -math.inf, "keys"),
        ("float32", "replace", -math.inf, True, -math.inf, "keys"),
        ("float32", "replace", -math.inf, False, -math.inf, "keys"),
    ],
)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_rows_without_keys(
    *,
    dtype: str,
    mode: str,
    fill: float,
    is_guarded: bool,
    sinks: float,
    wanted: str,
    softcap: float,
) -> None:
    program = {"fill": fill, "fill_mode": mode, "nan_to_zero": is_guarded}
    case = Case(
        Sizes(queries=9, keys=4),  # the first 5 queries see nothing
        "causal_end",
        dtype=dtype,
        score_dtype=dtype,
        program=program,
        softcap=softcap,
        sinks=sinks,
    )
    without = node_of(replace(case, sinks=None)).wanted[:, :5]
    rows = node_of(case).wanted[:, :5]
    if wanted == "zero":
        assert (rows == 0).all()
    elif wanted == "keys":
        np.testing.assert_allclose(rows, without, rtol=1e-9)
    else:
        assert rows.all()
        assert not np.isclose(rows, without, rtol=1e-3).any()
    check(case, tolerance=2e-3 if mode == "add" else 0.0)


# ---------------------------------------------------------------------------------------
# Attributes and errors.

TABLE = TableInput((16, 16), by_batch=True, by_head=True)


@pytest.mark.parametrize("table", [None, TABLE], ids=["no table", "table"])
@pytest.mark.parametrize(("softcap", "sinks"), [(0.0, 1.0), (30.0, None), (50.0, 0.0)])
def test_attributes_round_trip_through_a_node(
    softcap: float, sinks: float | None, table: TableInput | None
) -> None:
    node = node_of(Case(GROUPED, "documents", softcap=softcap, sinks=sinks))
    inputs = list(node.inputs)
    if table is not None:
        inputs += [(name, np.zeros((1,) * 3, np.int32)) for name in OUTPUT_NAMES]
    node = node._replace(record=replace(node.record, table=table), inputs=inputs)
    proto = onnx.NodeProto()
    proto.ParseFromString(model_of(node).graph.node[0].SerializeToString())
    attributes = node_attributes(proto)
    assert ("softcap" in attributes, "sinks" in attributes) == (softcap > 0, sinks is not None)
    again = MaskedAttention.from_attributes(attributes, NODE)
    assert again == node.record
    assert again.attributes() == node.record.attributes()
    assert again.input_count() == len(proto.input)
    names = [None if at is None else proto.input[at] for at in (again.sinks_position(),)]
    assert names == [None if sinks is None else "sinks"]
    at = again.table_position()
    assert (at is None) if table is None else proto.input[at] == OUTPUT_NAMES[0]
    assert proto.input[again.operand_positions()[0]] == "ids"


def test_zeros_are_no_softcap_and_no_sinks() -> None:
    record = node_of(Case()).record
    attributes = {**record.attributes(), "softcap": 0.0, "sinks": 0}
    again = MaskedAttention.from_attributes(attributes, NODE)
    assert again == record
    assert again.attributes() == record.attributes()


def test_a_sink_decides_what_an_empty_row_yields() -> None:
    record = node_of(Case(program={"fill": FLOAT32_MIN})).record
    assert record.empty_row() == "mean"
    assert replace(record, sinks=True).empty_row() == "zero"


SMALLEST = {"float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
LARGEST = {"float32": -FLOAT32_MIN, "bfloat16": 2.0**128 - 2.0**120, "float16": -FLOAT16_MIN}


@pytest.mark.parametrize("dtype", SMALLEST)
def test_a_softcap_is_a_number_of_the_scores_type(dtype: str) -> None:
    record = replace(node_of(Case()).record, score_dtype=dtype)
    for fits in (SMALLEST[dtype], 1.0, 50.0, LARGEST[dtype]):
        replace(record, softcap=fits).validate()
    for wrong in (SMALLEST[dtype] / 2, LARGEST[dtype] * 1.01, -1.0, math.inf, math.nan):
        with pytest.raises(MalformedNodeError, match=f"0 for none, or a positive {dtype} number"):
            replace(record, softcap=wrong).validate()


@pytest.mark.parametrize(
    ("sinks", "attributes", "message"),
    [
        (None, {"softcap": -50.0}, "softcap -50.0; wanted 0 for none, or a positive float32"),
        (None, {"softcap": math.nan}, "softcap nan; wanted 0 for none"),
        (None, {"softcap": math.inf}, "softcap inf; wanted 0 for none"),
        (None, {"softcap": 1e5, "score_dtype": "float16"}, "or a positive float16 number"),
        (None, {"softcap": "high"}, "could not convert string to float"),
        (None, {"softcap": [1.0, 2.0]}, "float() argument"),
        (None, {"sinks": 2}, "sinks 2; wanted 0 or 1"),
        (0.0, {"sinks": -1}, "sinks -1; wanted 0 or 1"),
        (0.0, {"sinks": "yes"}, "invalid literal for int()"),
        (None, {"sinks": 1}, "has 3 inputs; wanted 4"),
        (0.0, {"sinks": 0}, "has 4 inputs; wanted 3"),
        (0.0, {"table": TABLE.numbers()}, "has 4 inputs; wanted 7"),
    ],
    ids=str,
)
def test_a_wrong_attribute_is_refused(
    sinks: float | None, attributes: dict[str, Any], message: str
) -> None:
    model = model_of(node_of(Case(sinks=sinks)), **attributes)
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"node '{NODE}'")
