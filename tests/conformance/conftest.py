"""The conformance suite: the plugins, through the host interface, on a driver that records."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from stof_onnx import plugin_host, plugin_library
from stof_onnx.ir.errors import MissingDependencyError
from tests.conformance.fake_driver import FakeDriver, build
from tests.conformance.own_process import HERE, REPORTS, Outcomes, ReportWriter

OUTCOMES = pytest.StashKey[Outcomes]()


def pytest_configure(config: pytest.Config) -> None:
    if REPORTS in os.environ:
        config.pluginmanager.register(ReportWriter(config))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if HERE in os.environ:
        return None
    outcomes = item.session.stash.setdefault(OUTCOMES, Outcomes(item.session))
    return outcomes.replay(item) or None


@pytest.fixture(scope="session")
def recording_driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    """The driver of this process, built from plugins/tests."""
    try:
        plugin_library.path()
    except MissingDependencyError:
        pytest.skip("stof-onnx isn't installed here: no plugin library")
    path = build(tmp_path_factory.mktemp("driver"))
    plugin_host.use_driver(str(path))
    return FakeDriver(path)


@pytest.fixture(autouse=True)
def driver(recording_driver: FakeDriver) -> Iterator[FakeDriver]:
    """The driver, as new; no module may be left in it when the test is over."""
    recording_driver.reset()
    before = recording_driver.live_modules()
    yield recording_driver
    recording_driver.reset()
    assert recording_driver.live_modules() <= before, "a module was not unloaded"
