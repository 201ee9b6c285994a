"""Runs the tests of this folder in a process of their own.

The plugin library takes one CUDA driver for the life of a process. These tests give it one that
records calls; the process of all other tests may use the GPU's. So the first test of this folder
starts another pytest with all of them and hands its reports on, one by one, as if they had run
here. With STOF_CONFORMANCE_HERE=1 in the environment they do run here, for a debugger.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = "STOF_CONFORMANCE_HERE"
"""Set where the tests run."""
REPORTS = "STOF_CONFORMANCE_REPORTS"
"""File that the other process writes its reports to."""
_TIMEOUT_SECONDS = 300

# Without the first entry of sys.path, the working directory: it is there only where it was here.
_CHILD = "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


class Outcomes:
    """Reports of the other process, by node id: all of them, run when the first is asked for.

    Args:
        session: whose selected tests of this folder are run.
    """

    def __init__(self, session: pytest.Session) -> None:
        self._config = session.config
        folder = Path(__file__).parent
        ours = (item.nodeid for item in session.items if folder in item.path.parents)
        self._ids = dict.fromkeys(ours)  # in order
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._failure = ""
        self._has_run = False

    def replay(self, item: pytest.Item) -> bool:
        """Hand on the reports of a test; False for a test of another folder."""
        if item.nodeid not in self._ids:
            return False
        if not self._has_run:
            self._has_run = True
            with tempfile.TemporaryDirectory() as directory:
                self._run(Path(directory))
        missing = pytest.TestReport(item.nodeid, item.location, {}, "failed", self._failure, "call")
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports.get(item.nodeid, [missing]):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _run(self, directory: Path) -> None:
        selection, results = directory / "selection", directory / "reports"
        selection.write_text("\n".join(self._ids))
        results.touch()
        config = self._config
        options = ["-m", "", "-p", "no:cacheprovider", "--rootdir", str(config.rootpath)]
        environment = {**os.environ, HERE: "1", REPORTS: str(results)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-c", _CHILD, "-q", *options, f"@{selection}"]
        with (directory / "output").open("w+") as output:
            process = subprocess.Popen(
                command, cwd=config.rootpath, env=environment, stdout=output, stderr=output
            )
            try:
                ended = f"ended with {process.wait(_TIMEOUT_SECONDS)}"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                ended = f"took more than {_TIMEOUT_SECONDS} s"
        text = (directory / "output").read_text(errors="replace")
        self._failure = (
            f"the process of the conformance tests {ended} before or in this test; "
            f"its output ended in:\n{text[-4000:]}"
        )
        for line in results.read_text().splitlines():
            data: dict[str, Any] = json.loads(line)
            report = config.hook.pytest_report_from_serializable(config=config, data=data)
            if isinstance(report.longrepr, list):  # of a skipped test; JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            self._reports.setdefault(report.nodeid, []).append(report)
        # A test that ended the process has no report of its teardown.
        self._reports = {
            nodeid: reports
            for nodeid, reports in self._reports.items()
            if reports[-1].when == "teardown"
        }


class ReportWriter:
    """In the other process: writes one line a report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._path = Path(os.environ[REPORTS])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._path.open("a") as file:
            file.write(json.dumps(data) + "\n")
