"""Running the command line inside the test's process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from stof_onnx.cli import main

MODELS = Path(__file__).parents[1] / "models"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


RunCli = Callable[..., Outcome]


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Runs ``stof-onnx`` with the given arguments."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def bert() -> Path:
    return MODELS / "bert_sdpa_dynamo.onnx"
