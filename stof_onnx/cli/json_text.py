"""JSON on stdout and in report files."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stof_onnx.ir.errors import OutputError


def dump(value: Any) -> str:
    """One JSON text with a newline at its end, readable by strict parsers."""
    return json.dumps(_strict(value), indent=2, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """Replace what JSON has no number for: errors can be infinite or NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


def check_report_path(path: str, models: Sequence[str]) -> None:
    """Refuse a report path before long work starts.

    Raises:
        OutputError: it is one of the model files, or can't be written.
    """
    from stof_onnx.model_io import check_output_path

    for model in models:
        if os.path.realpath(path) == os.path.realpath(model):
            raise OutputError(
                f"report '{path}' is the same file as model '{model}'",
                "another path",
                "give another --report",
            )
    check_output_path(path, [])


def write_aside(path: str, value: Any) -> None:
    """Write JSON to a file, all or nothing: beside it first, then renamed.

    Raises:
        OutputError: it can't be written; a file of that name is then unchanged.
    """
    target = Path(os.path.realpath(path))
    aside = target.with_name(f".stof-onnx.{os.getpid()}.tmp")
    try:
        aside.write_text(dump(value), encoding="utf-8")
        os.replace(aside, target)
    except OSError as error:
        raise OutputError(f"report '{path}' can't be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
