"""GPU tests: skipped with a reason where there is no GPU; kernels compiled together; a summary."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
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
    rows = _summary(config.stash[_RESULTS])
    if not rows:
        return
    terminalreporter.section("error of the plugin / error of PyTorch, both against float64")
    line = "{:<9} {:>5}  {:<7}  {:>9} {:>9} {:>7} {:>7}  {}".format
    head = ("dtype", "cases", "error", "plugin", "PyTorch", "ratio", "limit", "worst case")
    terminalreporter.write_line(line(*head))
    for row in rows:
        numbers = (f"{row['ours']:.2e}", f"{row['pytorch']:.2e}", f"{row['ratio']:.2f}")
        names = (row["dtype"], row["cases"], row["error"])
        terminalreporter.write_line(line(*names, *numbers, f"{row['used']:.0%}", row["case"]))
    if "STOF_GPU_RESULTS" in os.environ:
        facts = {**_environment(), "rows": rows}
        Path(os.environ["STOF_GPU_RESULTS"]).write_text(json.dumps(facts, indent=1) + "\n")


def _summary(results: list[tuple[Case, Any]]) -> list[dict[str, Any]]:
    """For each type the case that uses most of what is allowed."""
    groups = defaultdict(list)
    for case, comparison in results:
        groups[case.config.dtype].append((case, comparison))
    rows = []
    for dtype, entries in groups.items():
        for index, name in enumerate(("maximum", "mean")):
            case, worst = max(entries, key=lambda entry: entry[1].used[index])
            rows.append(
                {
                    "dtype": dtype,
                    "cases": len(entries),
                    "error": name,
                    "ours": float(getattr(worst.ours, name)),
                    "pytorch": float(getattr(worst.pytorch, name)),
                    "ratio": float(worst.ratio[index]),
                    "used": float(worst.used[index]),
                    "case": str(case),
                }
            )
    return rows


def _environment() -> dict[str, str]:
    """What the numbers depend on."""
    import torch

    from stof_onnx.gpu_detect import survey_gpus
    from stof_onnx.jit.nvrtc import find_nvrtc

    return {
        "device": torch.cuda.get_device_name(),
        "driver_cuda": survey_gpus().cuda_version,
        "torch": torch.__version__,
        "compiler": find_nvrtc().compiler,
        "commit": os.environ.get("STOF_COMMIT", ""),
        "command": "scripts/gpu_checks.sh",
    }
