"""configurePlugin, getWorkspaceSize, tactics, timing cache and metadata."""

from __future__ import annotations

import ctypes
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx import plugin_host
from stof_onnx.ir.plan import Bucket, Plan, Quantity, Range, resolve
from stof_onnx.plugin_host import Plugin, PluginError, TensorDesc, field_of
from tests.conformance.fake_driver import FakeDriver
from tests.conformance.nodes import NODES, SIZES, NodeCase, Sizes, case

largest_and_smaller = st.builds(
    Sizes, st.integers(0, 5), st.integers(0, 300), st.integers(0, 300)
).flatmap(
    lambda largest: st.tuples(
        st.just(largest), st.builds(Sizes, *(st.integers(0, size) for size in largest))
    )
)


def configure(plugin: Plugin, node: NodeCase, smallest: Sizes, largest: Sizes) -> None:
    inputs, outputs = node.descs(largest)
    unknown = [
        [dataclasses.replace(d, dims=(-1,) * len(d.dims)) for d in s] for s in (inputs, outputs)
    ]
    low = [*node.input_descs(smallest), *node.output_descs(smallest)]
    high = [*inputs, *outputs]
    plugin.configure(*unknown, smallest=low, usual=high, largest=high)


def workspace(plan: Plan, node: NodeCase, at: Sizes) -> int:
    """What the plan's launches need at these shapes, on the greediest device."""
    capabilities = [variant.capability for variant in plan.variants]
    return max(
        resolve(plan, capability, node.inputs(at), node.outputs(at)).workspace
        for capability in capabilities
    )


@pytest.mark.parametrize("node", NODES, ids=str)
def test_configure_may_be_called_again_and_changes_nothing(node: NodeCase) -> None:
    plugin, fresh = node.create(), node.create()
    for smallest, largest in ((SIZES[1], SIZES[0]), (SIZES[1], SIZES[2]), (SIZES[1], SIZES[1])):
        configure(plugin, node, smallest, largest)
        assert plugin.workspace_size(*node.descs(SIZES[0])) == fresh.workspace_size(
            *node.descs(SIZES[0])
        )
        assert plugin.serialize() == fresh.serialize()


@pytest.mark.parametrize("node", NODES, ids=str)
def test_configure_refuses_another_number_of_tensors(node: NodeCase) -> None:
    plugin = node.create()
    inputs, outputs = node.descs(SIZES[0])
    for i, o in ((inputs[:-1], outputs), (inputs, [*outputs, outputs[0]])):
        both = [*i, *o]
        with pytest.raises(PluginError, match=f"has {len(i)} inputs and {len(o)} outputs"):
            plugin.configure(i, o, smallest=both, usual=both, largest=both)


@settings(max_examples=30, deadline=None)
@given(both=largest_and_smaller)
@pytest.mark.parametrize("node", NODES, ids=str)
def test_the_workspace_is_enough_for_all_smaller_shapes(
    node: NodeCase, both: tuple[Sizes, Sizes]
) -> None:
    largest, smaller = both
    plugin = node.create()
    size = plugin.workspace_size(*node.descs(largest))
    assert plugin.workspace_size(*node.descs(smaller)) <= size
    assert workspace(node.plan, node, largest) <= size
    assert workspace(node.plan, node, smaller) <= size


def shrinking(node: NodeCase) -> Plan:
    """A plan that needs more workspace at smaller shapes, in three ways."""
    queries, keys = Quantity.of("Sq"), Quantity.of("Sk")

    def change(bucket: Bucket, number: int) -> Bucket:
        quantities = (queries * 1000 + 4096, 100000 + keys * -100)
        # Launches that need no workspace, so that any quantity fits.
        launches = tuple(dataclasses.replace(launch, arguments=()) for launch in bucket.launches)
        return dataclasses.replace(bucket, workspace=quantities[number], launches=launches)

    variants = tuple(
        dataclasses.replace(
            variant, buckets=tuple(change(b, i) for i, b in enumerate(variant.buckets))
        )
        for variant in node.plan.variants
    )
    return dataclasses.replace(node.plan, variants=variants)


@settings(max_examples=60, deadline=None)
@given(both=largest_and_smaller)
@pytest.mark.parametrize("name", ["rows_half", "dense_table"])
def test_the_workspace_covers_buckets_that_only_smaller_shapes_reach(
    name: str, both: tuple[Sizes, Sizes]
) -> None:
    largest, smaller = both
    node = case(name)
    plan = shrinking(node)
    plugin = node.create(plan)
    size = plugin.workspace_size(*node.descs(largest))
    assert workspace(plan, node, smaller) <= size
    assert plugin.workspace_size(*node.descs(smaller)) <= size


@pytest.mark.parametrize("node", NODES, ids=str)
def test_the_workspace_is_the_same_before_and_after_everything(
    node: NodeCase, driver: FakeDriver
) -> None:
    plugin = node.create()
    at = node.descs(SIZES[0])
    before = plugin.workspace_size(*at)
    configure(plugin, node, SIZES[1], SIZES[2])
    attached = plugin.attach()
    attached.on_shape_change(*node.descs(SIZES[2]))
    assert [one.workspace_size(*at) for one in (plugin, attached, plugin.clone())] == [before] * 3
    attached.close()


