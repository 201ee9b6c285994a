"""GPU tests: skipped with a reason where there is no GPU; kernels compiled together; a summary."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from tests.gpu.cases import Case, Config

if TYPE_CHECKING:
    from tests.gpu.accuracy import Comparison
    from tests.gpu.harness import Plans

_RESULTS = pytest.StashKey[list[tuple[Case, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RESULTS] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA GPU")


@pytest.fixture(scope="session")
def plans(request: pytest.FixtureRequest) -> Plans:
    """Plans for this GPU; those of all selected cases are compiled at once."""
    from tests.gpu.harness import Plans, device_target

    made = Plans(device_target())
    configs: dict[Config, None] = {}
    for item in request.session.items:
        if not isinstance(item, pytest.Function):
            continue
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if isinstance(parameters.get("case"), Case):
            configs[parameters["case"].config] = None
        configs.update(dict.fromkeys(getattr(item.module, "CONFIGS", ())))
    made.prepare(configs)
    return made


class Measurements:
    """Where tests put their comparisons with PyTorch, for the summary."""

    def __init__(self, results: list[tuple[Case, Any]]) -> None:
        self._results = results

    def add(self, case: Case, comparison: Comparison) -> None:
        """Keep a comparison."""
        self._results.append((case, comparison))


@pytest.fixture(scope="session")
def measurements(request: pytest.FixtureRequest) -> Measurements:
    """The session's comparisons."""
    return Measurements(request.config.stash[_RESULTS])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[_RESULTS]
    if not results:
        return
    terminalreporter.section("error of the plugin / error of PyTorch, both against float64")
    groups = defaultdict(list)
    for case, comparison in results:
        groups[case.config.dtype].append((case, comparison))
    line = "{:<9} {:>5}  {:<4}  {:>9} {:>9} {:>7} {:>7}  {}".format
    head = ("dtype", "cases", "", "plugin", "PyTorch", "ratio", "limit", "worst case")
    terminalreporter.write_line(line(*head))
    for dtype, entries in groups.items():
        for index, name in enumerate(("maximum", "mean")):
            case, worst = max(entries, key=lambda entry: entry[1].used[index])
            terminalreporter.write_line(
                line(
                    dtype,
                    len(entries),
                    name[:4],
                    f"{getattr(worst.ours, name):.2e}",
                    f"{getattr(worst.pytorch, name):.2e}",
                    f"{worst.ratio[index]:.2f}",
                    f"{worst.used[index]:.0%}",
                    case,
                )
            )
