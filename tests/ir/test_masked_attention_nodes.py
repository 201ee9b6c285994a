"""StofMaskedAttention as a node: attributes there and back, damaged nodes refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.mask.program import (
    MaskProgram,
    Operand,
)
from stof_onnx.ir.operators.masked_attention import (
    MaskedAttention,
    node_attributes,
)
from tests.ir.attention_cases import (
    MASKS,
    NODE,
    Case,
    Sizes,
    model_of,
    node_of,
    tensor,
)

# ---------------------------------------------------------------------------------------
# Attributes and errors.


@pytest.mark.parametrize("mask", MASKS)
def test_attributes_round_trip_through_a_node(mask: str) -> None:
    places = ("BS3HD", "BHSD", "BSH3D")
    node = node_of(Case(Sizes(groups=2), mask, places, ("BSHD", 4), score_dtype="bfloat16"))
    plan = numpy_helper.from_array(np.frombuffer(b"STOFPLAN\0", np.int8), "plan")
    proto = onnx.NodeProto()
    proto.ParseFromString(model_of(node, plan=plan).graph.node[0].SerializeToString())
    attributes = node_attributes(proto)
    again = MaskedAttention.from_attributes(attributes, NODE)
    assert again == node.record
    assert again.attributes() == node.record.attributes()
    assert again.input_count() == len(proto.input)
    assert {type(value) for value in again.attributes().values()} == {int, float, str}


REQUIRED = sorted(
    {
        *("num_heads", "kv_num_heads", "head_dim", "value_head_dim", "scale"),
        *("output_layout", "output_rank", "mask", "score_dtype", "dtype"),
        *(
            f"{t}_{a}"
            for t in ("query", "key", "value")
            for a in ("layout", "offset", "head_stride")
        ),
    }
)


def test_all_attributes_are_required() -> None:
    assert sorted(node_of(Case()).record.attributes()) == REQUIRED


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_attribute_is_named(name: str) -> None:
    model = model_of(node_of(Case()))
    kept = [a for a in model.graph.node[0].attribute if a.name != name]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model)
    assert str(caught.value) == f"node '{NODE}' lacks attribute '{name}'"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"query_layout": "SBHD"}, "layout 'SBHD'; wanted BSHD or BHSD"),
        ({"output_layout": ""}, "layout ''; wanted BSHD or BHSD"),
        ({"value_layout": 3}, "layout 3; wanted BSHD or BHSD"),
        ({"output_rank": 5}, "output BSHD of rank 5"),
        ({"output_layout": "BHSD"}, "output BHSD of rank 3"),
        ({"key_offset": -4}, "offset=-4, head_stride=4); wanted offset >= 0 and head_stride >= 1"),
        ({"key_head_stride": 0}, "wanted offset >= 0 and head_stride >= 1"),
        ({"key_layout": "BHSD"}, "wanted offset and head_stride 0"),
        (
            {"num_heads": 3},
            "3 query heads, 2 key heads, head dims 4 and 4; wanted positive numbers, query heads "
            "a multiple of key heads",
        ),
        ({"kv_num_heads": 0}, "2 query heads, 0 key heads"),
        ({"num_heads": -2}, "-2 query heads, 2 key heads"),
        ({"head_dim": 0}, "head dims 0 and 4"),
        ({"value_head_dim": -1}, "head dims 4 and -1"),
        ({"num_heads": "many"}, "invalid literal for int()"),
        ({"num_heads": math.inf}, "cannot convert float infinity to integer"),
        ({"num_heads": [2, 2]}, "int() argument"),
        ({"scale": math.inf}, "scale inf; wanted a finite float32 number"),
        ({"scale": math.nan}, "scale nan; wanted a finite float32 number"),
        ({"score_dtype": "float8"}, "score_dtype 'float8'; wanted one of ['float32', "),
        ({"dtype": "int8"}, "dtype 'int8'; wanted one of ['float32', "),
        ({"mask": "{"}, "the mask attribute is not a mask program"),
        ({"mask": b"\xff\xfe"}, "attribute 'mask' can't be read: 'utf-8' codec can't decode"),
        ({"mask": 3}, "the mask attribute is not a mask program"),
        ({"mask": '{"version":7}'}, "mask program of version 7; wanted version 1"),
        (
            {"mask": MaskProgram().to_json().replace("true", '["power", 1]')},
            "unknown mask operation 'power'",
        ),
        (
            {"mask": MaskProgram(operands=(tensor("m", 2),)).to_json()},
            f"node '{NODE}' has 3 inputs; wanted 4",
        ),
        (
            {"mask": MaskProgram(operands=(Operand("t", "block_table", 2),)).to_json()},
            "mask operand 't' of kind block_table and rank 2",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_wrong_attribute_is_refused(attributes: dict[str, Any], message: str) -> None:
    model = model_of(node_of(Case()), **attributes)
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"node '{NODE}'")
    assert f"node '{NODE}'" in str(caught.value)


def renamed_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "StofAttention"


def input_too_many(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.append("query")


def input_missing(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[-1]


def output_too_many(model: onnx.ModelProto) -> None:
    model.graph.node[0].output.append("weights")


def table_from_the_graph(model: onnx.ModelProto) -> None:
    name = model.graph.initializer.pop(2).name
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, None))


def table_damaged(model: onnx.ModelProto) -> None:
    offsets = numpy_helper.to_array(model.graph.initializer[0]).copy()
    offsets[0] = 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(offsets, "table.row_offsets"))


def table_of_another_type(model: onnx.ModelProto) -> None:
    counts = numpy_helper.to_array(model.graph.initializer[1]).astype(np.int64)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(counts, "table.full_counts"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            renamed_operator,
            f"node '{NODE}' has the unknown operator 'StofAttention'; wanted one of "
            "['StofMaskTable', 'StofMaskedAttention']; use the release of stof-onnx that wrote the "
            "file, or a newer one",
        ),
        (input_too_many, f"node '{NODE}' has 9 inputs; wanted 8"),
        (input_missing, f"node '{NODE}' has 7 inputs; wanted 8"),
        (output_too_many, f"node '{NODE}' has 2 outputs; wanted 1"),
        (
            table_from_the_graph,
            f"node '{NODE}': block table input 'table.tile_columns' is not an initializer",
        ),
        (
            table_damaged,
            f"node '{NODE}', operand 'table': block table: row_offsets starts at 1; wanted 0",
        ),
        (
            table_of_another_type,
            f"node '{NODE}', operand 'table': block table: full_counts is of dtype int64",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_node_is_refused(damage: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = model_of(node_of(Case(mask="table")))
    damage(model)
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model)
    assert message in str(caught.value)


def test_a_node_without_a_name_is_named_by_its_output() -> None:
    model = model_of(node_of(Case()), num_heads=3)
    model.graph.node[0].name = ""
    with pytest.raises(MalformedNodeError, match="node 'StofMaskedAttention of out'"):
        expand_model(model)
