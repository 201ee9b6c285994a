"""clone and getFieldsToSerialize: what leaves a plugin is whole and shares nothing that changes."""

from __future__ import annotations

import itertools

import pytest

from stof_onnx.plugin_host import BUILD, RUNTIME, Field, Plugin, PluginError, field_of
from tests.conformance.fake_driver import FakeDriver
from tests.conformance.field_forms import as_int64, without_nul
from tests.conformance.launching import enqueue, expected, recorded, run
from tests.conformance.nodes import NODES, SIZES, NodeCase, Sizes, case

# Smaller and larger than the limit of the plan's first bucket.
LARGE, SMALL = SIZES[0], Sizes(1, 3, 5)
REPRESENTATIVE = [case(name) for name in ("rows_half", "run_time_table", "table_by_head")]


def behaviour(plugin: Plugin, node: NodeCase, driver: FakeDriver) -> list[object]:
    """Everything a plugin answers and does."""
    inputs, outputs = node.descs(LARGE)
    tensors = range(len(inputs) + len(outputs))
    answers: list[object] = [
        plugin.output_count,
        plugin.output_types(node.input_types),
        plugin.output_shapes(inputs),
        [plugin.supports_format(i, inputs, outputs) for i in tensors],
        [plugin.supports_format(i, inputs[::-1], outputs) for i in tensors],
        plugin.workspace_size(inputs, outputs),
        plugin.tactics(),
        plugin.serialize(),
    ]
    driver.describe(node.plan)
    driver.clear_log()
    attached = plugin.attach()
    run(attached, node, LARGE)
    run(attached, node, SMALL)
    answers.append(recorded(driver.calls()))
    attached.close()
    return answers


@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_clone_answers_and_runs_alike(node: NodeCase, driver: FakeDriver) -> None:
    plugin = node.create()
    assert behaviour(plugin.clone(), node, driver) == behaviour(plugin, node, driver)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_clone_outlives_its_original(node: NodeCase, driver: FakeDriver) -> None:
    plugin = node.create()
    wanted = behaviour(plugin, node, driver)
    clone = plugin.clone()
    plugin.close()
    assert behaviour(clone, node, driver) == wanted
    again = clone.clone()
    clone.close()
    assert behaviour(again, node, driver) == wanted


@pytest.mark.parametrize("node", REPRESENTATIVE, ids=str)
def test_attached_plugins_outlive_what_they_were_attached_from(
    node: NodeCase, driver: FakeDriver
) -> None:
    driver.describe(node.plan)
    plugin = node.create()
    attached = plugin.attach()
    run(attached, node, LARGE)
    wanted = recorded(driver.calls())
    plugin.close()
    driver.clear_log()
    run(attached, node, LARGE)
    assert recorded(driver.calls()) == wanted
    attached.close()


@pytest.mark.parametrize("node", NODES, ids=str)
def test_shapes_of_one_are_not_shapes_of_another(node: NodeCase, driver: FakeDriver) -> None:
    driver.describe(node.plan)
    plugin = node.create()
    first, second = plugin.attach(), plugin.attach()
    first.on_shape_change(*node.descs(LARGE))
    second.on_shape_change(*node.descs(SMALL))
    for attached, at in ((first, LARGE), (second, SMALL), (first, LARGE)):
        driver.clear_log()
        enqueue(attached, *node.descs(at))
        assert recorded(driver.calls()) == expected(node.plan, *node.descs(at))
    first.close()
    driver.clear_log()
    enqueue(second, *node.descs(SMALL))
    assert recorded(driver.calls()) == expected(node.plan, *node.descs(SMALL))
    second.close()


@pytest.mark.parametrize("node", REPRESENTATIVE, ids=str)
def test_a_clone_has_no_shapes(node: NodeCase) -> None:
    plugin = node.create()
    attached = plugin.attach()
    attached.on_shape_change(*node.descs(LARGE))
    for copy in (attached.clone(), attached.attach()):
        with pytest.raises(PluginError, match="onShapeChange"):
            enqueue(copy, *node.descs(LARGE))
        copy.close()
    enqueue(attached, *node.descs(LARGE))
    attached.close()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_any_order_of_destruction(order: tuple[int, ...], driver: FakeDriver) -> None:
    node = case("padding_and_lengths")
    plugin = node.create()
    clone = plugin.clone()
    family = [plugin, clone, plugin.attach(), clone.attach()]
    for one in family[2:]:
        one.on_shape_change(*node.descs(LARGE))
    alive = dict(enumerate(family))
    for number in order:
        for i in alive.keys() & {2, 3}:
            enqueue(alive[i], *node.descs(LARGE))
        alive.pop(number).close()
    assert driver.count("cuModuleLoadDataEx") == driver.count("cuModuleUnload") > 0


# ------------------------------------------------------------------------------- serialisation


def by_name(fields: tuple[Field, ...] | list[Field]) -> dict[str, Field]:
    named = {field.name: field for field in fields}
    assert len(named) == len(fields)
    return named


def created_from(node: NodeCase) -> dict[str, Field]:
    """The fields of a node, without those that only find the creator."""
    attributes = node.attributes().items()
    fields = [field_of(n, v) for n, v in attributes if not n.startswith("plugin_")]
    return by_name(fields)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_the_serialised_fields_are_the_attributes_bit_by_bit(node: NodeCase) -> None:
    assert by_name(node.create().serialize()) == created_from(node)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_deserialised_plugin_is_equal(node: NodeCase, driver: FakeDriver) -> None:
    plugin = node.create()
    fields = plugin.serialize()
    wanted = behaviour(plugin, node, driver)
    plugin.close()
    for phase in (RUNTIME, BUILD):  # refitting tools deserialise for another build
        again = Plugin.create(node.operator, list(fields), phase)
        assert again.serialize() == fields
        assert behaviour(again, node, driver) == wanted


@pytest.mark.parametrize("node", NODES, ids=str)
def test_serialisation_is_stable(node: NodeCase) -> None:
    plugin = node.create()
    fields = plugin.serialize()
    both = [*node.input_descs(LARGE), *node.output_descs(LARGE)]
    plugin.configure(*node.descs(LARGE), smallest=both, usual=both, largest=both)
    plugin.set_tactic(plugin.tactics()[0])
    attached = plugin.attach()
    run(attached, node, SMALL)
    for one in (plugin, plugin, plugin.clone(), attached, attached.clone()):
        assert one.serialize() == fields
    attached.close()


@pytest.mark.parametrize("node", REPRESENTATIVE, ids=str)
def test_the_form_in_which_attributes_came_is_kept(node: NodeCase) -> None:
    fields = tuple(without_nul(as_int64(field)) for field in created_from(node).values())
    assert Plugin.create(node.operator, fields).serialize() == fields


def test_serialised_fields_of_one_survive_the_next() -> None:
    node = case("rows_half")
    plugin, other = node.create(), case("dense_table").create()
    fields = plugin.serialize()
    other.serialize()
    assert plugin.serialize() == fields
