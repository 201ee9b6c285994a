"""Plans that `optimize` makes, through the plugins: they launch what Python resolves."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stof_onnx.ir.errors import InputError
from stof_onnx.ir.operators.masked_attention import MaskedAttention
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import Plan, evaluate_symbols
from stof_onnx.ir.target import Target
from stof_onnx.planning import make_plans
from stof_onnx.plugin_host import PluginError
from stof_onnx.templates.attention_node import AttentionNode
from stof_onnx.templates.registry import Node
from stof_onnx.templates.table_node import TableNode
from tests.conformance.fake_driver import FakeDriver
from tests.conformance.launching import enqueue, expected, recorded, run
from tests.conformance.nodes import SIZES, NodeCase, Sizes, case

NODES = [
    case(name)
    for name in (
        "padding_and_lengths",
        "run_time_table",
        "table_by_head",
        "sinks_before_a_table",
        "hidden_twice",
    )
]


@functools.cache
def compiled(name: str) -> Plan:
    """For a node whose batch and lengths aren't known."""
    node = case(name)
    shapes = zip(node.inputs(Sizes(2, 3, 5)), node.inputs(Sizes(7, 11, 13)), strict=True)
    dims = [tuple(n if n == m else None for n, m in zip(*pair, strict=True)) for pair in shapes]
    inputs = tuple(map(TensorInfo, node.input_types, dims))
    seen: Node
    if isinstance(node.record, MaskedAttention):
        seen = AttentionNode(node.record, inputs)
    else:
        seen = TableNode(node.record, inputs)
    targets = [Target.parse("sm_80"), Target.parse("sm_90")]
    return make_plans({name: seen}, targets, producer="tests")[name]


@settings(max_examples=25, deadline=None)
@given(at=st.builds(Sizes, st.integers(0, 40), st.integers(0, 3000), st.integers(0, 3000)))
@example(at=Sizes(1, 1, 1))
@pytest.mark.parametrize("capability", [(8, 9), (9, 0)], ids=str)
@pytest.mark.parametrize("node", NODES, ids=str)
def test_launches_are_those_of_the_plan(
    node: NodeCase, recording_driver: FakeDriver, capability: tuple[int, int], at: Sizes
) -> None:
    plan = compiled(node.name)
    recording_driver.describe(plan)
    recording_driver.set_capability(*capability)
    attached = node.create(plan).attach()
    recording_driver.clear_log()
    run(attached, node, at)
    found = recorded(recording_driver.calls())
    assert found == expected(plan, *node.descs(at), capability=capability)
    assert bool(found) == (at.B > 0 and at.Sq > 0)
    attached.close()


AT = Sizes(3, 100, 77)
RUN_TIME_MASKS = ("padding_and_lengths", "bias", "run_time_table", "table_by_head", "table_of_ids")
MASK_SHAPES = [
    # of the node's tensors at AT: node, input, its other shape, what is said of it; None if it runs
    ("padding_and_lengths", 3, (3, 77), None),
    ("padding_and_lengths", 3, (1, 77), None),
    ("padding_and_lengths", 3, (3, 1), None),
    ("padding_and_lengths", 3, (4, 1024), None),
    ("padding_and_lengths", 3, (3, 76), ("operand0_size1", 3, 76, "Sk = 77")),
    ("padding_and_lengths", 3, (3, 2), ("operand0_size1", 3, 2, "Sk = 77")),
    ("padding_and_lengths", 3, (3, 0), ("operand0_size1", 3, 0, "Sk = 77")),
    ("padding_and_lengths", 3, (2, 77), ("operand0_size0", 3, 2, "B = 3")),
    ("padding_and_lengths", 4, (1,), None),
    ("padding_and_lengths", 4, (2,), ("operand1_size0", 4, 2, "B = 3")),
    ("bias", 3, (4, 100, 77), None),
    ("bias", 3, (1, 1, 1), None),
    ("bias", 3, (1, 100, 1), None),
    ("bias", 3, (3, 100, 77), ("operand0_size0", 3, 3, "4")),
    ("bias", 3, (2, 100, 77), ("operand0_size0", 3, 2, "4")),
    ("bias", 3, (4, 99, 77), ("operand0_size1", 3, 99, "Sq = 100")),
    ("bias", 3, (4, 100, 17), ("operand0_size2", 3, 17, "Sk = 77")),
    # The kernel reads the table, which was made from the same tensor.
    ("run_time_table", 3, (1, 1, 100, 77), None),
    ("run_time_table", 3, (3, 1, 99, 77), ("operand0_size2", 3, 99, "Sq = 100")),
    ("run_time_table", 3, (3, 1, 100, 76), ("operand0_size3", 3, 76, "Sk = 77")),
    # Sizes of tables are those of one operand: the others must fit them.
    ("table_by_head", 0, (3, 1, 100, 77), None),
    ("table_by_head", 0, (3, 5, 100, 77), None),
    ("table_by_head", 0, (3, 3, 100, 77), ("operand0_size1", 0, 3, "4")),
    ("table_of_ids", 0, (1, 100), None),
    ("table_of_ids", 0, (2, 100), ("operand0_size0", 0, 2, "B = 3")),
]


@pytest.mark.parametrize(("name", "number", "shape", "refusal"), MASK_SHAPES, ids=str)
def test_a_mask_broadcasts_or_is_as_long_as_the_scores(
    driver: FakeDriver,
    name: str,
    number: int,
    shape: tuple[int, ...],
    refusal: tuple[str, int, int, str] | None,
) -> None:
    node, plan = case(name), compiled(name)
    driver.describe(plan)
    inputs, outputs = node.descs(AT)
    inputs[number] = dataclasses.replace(inputs[number], dims=shape)
    attached = node.create(plan).attach()
    if refusal is None:
        attached.on_shape_change(inputs, outputs)
        enqueue(attached, inputs, outputs)
        assert recorded(driver.calls()) == expected(plan, inputs, outputs)
    else:
        symbol, tensor, size, length = refusal
        with pytest.raises(PluginError) as caught:
            attached.on_shape_change(inputs, outputs)
        message = (
            f"symbol {symbol} (input {tensor}) is {size}, {node.operator} wants 1 or at least "
            f"{length}; give the node inputs whose sizes fit each other"
        )
        assert message in str(caught.value)
        with pytest.raises(InputError) as resolved:
            expected(plan, inputs, outputs)
        assert f"{symbol} = {size}; wanted 1 or at least {length}; give" in str(resolved.value)
        assert driver.launches() == []
    attached.close()


@pytest.mark.parametrize("name", RUN_TIME_MASKS)
def test_what_a_node_runs_at_is_covered(name: str) -> None:
    plan = compiled(name)
    assert plan.covers
    for at in SIZES:
        shapes = [[one.dims for one in descs] for descs in case(name).descs(at)]
        evaluate_symbols(plan, *shapes)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_an_engine_keeps_the_plan(node: NodeCase) -> None:
    plan = compiled(node.name)
    kept = {field.name: field.data for field in node.create(plan).serialize()}["plan"]
    assert kept == node.attributes(plan)["plan"].tobytes()
