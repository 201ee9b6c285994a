"""attachToContext, onShapeChange and enqueue: what is loaded and launched, and when."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stof_onnx.ir.plan import (
    Int32,
    Int64,
    Quantity,
    Range,
    TensorPointer,
    Variant,
    WorkspacePointer,
)
from stof_onnx.plugin_host import Plugin, PluginError, TensorDesc
from tests.conformance.fake_driver import QUERIES, FakeDriver
from tests.conformance.launching import (
    STREAM,
    WORKSPACE,
    enqueue,
    expected,
    input_address,
    output_address,
    recorded,
    run,
)
from tests.conformance.nodes import NODES, SIZES, NodeCase, Sizes, case

SHAPES = st.builds(Sizes, st.integers(1, 40), st.integers(1, 3000), st.integers(1, 3000))
REPRESENTATIVE = [case(name) for name in ("rows_half", "run_time_table", "table_by_head")]


@pytest.mark.parametrize("node", NODES, ids=str)
def test_attaching_loads_all_that_will_be_needed(node: NodeCase, driver: FakeDriver) -> None:
    plugin = node.create()
    assert driver.names() == []  # creation needs no GPU
    attached = plugin.attach()
    (variant,) = (v for v in node.plan.variants if v.target == "sm_90")
    assert driver.count("cuModuleLoadDataEx") == len({k.image for k in variant.kernels})
    loaded = {c.values["entry"] for c in driver.calls() if c.name == "cuFuncLoad"}
    assert loaded == {kernel.entry for kernel in variant.kernels}
    driver.clear_log()
    for at in SIZES:
        run(attached, node, at)
    allowed = QUERIES | {"cuLaunchKernel"}
    assert set(driver.names()) <= allowed
    attached.close()


def test_shared_memory_beyond_the_default_is_asked_for_once(driver: FakeDriver) -> None:
    node = case("rows_half")
    attached = node.create().attach()
    asked = [c.values for c in driver.calls() if c.name == "cuFuncSetAttribute"]
    assert {(v["entry"], v["attribute"], v["value"]) for v in asked} == {
        (f"first_{tile}_sm_90", "8", "98304") for tile in (16, 64)
    }
    assert len(asked) == 2
    attached.close()


@pytest.mark.parametrize("node", REPRESENTATIVE, ids=str)
def test_nothing_but_launches_under_capture(node: NodeCase, driver: FakeDriver) -> None:
    attached = node.create().attach()
    attached.on_shape_change(*node.descs(SIZES[0]))
    driver.clear_log()
    driver.set_capturing(True)
    for _ in range(3):
        enqueue(attached, *node.descs(SIZES[0]))
    driver.set_capturing(False)
    names = driver.names()
    assert set(names) - {"cuLaunchKernel"} <= QUERIES
    assert names.count("cuLaunchKernel") == 6
    attached.close()


@settings(max_examples=60, deadline=None)
@given(at=SHAPES)
@example(at=Sizes(1, 64, 1))
@example(at=Sizes(1, 65, 1))
@pytest.mark.parametrize("node", NODES, ids=str)
def test_launches_are_those_of_the_plan(
    node: NodeCase, recording_driver: FakeDriver, at: Sizes
) -> None:
    recording_driver.describe(node.plan)
    attached = node.create().attach()
    recording_driver.clear_log()
    run(attached, node, at)
    found = recorded(recording_driver.calls())
    assert found == expected(node.plan, *node.descs(at))
    assert len(found) == 2
    attached.close()


@pytest.mark.parametrize("node", NODES, ids=str)
def test_changed_shapes_change_the_launches(node: NodeCase, driver: FakeDriver) -> None:
    driver.describe(node.plan)
    attached = node.create().attach()
    seen = []
    for at in (*SIZES, SIZES[0]):
        driver.clear_log()
        run(attached, node, at)
        seen.append(recorded(driver.calls()))
        assert seen[-1] == expected(node.plan, *node.descs(at))
    assert seen[0] == seen[-1] != seen[1]
    attached.close()


def test_the_stream_that_is_passed_is_used(driver: FakeDriver) -> None:
    node = case("rows_half")
    attached = node.create().attach()
    attached.on_shape_change(*node.descs(SIZES[0]))
    for stream in (0, 1, 0x7FFF_0000_1234):
        driver.clear_log()
        enqueue(attached, *node.descs(SIZES[0]), stream=stream)
        streams = [int(c.values["stream"], 0) for c in driver.launches()]
        assert streams == [stream, stream]
    attached.close()


def test_addresses_may_change_with_every_enqueue(driver: FakeDriver) -> None:
    node = case("padding_and_lengths")
    driver.describe(node.plan)
    attached = node.create().attach()
    inputs, outputs = node.descs(SIZES[0])
    attached.on_shape_change(inputs, outputs)
    for shift in (0, 0x4000, 0x100):
        driver.clear_log()
        attached.enqueue(
            inputs,
            outputs,
            input_addresses=[input_address(i) + shift for i in range(len(inputs))],
            output_addresses=[output_address(0) + 2 * shift],
            workspace=WORKSPACE + 3 * shift,
            stream=STREAM,
        )
        first, second = recorded(driver.calls())
        assert first.arguments[:5] == tuple(input_address(i) + 16 * i + shift for i in range(5))
        assert second.arguments[:2] == (WORKSPACE + 3 * shift, output_address(0) + 2 * shift)
    attached.close()


# ----------------------------------------------------------------------------- order of calls


@pytest.mark.parametrize("node", REPRESENTATIVE, ids=str)
def test_enqueue_before_on_shape_change_is_refused(node: NodeCase, driver: FakeDriver) -> None:
    plugin = node.create()
    attached = plugin.attach()
    for one in (plugin, attached):
        with pytest.raises(PluginError, match=f"{node.operator}: enqueue .* onShapeChange"):
            enqueue(one, *node.descs(SIZES[0]))
    assert driver.launches() == []
    run(attached, node, SIZES[0])
    assert len(driver.launches()) == 2
    attached.close()


@pytest.mark.parametrize("node", REPRESENTATIVE, ids=str)
def test_after_a_failed_on_shape_change_nothing_is_launched(
    node: NodeCase, driver: FakeDriver
) -> None:
    attached = node.create().attach()
    inputs, outputs = node.descs(SIZES[0])
    attached.on_shape_change(inputs, outputs)
    unknown = [TensorDesc(d.dtype, (-1,) * len(d.dims)) for d in inputs]
    for wrong in (unknown, inputs[:-1]):
        with pytest.raises(PluginError):
            attached.on_shape_change(wrong, outputs)
        with pytest.raises(PluginError, match="onShapeChange"):
            enqueue(attached, inputs, outputs)
    assert driver.launches() == []
    run(attached, node, SIZES[0])
    assert len(driver.launches()) == 2
    attached.close()


@pytest.mark.parametrize("node", REPRESENTATIVE, ids=str)
def test_a_plugin_that_was_not_attached_is_prepared_by_the_builder(
    node: NodeCase, driver: FakeDriver
) -> None:
    driver.describe(node.plan)
    plugin = node.create()
    run(plugin, node, SIZES[0])
    assert recorded(driver.calls()) == expected(node.plan, *node.descs(SIZES[0]))
    plugin.close()


# ------------------------------------------------------------------------ what can't be launched


def with_plan(name: str, **changes: object) -> tuple[NodeCase, Plugin]:
    """A node whose plan's only bucket has its first launch changed."""
    node = case(name)
    (variant,) = (v for v in node.plan.variants if v.target == "sm_90")
    bucket = variant.buckets[-1]
    first = dataclasses.replace(bucket.launches[0], **changes)  # type: ignore[arg-type]
    bucket = dataclasses.replace(bucket, launches=(first, *bucket.launches[1:]))
    plan = dataclasses.replace(node.plan, variants=(Variant("sm_90", (9, 0), "exact", (bucket,)),))
    return node, node.create(plan)


