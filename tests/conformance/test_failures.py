"""Every call of the driver that can fail, failing: an error that names it, nothing lost."""

from __future__ import annotations

import pytest

from stof_onnx.plugin_host import Plugin, PluginError
from tests.conformance.fake_driver import FakeDriver
from tests.conformance.launching import enqueue, expected, recorded, run
from tests.conformance.nodes import SIZES, NodeCase, case

NODES = [case(name) for name in ("rows_half", "table_by_head")]
ILLEGAL_ADDRESS, INVALID_PTX, UNKNOWN_TO_THE_DRIVER = 700, 218, 4321

# cuInit is called once a process, before any of these.
IN_ATTACH = [
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuDeviceGetAttribute",
    "cuCtxGetId",
    "cuModuleLoadDataEx",
    "cuModuleGetFunction",
    "cuFuncLoad",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
]


def test_the_list_of_calls_is_complete(driver: FakeDriver) -> None:
    attached = NODES[0].create().attach()
    assert set(driver.names()) == set(IN_ATTACH)
    attached.close()


@pytest.mark.parametrize("error", [ILLEGAL_ADDRESS, UNKNOWN_TO_THE_DRIVER])
@pytest.mark.parametrize("function", IN_ATTACH)
@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_failure_in_attach_is_named_and_leaves_nothing(
    node: NodeCase, function: str, error: int, driver: FakeDriver
) -> None:
    driver.describe(node.plan)
    plugin = node.create()
    driver.fail_next(function, error)
    with pytest.raises(PluginError, match=rf"{node.operator}.*{function}.*{error}"):
        plugin.attach()
    assert driver.count("cuModuleLoadDataEx") - failed(driver) == driver.count("cuModuleUnload")
    assert_usable(plugin, node, driver)


@pytest.mark.parametrize("function", IN_ATTACH)
def test_a_failure_in_attach_does_not_touch_other_plugins(
    function: str, driver: FakeDriver
) -> None:
    node, other = NODES
    driver.describe(node.plan)
    running = node.create().attach()
    running.on_shape_change(*node.descs(SIZES[0]))
    driver.fail_next(function, ILLEGAL_ADDRESS)
    with pytest.raises(PluginError, match=function):
        other.create().attach()
    driver.clear_log()
    enqueue(running, *node.descs(SIZES[0]))
    assert recorded(driver.calls()) == expected(node.plan, *node.descs(SIZES[0]))
    running.close()


@pytest.mark.parametrize("function", IN_ATTACH)
def test_a_failure_in_on_shape_change_of_a_plugin_that_is_not_attached(
    function: str, driver: FakeDriver
) -> None:
    node = NODES[0]
    driver.describe(node.plan)
    plugin = node.create()
    driver.fail_next(function, ILLEGAL_ADDRESS)
    with pytest.raises(PluginError, match=function):
        plugin.on_shape_change(*node.descs(SIZES[0]))
    with pytest.raises(PluginError, match="onShapeChange"):
        enqueue(plugin, *node.descs(SIZES[0]))
    run(plugin, node, SIZES[0])
    assert recorded(driver.calls()) == expected(node.plan, *node.descs(SIZES[0]))
    plugin.close()


@pytest.mark.parametrize("function", ["cuCtxGetCurrent", "cuLaunchKernel"])
@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_failure_in_enqueue_is_named(node: NodeCase, function: str, driver: FakeDriver) -> None:
    driver.describe(node.plan)
    plugin = node.create()
    attached = plugin.attach()
    attached.on_shape_change(*node.descs(SIZES[0]))
    driver.fail_next(function, ILLEGAL_ADDRESS)
    with pytest.raises(PluginError, match=rf"{function}.*CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        enqueue(attached, *node.descs(SIZES[0]))
    driver.clear_log()
    enqueue(attached, *node.descs(SIZES[0]))
    assert recorded(driver.calls()) == expected(node.plan, *node.descs(SIZES[0]))
    attached.close()
    assert_usable(plugin, node, driver)


def test_a_failed_launch_names_kernel_and_sizes(driver: FakeDriver) -> None:
    node = NODES[0]
    attached = node.create().attach()
    attached.on_shape_change(*node.descs(SIZES[0]))
    driver.fail_next("cuLaunchKernel", 701)
    message = r"first_64_sm_90 \(template\), 2 x 2 x 3 blocks of 128 x 1 x 1 threads, 1056 bytes"
    with pytest.raises(PluginError, match=message):
        enqueue(attached, *node.descs(SIZES[0]))
    attached.close()


@pytest.mark.parametrize("function", ["cuCtxGetId", "cuCtxPushCurrent_v2", "cuModuleUnload"])
def test_failures_in_destruction_are_harmless(function: str, driver: FakeDriver) -> None:
    # A destructor can't report; what it can't unload goes with the CUDA context.
    node = NODES[0]
    context = driver.create_context()
    driver.set_current(context)
    driver.describe(node.plan)
    plugin = node.create()
    attached = plugin.attach()
    driver.fail_next(function, ILLEGAL_ADDRESS)
    attached.close()
    assert_usable(plugin, node, driver)
    driver.set_current(driver.default_context)
    driver.destroy_context(context)


def test_the_compiler_of_ptx_is_quoted(driver: FakeDriver) -> None:
    driver.set_capability(12, 0)
    driver.fail_next("cuModuleLoadDataEx", INVALID_PTX)
    with pytest.raises(PluginError, match=r"CUDA_ERROR_INVALID_PTX.*line 1: fake"):
        NODES[0].create().attach()


@pytest.mark.parametrize("node", NODES, ids=str)
def test_tactics_do_not_depend_on_a_working_driver(node: NodeCase, driver: FakeDriver) -> None:
    # Building without a usable GPU is for others to refuse.
    for function in ("cuCtxGetCurrent", "cuCtxGetDevice", "cuDeviceGetAttribute"):
        driver.fail_next(function, ILLEGAL_ADDRESS)
        assert node.create().tactics()
        driver.reset()


def failed(driver: FakeDriver) -> int:
    """Module loads that failed."""
    calls = driver.calls()
    return sum(call.name == "cuModuleLoadDataEx" and call.error != 0 for call in calls)


def assert_usable(plugin: Plugin, node: NodeCase, driver: FakeDriver) -> None:
    """Attach and run the plugin as if nothing had happened."""
    attached = plugin.attach()
    driver.clear_log()
    run(attached, node, SIZES[0])
    assert recorded(driver.calls()) == expected(node.plan, *node.descs(SIZES[0]))
    attached.close()
