"""Modules: shared by content within a CUDA context, chosen for its device, unloaded when unused."""

from __future__ import annotations

import dataclasses

import pytest

from stof_onnx.ir.plan import Bucket, Launch, Plan, Quantity, Range, Tactic, Variant
from stof_onnx.plugin_host import Plugin, PluginError
from tests.conformance.fake_driver import FakeDriver
from tests.conformance.launching import enqueue, expected, recorded, run
from tests.conformance.nodes import NODES, SIZES, NodeCase, Sizes, case
from tests.conformance.synthetic_plans import kernel, two_bucket_plan

ONE = Quantity.of(1)


def loads(driver: FakeDriver) -> int:
    return driver.count("cuModuleLoadDataEx")


def unloads(driver: FakeDriver) -> int:
    return driver.count("cuModuleUnload")


@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_module_lives_as_long_as_somebody_uses_it(node: NodeCase, driver: FakeDriver) -> None:
    plugin = node.create()
    first = plugin.attach()
    once = loads(driver)
    assert once > 0
    second = plugin.clone().attach()
    third = node.create().attach()  # another layer with equal content
    assert loads(driver) == once
    first.close()
    third.close()
    assert unloads(driver) == 0
    run(second, node, SIZES[0])
    second.close()
    assert unloads(driver) == once
    plugin.attach().close()
    assert (loads(driver), unloads(driver)) == (2 * once, 2 * once)


def test_plugins_of_both_operators_share_equal_images(driver: FakeDriver) -> None:
    attention, table = case("rows_half"), case("dense_table")
    image = "cubin of both"

    def plan_of(node: NodeCase) -> Plan:
        return with_image(node, image)

    first = attention.create(plan_of(attention)).attach()
    second = table.create(plan_of(table)).attach()
    assert loads(driver) == 1
    first.close()
    assert unloads(driver) == 0
    second.close()
    assert unloads(driver) == 1


def with_image(node: NodeCase, image: str) -> Plan:
    """A plan of one kernel with this image."""
    launch = Launch(kernel("only", image), (ONE, ONE, ONE), (32, 1, 1), Quantity(), ())
    bucket = Bucket((), Tactic({}), Quantity(), (launch,))
    variant = Variant("sm_90", (9, 0), "exact", (bucket,))
    return dataclasses.replace(node.plan, variants=(variant,))


@pytest.mark.parametrize(
    ("first", "second"), [("cubin a", "cubin b"), ("cubin", "cubin "), ("a" * 30 + "b", "a" * 31)]
)
def test_different_images_are_different_modules(
    first: str, second: str, driver: FakeDriver
) -> None:
    node = case("rows_half")
    attached = [node.create(with_image(node, image)).attach() for image in (first, second)]
    assert loads(driver) == 2
    for one in attached:
        one.close()
    assert unloads(driver) == 2


def test_each_cuda_context_has_its_own_modules(driver: FakeDriver) -> None:
    node = case("rows_half")
    plugin = node.create()
    here = plugin.attach()
    once = loads(driver)
    other_context = driver.create_context()
    driver.set_current(other_context)
    there = plugin.attach()
    assert loads(driver) == 2 * once
    run(there, node, SIZES[0])
    there.close()
    assert unloads(driver) == once
    driver.set_current(driver.default_context)
    run(here, node, SIZES[0])
    here.close()
    assert unloads(driver) == 2 * once


def test_a_plugin_is_destroyed_in_its_own_context(driver: FakeDriver) -> None:
    # TensorRT may destroy an execution context while another CUDA context, or none, is current.
    node = case("rows_half")
    attached = node.create().attach()
    for current in (driver.create_context(), None):
        other = node.create().attach()
        driver.set_current(current)
        other.close()
        driver.set_current(driver.default_context)
    driver.set_current(None)
    attached.close()
    assert unloads(driver) == loads(driver)


def test_a_context_that_was_destroyed_first_is_no_error(driver: FakeDriver) -> None:
    node = case("rows_half")
    context = driver.create_context()
    driver.set_current(context)
    attached = node.create().attach()
    driver.set_current(driver.default_context)
    driver.destroy_context(context)
    attached.close()
    assert unloads(driver) == 0  # the modules went with their context


def test_running_in_another_cuda_context_is_refused(driver: FakeDriver) -> None:
    node = case("rows_half")
    attached = node.create().attach()
    attached.on_shape_change(*node.descs(SIZES[0]))
    for current, message in ((driver.create_context(), "another CUDA context"), (None, "no CUDA")):
        driver.set_current(current)
        with pytest.raises(PluginError, match=message):
            enqueue(attached, *node.descs(SIZES[0]))
        driver.set_current(driver.default_context)
    assert driver.launches() == []
    enqueue(attached, *node.descs(SIZES[0]))
    attached.close()


# ------------------------------------------------------------------------ devices and variants


@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_device_without_a_variant_is_named_with_the_targets(
    node: NodeCase, driver: FakeDriver
) -> None:
    driver.set_capability(7, 5)
    plugin = node.create()
    message = rf"{node.operator}.*7\.5.*portable, sm_80, sm_90.*--target sm_75"
    with pytest.raises(PluginError, match=message):
        plugin.attach()
    with pytest.raises(PluginError, match=message):
        plugin.on_shape_change(*node.descs(SIZES[0]))
    assert loads(driver) == 0
    driver.set_capability(9, 0)
    plugin.attach().close()