ZERO_SIZES = [Sizes(0, 5, 5), Sizes(2, 0, 5), Sizes(2, 5, 0), Sizes(0, 0, 0)]


@pytest.mark.parametrize("at", ZERO_SIZES, ids=str)
@pytest.mark.parametrize("node", NODES, ids=str)
def test_launches_of_no_blocks_are_left_out(node: NodeCase, at: Sizes, driver: FakeDriver) -> None:
    driver.describe(node.plan)
    attached = node.create().attach()
    driver.clear_log()
    run(attached, node, at)
    found = recorded(driver.calls())
    assert found == expected(node.plan, *node.descs(at))
    assert all(0 not in launch.grid for launch in found)
    run(attached, node, SIZES[0])
    assert len(driver.launches()) == len(found) + 2
    attached.close()


def test_quantities_of_a_launch_without_blocks_do_not_matter(driver: FakeDriver) -> None:
    huge = Quantity.of(2**40)
    node, plugin = with_plan("rows_half", shared=huge, arguments=(Int32(huge),))
    attached = plugin.attach()
    run(attached, node, Sizes(0, 5, 5))
    assert driver.launches() == []
    with pytest.raises(PluginError, match="shared memory"):
        attached.on_shape_change(*node.descs(Sizes(1, 5, 5)))
    attached.close()


