"""Many plugins in many threads at once; each thread's own errors."""

from __future__ import annotations

import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stof_onnx import plugin_host
from stof_onnx.plugin_host import Plugin, PluginError
from tests.conformance.fake_driver import FakeDriver
from tests.conformance.launching import enqueue, run
from tests.conformance.nodes import NODES, SIZES, NodeCase

THREADS = 8
SECONDS = 1.0


def live_through(node: NodeCase, original: Plugin, number: int) -> None:
    """What TensorRT does with a plugin, with an error now and then."""
    at = SIZES[number % len(SIZES)]
    plugin = (node.create() if number % 2 else original).clone()
    fields = plugin.serialize()
    again = Plugin.create(node.operator, list(fields), plugin_host.RUNTIME)
    first, second = plugin.attach(), again.attach()
    plugin.close()
    assert first.output_shapes(node.input_descs(at)) == node.outputs(at)
    run(first, node, at)
    with pytest.raises(PluginError, match=f"tactic {number} was chosen"):
        again.set_tactic(number)
    with pytest.raises(PluginError, match="onShapeChange"):
        enqueue(second, *node.descs(at))
    run(second, node, at)
    second.close()
    enqueue(first, *node.descs(at))
    first.close()


def test_many_plugins_in_many_threads(driver: FakeDriver) -> None:
    driver.set_recording(False)
    # Clones of one plugin may be made in several threads: nothing of it changes.
    originals = [node.create() for node in NODES]
    start = threading.Barrier(THREADS)
    end = time.monotonic() + SECONDS

    def work(thread: int) -> int:
        start.wait()
        rounds = 0
        while time.monotonic() < end:
            number = 1000 * (thread + 1) + rounds
            which = number % len(NODES)
            live_through(NODES[which], originals[which], number)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(THREADS) as pool:
        assert min(pool.map(work, range(THREADS))) > 0


def test_threads_that_attach_at_once_load_each_module_once(driver: FakeDriver) -> None:
    node = NODES[0]
    for _ in range(20):
        driver.reset()
        plugins = [node.create() for _ in range(THREADS)]
        start = threading.Barrier(THREADS)
        with ThreadPoolExecutor(THREADS) as pool:
            attached = list(pool.map(functools.partial(attach_together, start), plugins))
        assert driver.count("cuModuleLoadDataEx") == 2  # one for each tile size
        for one in attached:
            one.close()
        assert driver.count("cuModuleUnload") == 2


def attach_together(start: threading.Barrier, plugin: Plugin) -> Plugin:
    start.wait()
    return plugin.attach()


def test_error_texts_belong_to_threads() -> None:
    plugin, other = NODES[0].create(), NODES[1].create()
    library = plugin_host._library()
    assert library.stof_plugin_set_tactic(plugin._handle, 41) < 0
    start = threading.Barrier(2)

    def elsewhere() -> tuple[bytes, bytes]:
        before = bytes(library.stof_last_error())
        assert library.stof_plugin_set_tactic(other._handle, 42) < 0
        after = bytes(library.stof_last_error())
        start.wait()
        return before, after

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(elsewhere)
        start.wait()
        assert b"tactic 41" in library.stof_last_error()
        before, after = future.result()
    assert before == b""
    assert b"tactic 42" in after
    assert b"tactic 41" in library.stof_last_error()


def test_an_error_text_stays_until_the_next_failure() -> None:
    plugin = NODES[0].create()
    library = plugin_host._library()
    assert library.stof_plugin_set_tactic(plugin._handle, 43) < 0
    assert plugin.tactics()
    assert b"tactic 43" in library.stof_last_error()
    assert library.stof_plugin_set_tactic(plugin._handle, 44) < 0
    text = library.stof_last_error()
    assert b"tactic 44" in text
    assert b"tactic 43" not in text