@pytest.mark.parametrize("name", ["rows_half", "dense_table"])
def test_a_workspace_that_cannot_be_told_is_an_error(name: str) -> None:
    node = case(name)
    inputs, outputs = node.descs(SIZES[0])
    unknown = TensorDesc(inputs[0].dtype, (-1,) * len(inputs[0].dims))
    with pytest.raises(PluginError, match="shape"):
        node.create().workspace_size([unknown, *inputs[1:]], outputs)
    with pytest.raises(PluginError, match="inputs"):
        node.create().workspace_size(inputs[1:], outputs)


@pytest.mark.parametrize("name", ["rows_half", "dense_table"])
def test_shapes_that_the_plan_was_not_made_for_are_named(name: str) -> None:
    node = case(name)
    plan = dataclasses.replace(node.plan, checks=(Range("Sk", 1, 64),))
    with pytest.raises(PluginError, match=r"symbol Sk .* is 77, .* 1 \.\.\. 64"):
        node.create(plan).workspace_size(*node.descs(SIZES[0]))


# ------------------------------------------------------------------------------------- tactics


@pytest.mark.parametrize("node", NODES, ids=str)
def test_tactics_are_unique_positive_and_settable(node: NodeCase) -> None:
    plugin = node.create()
    configure(plugin, node, SIZES[1], SIZES[0])
    tactics = plugin.tactics()
    assert len(tactics) == 1
    assert tactics[0] > 0  # 0 is TensorRT's own default tactic
    assert plugin.tactics() == tactics
    assert plugin.clone().tactics() == tactics
    plugin.set_tactic(tactics[0])


@pytest.mark.parametrize("node", NODES, ids=str)
def test_tactics_that_were_not_advertised_are_refused(node: NodeCase) -> None:
    plugin = node.create()
    (tactic,) = plugin.tactics()
    for wrong in {0, 2, -1, tactic + 1, 2**31 - 1, -(2**31)} - {tactic}:
        with pytest.raises(PluginError, match=f"tactic {wrong} was chosen, {tactic} is the only"):
            plugin.set_tactic(wrong)
    plugin.set_tactic(tactic)


def test_the_interface_writes_no_more_tactics_than_there_is_room_for() -> None:
    plugin = NODES[0].create()
    values = (ctypes.c_int32 * 3)(-7, -7, -7)
    library = plugin_host._library()
    assert library.stof_plugin_tactics(plugin._handle, values, 3) == 1
    assert list(values) == [*plugin.tactics(), -7, -7]


def test_a_gpu_that_the_plan_was_not_made_for_has_no_tactics(driver: FakeDriver) -> None:
    plugin = NODES[0].create()
    driver.set_capability(7, 5)
    with pytest.raises(PluginError, match=r"7\.5.*sm_80.*sm_90.*--target"):
        plugin.tactics()
    driver.set_capability(9, 0)
    assert plugin.tactics()


def test_without_a_context_the_tactics_are_those_of_a_machine_without_a_gpu(
    driver: FakeDriver,
) -> None:
    driver.set_current(None)
    assert NODES[0].create().tactics()


# ----------------------------------------------------------------- timing cache and metadata


def texts(plugin: Plugin) -> tuple[str, str]:
    """Timing cache ID and metadata."""
    library = plugin_host._library()
    results = []
    for name in ("stof_plugin_timing_cache_id", "stof_plugin_metadata"):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_char_p, (ctypes.c_void_p,)
        text: bytes | None = function(plugin._handle)
        assert text
        results.append(text.decode())
    return results[0], results[1]


@pytest.mark.parametrize("node", NODES, ids=str)
def test_timing_cache_id_and_metadata_depend_on_the_creation_state_only(node: NodeCase) -> None:
    plugin = node.create()
    before = texts(plugin)
    configure(plugin, node, SIZES[1], SIZES[0])
    attached = plugin.attach()
    attached.on_shape_change(*node.descs(SIZES[0]))
    assert texts(plugin) == texts(plugin.clone()) == texts(attached) == before
    assert texts(node.create()) == before
    attached.close()


@pytest.mark.parametrize("name", ["rows_half", "dense_table"])
def test_timing_cache_ids_differ_where_attributes_differ(name: str) -> None:
    node = case(name)
    seen = {texts(node.create())[0]}
    attributes = node.attributes()
    producer = dataclasses.replace(node.plan, producer="another")
    changes = [
        {"num_heads": attributes["num_heads"] * 2},
        {"mask": attributes["mask"] + " "},
        {"plan": node.attributes(producer)["plan"]},
    ]
    for change in changes:
        fields = [field_of(n, v) for n, v in {**attributes, **change}.items()]
        seen.add(texts(Plugin.create(node.operator, fields))[0])
    assert len(seen) == 1 + len(changes)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_the_metadata_names_operator_targets_and_tactics(node: NodeCase) -> None:
    _, metadata = texts(node.create())
    for word in (node.operator, "portable", "sm_80", "sm_90", '{"tile":16}', '{"tile":64}'):
        assert word in metadata