Sq, Sk, ONE = Quantity.of("Sq"), Quantity.of("Sk"), Quantity.of(1)
# What of the launch is changed, the last shapes that can be run, the first that can't, the message.
IMPOSSIBLE: dict[str, tuple[dict[str, Any], Sizes, Sizes, str]] = {
    "grid x": ({"grid": (Sq * 2**27, ONE, ONE)}, Sizes(1, 15, 1), Sizes(1, 16, 1), "grid"),
    "grid y": ({"grid": (ONE, Sq, ONE)}, Sizes(1, 65535, 1), Sizes(1, 65536, 1), "grid"),
    "grid z": ({"grid": (ONE, ONE, Sq)}, Sizes(1, 65535, 1), Sizes(1, 65536, 1), "grid"),
    "no grid": ({"grid": (3 + Sq * -1, ONE, ONE)}, Sizes(1, 3, 1), Sizes(1, 4, 1), "grid"),
    "shared": ({"shared": Sk * 1024}, Sizes(1, 1, 96), Sizes(1, 1, 97), "shared memory"),
    "no shared": ({"shared": 3 + Sk * -1}, Sizes(1, 1, 3), Sizes(1, 1, 4), "shared memory"),
    "i32": ({"arguments": (Int32(Sq * 2**27),)}, Sizes(1, 15, 1), Sizes(1, 16, 1), "argument 0"),
    "i64": ({"arguments": (Int64(Sq * 2**61),)}, Sizes(1, 3, 1), Sizes(1, 4, 1), "2.63"),
    "offset": (
        {"arguments": (WorkspacePointer(Sk * 512),)},
        Sizes(1, 1, 1),
        Sizes(1, 1, 2),
        "argument 0",
    ),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_impossible_launches_are_refused_when_shapes_are_known(
    kind: str, driver: FakeDriver
) -> None:
    changes, last_good, first_bad, message = IMPOSSIBLE[kind]
    node, plugin = with_plan("rows_half", **changes)
    attached = plugin.attach()
    run(attached, node, last_good)
    driver.clear_log()
    with pytest.raises(PluginError, match=message):
        attached.on_shape_change(*node.descs(first_bad))
    with pytest.raises(PluginError, match="onShapeChange"):
        enqueue(attached, *node.descs(first_bad))
    assert driver.launches() == []
    attached.close()


@pytest.mark.parametrize("name", ["rows_half", "dense_table"])
def test_shapes_that_the_plan_was_not_made_for_are_refused(name: str, driver: FakeDriver) -> None:
    node = case(name)
    plan = dataclasses.replace(node.plan, checks=(Range("Sk", 77, 77),))
    attached = node.create(plan).attach()
    attached.on_shape_change(*node.descs(SIZES[0]))
    with pytest.raises(PluginError, match=r"Sk .* is 1, .* made for 77"):
        attached.on_shape_change(*node.descs(SIZES[1]))
    attached.close()


@pytest.mark.parametrize("source", ["input", "output", "workspace"])
def test_misaligned_addresses_are_named(source: str, driver: FakeDriver) -> None:
    node, plugin = with_plan(
        "rows_half",
        arguments=(
            TensorPointer("input", 1, alignment=16),
            TensorPointer("output", 0, alignment=32),
        ),
    )
    attached = plugin.attach()
    inputs, outputs = node.descs(SIZES[0])
    attached.on_shape_change(inputs, outputs)
    shift = {source: 4}
    driver.clear_log()
    with pytest.raises(PluginError, match=f"{source}.* multiple of"):
        attached.enqueue(
            inputs,
            outputs,
            input_addresses=[input_address(i) + shift.get("input", 0) for i in range(3)],
            output_addresses=[output_address(0) + shift.get("output", 0)],
            workspace=WORKSPACE + shift.get("workspace", 0),
        )
    # The second launch is the one that uses the workspace.
    assert len(driver.launches()) < 2
    enqueue(attached, inputs, outputs)
    attached.close()


def test_a_missing_workspace_is_named(driver: FakeDriver) -> None:
    node = case("rows_half")
    attached = node.create().attach()
    attached.on_shape_change(*node.descs(SIZES[0]))
    with pytest.raises(PluginError, match="workspace"):
        enqueue(attached, *node.descs(SIZES[0]), workspace=0)
    assert driver.launches() == []
    attached.close()
