"""Plans that `optimize` makes, through the plugins: they launch what Python resolves."""

from __future__ import annotations

import functools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stof_onnx.ir.operators.masked_attention import MaskedAttention
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import Plan
from stof_onnx.ir.target import Target
from stof_onnx.planning import make_plans
from stof_onnx.templates.attention_node import AttentionNode
from stof_onnx.templates.registry import Node
from stof_onnx.templates.table_node import TableNode
from tests.conformance.fake_driver import FakeDriver
from tests.conformance.launching import expected, recorded, run
from tests.conformance.nodes import NodeCase, Sizes, case

NODES = [case(name) for name in ("padding_and_lengths", "run_time_table", "table_by_head")]


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


@pytest.mark.parametrize("node", NODES, ids=str)
def test_an_engine_keeps_the_plan(node: NodeCase) -> None:
    plan = compiled(node.name)
    kept = {field.name: field.data for field in node.create(plan).serialize()}["plan"]
    assert kept == node.attributes(plan)["plan"].tobytes()