# Targets: portable is PTX for 8.0 and newer, sm_8x run on their minor and higher ones, sm_90 and
# sm_100 (sm_90a and sm_100a) on exactly theirs.
ALL = ("portable", "sm_80", "sm_86", "sm_90", "sm_100")
CHOICES = [
    (ALL, (8, 0), "sm_80"),
    (ALL, (8, 6), "sm_86"),
    (ALL, (8, 9), "sm_86"),
    (ALL, (9, 0), "sm_90"),
    (ALL, (10, 0), "sm_100"),
    (ALL, (12, 0), "portable"),
    (ALL[::-1], (8, 9), "sm_86"),
    (ALL[::-1], (12, 0), "portable"),
    (("portable", "sm_80"), (9, 0), "portable"),
    (("sm_86", "portable"), (8, 0), "portable"),
    (("sm_86", "sm_80"), (8, 7), "sm_86"),
    (("sm_86",), (8, 0), None),
    (("sm_90",), (8, 9), None),
    (("sm_90",), (10, 0), None),
    (("portable",), (7, 5), None),
]


@pytest.mark.parametrize(("targets", "device", "wanted"), CHOICES)
def test_the_best_variant_for_the_device_is_taken(
    targets: tuple[str, ...], device: tuple[int, int], wanted: str | None, driver: FakeDriver
) -> None:
    node = case("rows_half")
    plan = two_bucket_plan(
        node.operator, node.input_types, node.output_types, node.symbols, targets
    )
    driver.describe(plan)
    driver.set_capability(*device)
    plugin = node.create(plan)
    if wanted is None:
        with pytest.raises(PluginError, match=f"{device[0]}\\.{device[1]}"):
            plugin.attach()
        return
    attached = plugin.attach()
    images = [c.values["image"] for c in driver.calls() if c.name == "cuModuleLoadDataEx"]
    assert {image.split()[1] for image in images} == {wanted}
    run(attached, node, SIZES[0])
    found = recorded(driver.calls())
    assert found == expected(plan, *node.descs(SIZES[0]), capability=device)
    assert found[1].entry == f"second_{wanted}"
    attached.close()


def variant_named(node: NodeCase, *variants: tuple[str, tuple[int, int], str]) -> Plugin:
    """A plugin whose variants differ in their match rule alone."""
    made = with_image(node, "unused").variants[0].buckets[0]

    def bucket(name: str) -> Bucket:
        launch = dataclasses.replace(made.launches[0], kernel=kernel(name, f"cubin {name}"))
        return dataclasses.replace(made, launches=(launch,))

    every = tuple(
        Variant(name, capability, match, (bucket(name),))  # type: ignore[arg-type]
        for name, capability, match in variants
    )
    return node.create(dataclasses.replace(node.plan, variants=every))


RULES = [
    # exact before minor before newer, whatever the order and the capability
    ((("n", (9, 0), "newer"), ("m", (9, 0), "minor"), ("e", (9, 0), "exact")), "e"),
    ((("e", (9, 0), "exact"), ("m", (9, 0), "minor"), ("n", (9, 0), "newer")), "e"),
    ((("n", (9, 0), "newer"), ("m", (9, 0), "minor")), "m"),
    ((("n", (8, 0), "newer"), ("o", (8, 9), "newer"), ("p", (7, 5), "newer")), "o"),
    # what doesn't match is no candidate
    ((("e", (8, 9), "exact"), ("n", (8, 0), "newer")), "n"),
    ((("m", (8, 0), "minor"), ("n", (5, 2), "newer")), "n"),
    ((("m", (9, 1), "minor"), ("n", (9, 0), "newer")), "n"),
    # the first of equals
    ((("a", (9, 0), "exact"), ("b", (9, 0), "exact")), "a"),
]


@pytest.mark.parametrize(("variants", "wanted"), RULES)
def test_preference_among_variants(
    variants: tuple[tuple[str, tuple[int, int], str], ...], wanted: str, driver: FakeDriver
) -> None:
    node = case("dense_table")
    attached = variant_named(node, *variants).attach()
    run(attached, node, SIZES[0])
    assert [call.values["entry"] for call in driver.launches()] == [wanted]
    attached.close()


def test_the_first_bucket_whose_ranges_hold_is_taken(driver: FakeDriver) -> None:
    node = case("rows_half")
    made = with_image(node, "cubin").variants[0].buckets[0]

    def bucket(name: str, *ranges: Range) -> Bucket:
        launch = dataclasses.replace(made.launches[0], kernel=kernel(name, "cubin"))
        return dataclasses.replace(made, ranges=ranges, launches=(launch,))

    buckets = (
        bucket("one_query", Range("Sq", 1, 1)),
        bucket("small", Range("Sq", 0, 64), Range("Sk", 10, 100)),
        bucket("one_batch", Range("B", 1, 1)),
        bucket("rest"),
    )
    plan = dataclasses.replace(node.plan, variants=(Variant("sm_90", (9, 0), "exact", buckets),))
    attached = node.create(plan).attach()
    for at, wanted in (
        (Sizes(1, 1, 50), "one_query"),
        (Sizes(2, 64, 10), "small"),
        (Sizes(2, 64, 9), "rest"),
        (Sizes(2, 65, 10), "rest"),
        (Sizes(1, 64, 101), "one_batch"),
        (Sizes(1, 64, 100), "small"),
        (Sizes(2, 2, 101), "rest"),
    ):
        driver.clear_log()
        run(attached, node, at)
        assert [call.values["entry"] for call in driver.launches()] == [wanted], at
    attached.close()
