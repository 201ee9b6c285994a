"""What the creators say of themselves, and what createPlugin refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stof_onnx import plugin_host
from stof_onnx.ir.plan import DataType, Plan, encode
from stof_onnx.plugin_host import BUILD, RUNTIME, Field, Plugin, PluginError, field_of
from tests.conformance.field_forms import (
    CHAR,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    as_int64,
    without_nul,
)
from tests.conformance.nodes import ATTENTION, ATTENTIONS, NODES, SIZES, TABLE, NodeCase, case

KINDS = {int: INT32, list: INT32, float: FLOAT32, str: CHAR, np.ndarray: INT8}


def fields_of(node: NodeCase, plan: Plan | None = None) -> dict[str, Field]:
    attributes = node.attributes(plan)
    return {name: field_of(name, value) for name, value in attributes.items()}


def refusal(operator: str, fields: dict[str, Field]) -> str:
    with pytest.raises(PluginError) as caught:
        Plugin.create(operator, list(fields.values()))
    return str(caught.value)


def test_names_versions_and_namespaces() -> None:
    found = {(c.name, c.version, c.namespace) for c in plugin_host.creators()}
    assert found == {(ATTENTION, "1", "stof"), (TABLE, "1", "stof")}
    assert all(len(text) < 1024 for names in found for text in names)


@pytest.mark.parametrize("operator", [ATTENTION, TABLE])
def test_field_names_are_the_attributes_of_the_operator(operator: str) -> None:
    (creator,) = (c for c in plugin_host.creators() if c.name == operator)
    wanted: dict[str, int] = {"plan": INT8}
    for node in NODES:
        if node.operator == operator:
            values = node.record.attributes().items()
            wanted.update({name: KINDS[type(value)] for name, value in values})
    names = [name for name, _ in creator.fields]
    assert len(names) == len(set(names))
    # The importer looks these two up itself, listed or not.
    listed = {n: k for n, k in creator.fields if n not in ("plugin_version", "plugin_namespace")}
    assert listed == wanted


@pytest.mark.parametrize("phase", [BUILD, RUNTIME])
@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_plugin_is_created_from_the_attributes_of_a_node(node: NodeCase, phase: int) -> None:
    Plugin.create(node.operator, list(fields_of(node).values()), phase).close()


@pytest.mark.parametrize("node", NODES, ids=str)
@pytest.mark.parametrize("form", [as_int64, without_nul])
def test_other_forms_of_the_same_attributes(node: NodeCase, form: Callable[[Field], Field]) -> None:
    changed = [form(field) for field in fields_of(node).values()]
    types = node.create().output_types(node.input_types)
    assert Plugin.create(node.operator, changed).output_types(node.input_types) == types


def test_an_empty_table_is_none() -> None:
    node = case("rows_half")
    fields = {**fields_of(node), "table": Field("table", INT32, 0, b"")}
    Plugin.create(node.operator, list(fields.values())).close()


def test_zeros_are_no_softcap_and_no_sinks() -> None:
    fields = fields_of(case("rows_half"))
    for name, value in (("softcap", 0.0), ("sinks", 0)):
        fields[name] = field_of(name, value)
    Plugin.create(ATTENTION, list(fields.values())).close()


@pytest.mark.parametrize(
    "wrong", [DataType.HALF, DataType.BF16, DataType.INT8, DataType.INT32], ids=str
)
@pytest.mark.parametrize("name", ["sinks", "sinks_before_a_table"])
def test_a_plan_with_sinks_of_another_type_is_refused(name: str, wrong: DataType) -> None:
    node = case(name)
    assert node.sinks is not None
    types = list(node.input_types)
    types[node.sinks] = wrong
    plan = dataclasses.replace(node.plan, input_types=tuple(types))
    message = refusal(node.operator, fields_of(node, plan))
    assert f"type {wrong.value} for tensor {node.sinks}, the sinks" in message


@pytest.mark.parametrize("node", NODES, ids=str)
def test_the_order_of_attributes_does_not_matter(node: NodeCase) -> None:
    Plugin.create(node.operator, list(fields_of(node).values())[::-1]).close()


@pytest.mark.parametrize("node", [case("rows_half"), case("dense_table")], ids=str)
def test_each_missing_attribute_is_named(node: NodeCase) -> None:
    fields = fields_of(node)
    for name in fields.keys() - {"plugin_version", "plugin_namespace"}:
        message = refusal(node.operator, {n: f for n, f in fields.items() if n != name})
        assert name in message
        assert node.operator in message
        assert "stof-onnx optimize" in message


WRONG_TYPES = {
    INT32: [FLOAT32, INT16, CHAR],
    FLOAT32: [FLOAT64, INT32],
    CHAR: [INT8, INT32],
    INT8: [CHAR, INT32],
}


@pytest.mark.parametrize("node", [case("rows_half"), case("dense_table")], ids=str)
def test_each_attribute_of_a_wrong_type_is_named(node: NodeCase) -> None:
    fields = fields_of(node)
    for name in fields.keys() - {"plugin_version", "plugin_namespace"}:
        for kind in WRONG_TYPES[fields[name].type]:
            wrong = Field(name, kind, fields[name].length, fields[name].data + bytes(256))
            message = refusal(node.operator, {**fields, name: wrong})
            assert f"'{name}'" in message
            assert f"type {kind}" in message
            assert "wanted" in message


@pytest.mark.parametrize("node", [case("run_time_table"), case("dense_table")], ids=str)
def test_each_attribute_of_a_wrong_length_is_named(node: NodeCase) -> None:
    fields = fields_of(node)
    for name, field in fields.items():
        if field.type not in (INT32, FLOAT32):
            continue
        for length in (field.length + 1, field.length - 1, -1):
            if name == "table" and length == 0:  # means that there is none
                continue
            wrong = Field(name, field.type, length, field.data * 2)
            message = refusal(node.operator, {**fields, name: wrong})
            assert f"'{name}'" in message
            assert f"length {length}" in message


VALUES: list[tuple[str, str, Any, str]] = [
    ("rows_half", "num_heads", 0, "num_heads is 0, wanted 1 or more"),
    ("rows_half", "num_heads", -4, "num_heads is -4"),
    ("rows_half", "kv_num_heads", 3, "multiple of kv_num_heads"),
    ("rows_half", "head_dim", 0, "head_dim is 0"),
    ("rows_half", "value_head_dim", 0, "value_head_dim is 0"),
    ("rows_half", "scale", float("nan"), "scale"),
    ("rows_half", "scale", float("inf"), "scale"),
    ("rows_half", "query_layout", "BSHX", "query_layout is 'BSHX', wanted BSHD or BHSD"),
    ("rows_half", "key_layout", "", "key_layout is '', wanted"),
    ("rows_half", "value_layout", "bshd", "value_layout is 'bshd', wanted"),
    ("rows_half", "output_layout", "SBHD", "output_layout is 'SBHD', wanted"),
    ("rows_half", "output_rank", 2, "output_rank is 2, wanted"),
    ("heads_float", "output_rank", 3, "output_rank is 3, wanted"),
    ("rows_half", "query_offset", -1, "query"),
    ("rows_half", "value_head_stride", -8, "value"),
    ("rows_half", "mask", "", "mask"),
    ("rows_half", "score_dtype", "int8", "score_dtype is 'int8', wanted float32"),
    ("rows_half", "dtype", "float64", "dtype is 'float64', wanted float32"),
    ("rows_half", "dtype", "bfloat16", "plan has type 1 for tensor 0, its attributes say 7"),
    ("softcap", "softcap", -50.0, "softcap is -50.000000, wanted a positive number, or 0"),
    ("rows_half", "softcap", float("inf"), "softcap is inf, wanted"),
    ("rows_half", "softcap", float("nan"), "softcap is nan, wanted"),
    ("sinks", "sinks", 2, "sinks is 2, wanted 0 or 1"),
    ("sinks", "sinks", -1, "sinks is -1, wanted 0 or 1"),
    ("rows_half", "sinks", 1, "its plan has 3 inputs and 1 outputs; wanted 4 or more"),
    ("run_time_table", "sinks", 1, "its plan has type 2 for tensor 3, the sinks, wanted 0"),
    ("padding_and_lengths", "sinks", 1, "its plan has type 3 for tensor 4, the sinks, wanted 0"),
    ("run_time_table", "table", [64, 32, 2, 0], "table"),
    ("run_time_table", "table", [64, 30, 1, 0], "table"),
    ("run_time_table", "table", [0, 32, 1, 0], "table"),
    ("dense_table", "num_heads", 0, "num_heads is 0, wanted 1 or more"),
    ("dense_table", "tile", [64, 60], "tile is 64 x 60, wanted"),
    ("dense_table", "tile", [0, 64], "tile is 0 x 64, wanted"),
    ("dense_table", "tile", [-64, -64], "tile is -64 x -64, wanted"),
    ("dense_table", "mask", "", "mask"),
]


@pytest.mark.parametrize(("name", "attribute", "value", "message"), VALUES)
def test_impossible_values_are_named(name: str, attribute: str, value: Any, message: str) -> None:
    node = case(name)
    fields = {**fields_of(node), attribute: field_of(attribute, value)}
    assert message in refusal(node.operator, fields)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [("rows_half", ("num_heads", "value_head_dim")), ("table_by_head", ("num_heads",))],
)
def test_sizes_whose_product_overflows_give_no_shape(
    name: str, attributes: tuple[str, ...]
) -> None:
    node = case(name)
    huge = np.int64(2**62).tobytes()
    fields = {**fields_of(node), **{a: Field(a, INT64, 1, huge) for a in attributes}}
    with pytest.raises(PluginError):
        Plugin.create(node.operator, list(fields.values())).output_shapes(
            node.input_descs(SIZES[0])
        )


@pytest.mark.parametrize("node", [case("rows_half"), case("dense_table")], ids=str)
def test_unknown_and_repeated_attributes_are_named(node: NodeCase) -> None:
    fields = fields_of(node)
    assert "'colour'" in refusal(node.operator, {**fields, "colour": field_of("colour", 1)})
    assert "'mask'" in refusal(node.operator, {**fields, "again": fields["mask"]})


@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_missing_plan_says_how_to_get_one(node: NodeCase) -> None:
    fields = fields_of(node)
    del fields["plan"]
    message = refusal(node.operator, fields)
    assert "plan" in message
    assert "stof-onnx optimize" in message


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "no magic": b"x" + data[1:],
        "version 2": data[:8] + b"\2" + data[9:],
        "truncated": data[:-1],
        "longer": data + b"\0",
        "flipped": data[:40] + bytes([data[40] ^ 4]) + data[41:],
    }


@pytest.mark.parametrize("node", [case("rows_half"), case("dense_table")], ids=str)
@pytest.mark.parametrize("kind", damaged(bytes(64)))
def test_a_damaged_plan_is_refused(node: NodeCase, kind: str) -> None:
    data = damaged(encode(node.plan))[kind]
    fields = {**fields_of(node), "plan": Field("plan", INT8, len(data), data)}
    message = refusal(node.operator, fields)
    assert node.operator in message
    assert "plan" in message
    assert "stof-onnx optimize" in message


@pytest.mark.parametrize("node", [case("rows_half"), case("dense_table")], ids=str)
def test_a_plan_of_another_operator_is_refused(node: NodeCase) -> None:
    other = TABLE if node.operator == ATTENTION else ATTENTION
    plan = dataclasses.replace(node.plan, operator=other)
    message = refusal(node.operator, fields_of(node, plan))
    assert f"made for {other}" in message


@pytest.mark.parametrize("node", ATTENTIONS, ids=str)
def test_a_plan_of_other_types_is_refused(node: NodeCase) -> None:
    for position in range(3):
        types = list(node.input_types)
        types[position] = DataType.INT8
        plan = dataclasses.replace(node.plan, input_types=tuple(types))
        assert "type" in refusal(node.operator, fields_of(node, plan))


@pytest.mark.parametrize("wrong", [DataType.BOOL, DataType.UINT8, DataType.FP8])
@pytest.mark.parametrize("name", ["padding_and_lengths", "dense_table"])
def test_a_plan_with_types_that_plugins_cannot_take_is_refused(name: str, wrong: DataType) -> None:
    node = case(name)
    plan = dataclasses.replace(node.plan, input_types=(*node.input_types[:-1], wrong))
    assert "plan" in refusal(node.operator, fields_of(node, plan))


def test_an_unknown_plugin_is_named() -> None:
    message = refusal("StofSomething", {})
    assert "StofSomething" in message
    assert ATTENTION in message
    assert TABLE in message
