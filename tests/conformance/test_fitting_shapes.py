"""onShapeChange: tensors whose shapes contradict each other are never launched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from stof_onnx.plugin_host import PluginError, TensorDesc
from tests.conformance.fake_driver import FakeDriver
from tests.conformance.launching import enqueue, run
from tests.conformance.nodes import ATTENTION, ATTENTIONS, NODES, TABLES, NodeCase, Sizes, case

AT = Sizes(2, 100, 77)
HUGE = (2**62, 2**63 - 1)


def resized(desc: TensorDesc, axis: int, size: int) -> TensorDesc:
    dims = (*desc.dims[:axis], size, *desc.dims[axis + 1 :])
    return dataclasses.replace(desc, dims=dims)


def near_misses(node: NodeCase) -> Iterator[tuple[list[TensorDesc], list[TensorDesc]]]:
    """Shapes with one dimension off by one: of an output, of query, key or value, of sinks."""
    inputs, outputs = node.descs(AT)
    for i, desc in enumerate(outputs):
        for axis, size in enumerate(desc.dims):
            for wrong in (size - 1, size + 1):
                yield inputs, [*outputs[:i], resized(desc, axis, wrong), *outputs[i + 1 :]]
    if node.operator != ATTENTION:
        return
    for i in (1, 2):  # key and value of another batch
        yield [*inputs[:i], resized(inputs[i], 0, AT.B + 1), *inputs[i + 1 :]], outputs
    value = inputs[2]
    axis = 2 if node.record.attributes()["value_layout"] == "BHSD" else 1
    yield [*inputs[:2], resized(value, axis, value.dims[axis] + 1), *inputs[3:]], outputs
    if node.sinks is not None:
        right = inputs[node.sinks]
        near = [resized(right, 0, size) for size in (1, right.dims[0] - 1, right.dims[0] + 1)]
        for wrong in (*near, dataclasses.replace(right, dims=(1, *right.dims))):
            yield [*inputs[: node.sinks], wrong, *inputs[node.sinks + 1 :]], outputs


@pytest.mark.parametrize("node", NODES, ids=str)
def test_shapes_that_contradict_each_other_are_refused(node: NodeCase, driver: FakeDriver) -> None:
    attached = node.create().attach()
    attached.on_shape_change(*node.descs(AT))
    for inputs, outputs in near_misses(node):
        with pytest.raises(PluginError):
            attached.on_shape_change(inputs, outputs)
        with pytest.raises(PluginError, match="onShapeChange"):
            enqueue(attached, inputs, outputs)
    assert driver.launches() == []
    run(attached, node, AT)
    attached.close()


@pytest.mark.parametrize("rank", [0, 1, 2, 8])
@pytest.mark.parametrize("node", NODES, ids=str)
def test_inputs_of_another_rank_are_refused(node: NodeCase, rank: int, driver: FakeDriver) -> None:
    attached = node.create().attach()
    inputs, outputs = node.descs(AT)
    needed = range(3) if node.operator == ATTENTION else range(len(inputs))
    for i in needed:
        if rank >= len(inputs[i].dims):
            continue  # rows may have more axes
        wrong = [*inputs[:i], TensorDesc(inputs[i].dtype, (2,) * rank), *inputs[i + 1 :]]
        with pytest.raises(PluginError):
            attached.on_shape_change(wrong, outputs)
    attached.close()


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("node", [*ATTENTIONS[:2], *TABLES[:2]], ids=str)
def test_dimensions_whose_products_overflow_are_refused(
    node: NodeCase, huge: int, driver: FakeDriver
) -> None:
    attached = node.create().attach()
    inputs, outputs = node.descs(AT)
    every = [TensorDesc(d.dtype, (huge,) * len(d.dims)) for d in inputs]
    for wrong in (every, [every[0], *inputs[1:]]):
        with pytest.raises(PluginError):
            attached.on_shape_change(wrong, outputs)
    attached.close()


def test_the_batch_of_a_table_for_all_batches_is_one(driver: FakeDriver) -> None:
    node = case("table_of_all_batches")
    attached = node.create().attach()
    inputs, outputs = node.descs(AT)
    assert outputs[0].dims[0] == 1
    with pytest.raises(PluginError):
        attached.on_shape_change(inputs, [resized(d, 0, 2) for d in outputs])
    attached.close()
