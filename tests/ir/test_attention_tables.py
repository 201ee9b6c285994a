"""StofMaskedAttention with a run-time table: the same meaning, other attributes and inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.mask.program import MaskProgram
from stof_onnx.ir.operators import mask_table
from stof_onnx.ir.operators.mask_table import OUTPUT_NAMES, MaskTable
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TableInput, node_attributes
from stof_onnx.ir.operators.registry import DOMAIN
from tests.ir.attention_cases import NODE, Case, Node, Sizes, model_of, node_of, run

SIZES = Sizes(batch=2, groups=2, queries=7, keys=9)
TABLE = TableInput((16, 16), by_batch=True, by_head=True)
CASES = {
    "dense_bool": TABLE,
    "dense_transposed": replace(TABLE, by_batch=False),
    "padding": replace(TABLE, by_head=False),
    "bias_by_head": TableInput((8, 64), by_batch=False, by_head=False),
    "no_mask": TableInput((64, 64), by_batch=False, by_head=False),
}


def with_table(node: Node, table: TableInput) -> Node:
    """The node with three more inputs, which hold nothing of the mask."""
    tables = [
        (name, np.full((1,) * rank, -7, np.int32))
        for name, rank in zip(OUTPUT_NAMES, (3, 3, 4), strict=True)
    ]
    return node._replace(record=replace(node.record, table=table), inputs=[*node.inputs, *tables])


@pytest.mark.parametrize("mask", CASES)
def test_a_table_changes_no_result(mask: str) -> None:
    plain = node_of(Case(SIZES, mask))
    tabled = with_table(plain, CASES[mask])
    wanted = run(model_of(plain), plain)
    np.testing.assert_array_equal(run(model_of(tabled), tabled), wanted)
    nodes = [expand_model(model_of(node)).graph.node for node in (plain, tabled)]
    assert list(nodes[0]) == list(nodes[1])


@pytest.mark.parametrize("mask", CASES)
def test_attributes_round_trip(mask: str) -> None:
    node = with_table(node_of(Case(SIZES, mask)), CASES[mask])
    proto = onnx.NodeProto()
    proto.ParseFromString(model_of(node).graph.node[0].SerializeToString())
    again = MaskedAttention.from_attributes(node_attributes(proto), NODE)
    assert again == node.record
    assert again.attributes() == node.record.attributes()
    assert again.input_count() == len(proto.input)
    assert again.operand_positions()[-1] == len(proto.input) - 3


def test_an_empty_attribute_is_no_table() -> None:
    record = node_of(Case(SIZES, "padding")).record
    attributes = {**record.attributes(), "table": []}
    assert MaskedAttention.from_attributes(attributes, NODE) == record


def test_a_table_node_disappears_in_the_expansion() -> None:
    """Nobody but the attention, which doesn't need it, reads its outputs."""
    plain = node_of(Case(SIZES, "dense_bool"))
    tabled = with_table(plain, TABLE)
    model = model_of(tabled)
    del model.graph.input[-3:]
    program = MaskProgram(plain.record.mask.keep, operands=plain.record.mask.operands)
    record = MaskTable(program, SIZES.heads, ((0, 0), (0, 2), (0, 3)), (16, 16))
    attention = model.graph.node.pop()
    model.graph.node.append(
        helper.make_node(
            mask_table.OP_TYPE,
            [plain.inputs[3][0]],
            OUTPUT_NAMES,
            name="table",
            domain=DOMAIN,
            **record.attributes(),
        )
    )
    model.graph.node.append(attention)
    got = run(model, plain)
    np.testing.assert_array_equal(got, run(model_of(plain), plain))
    wanted = expand_model(model_of(plain)).graph.node
    assert [n.op_type for n in expand_model(model).graph.node] == [n.op_type for n in wanted]
    # It is a table nevertheless: where somebody reads it, it is expanded.
    model.graph.output.append(
        helper.make_tensor_value_info("tile_counts", TensorProto.INT32, ["groups", "rows", 2])
    )
    assert len(expand_model(model).graph.node) > len(wanted)


@pytest.mark.parametrize(
    ("mask", "table", "message"),
    [
        ("padding", [64, 64, 1], "table [64, 64, 1]; wanted [tile_q, tile_k, 0 or 1, 0 or 1]"),
        ("padding", [64, 64, 1, 0, 0], "wanted [tile_q, tile_k, 0 or 1, 0 or 1]"),
        ("padding", [64, 60, 1, 0], "with tiles of multiples of 8"),
        ("padding", [0, 64, 1, 0], "with tiles of multiples of 8"),
        ("padding", [64, 64, 2, 0], "wanted [tile_q, tile_k, 0 or 1, 0 or 1]"),
        ("padding", 64, "is not iterable"),
        ("padding", [64, 64, 0, 1], "depends on the batch; wanted a table with a group for each"),
        (
            "dense_for_longer_sequences",
            [64, 64, 1, 0],
            "depends on the head; wanted a table with a group for",
        ),
        ("dense_transposed", [64, 64, 0, 0], "for a mask that depends on the head"),
        ("arithmetic", [64, 64, 0, 1], "for a mask that depends on the batch"),
        ("table", [64, 64, 1, 1], "a run-time table of a mask that loads a constant table"),
        ("padding", [64, 64, 1, 0], "has 4 inputs; wanted 7"),
    ],
)
def test_a_wrong_table_is_refused(mask: str, table: Any, message: str) -> None:
    with pytest.raises(MalformedNodeError) as caught:
        expand_model(model_of(node_of(Case(SIZES, mask)), table=table))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"node '{NODE}'")
