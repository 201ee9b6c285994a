"""Engines of standard operators through TensorRT for RTX, in a process of its own.

The library ends the process on some errors, and logs to stdout on others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import stof_onnx
from stof_onnx.engine.backends import missing, module_name
from stof_onnx.engine.errors import EngineBuildError
from stof_onnx.engine.profiles import OptimizationProfile

_MOST_ERRORS = 3
_MOST_CHARACTERS = 500


def build_engine(
    model: Path, engine: Path, profiles: Sequence[OptimizationProfile], *, tf32: bool
) -> None:
    """Build an engine; needs no GPU.

    Args:
        model: an ONNX file of standard operators.
        engine: file to write.
        profiles: optimization profiles, none for a static model.
        tf32: whether float32 products may be computed in TF32.

    Raises:
        MissingDependencyError: TensorRT for RTX isn't installed.
        EngineBuildError: it refused the model, or crashed.
    """
    module = module_name("tensorrt-rtx")
    if module is None:
        raise missing("tensorrt-rtx", "backend tensorrt-rtx is not installed")
    with tempfile.TemporaryDirectory(prefix="stof-onnx-") as folder:
        answer = Path(folder, "answer.json")
        request = {
            "module": module,
            "model": str(model.resolve()),
            "engine": str(engine.resolve()),
            "answer": str(answer),
            "tf32": tf32,
            "profiles": [
                {name: dataclasses.astuple(shapes) for name, shapes in profile.items()}
                for profile in profiles
            ],
        }
        done = subprocess.run(
            [sys.executable, "-m", "stof_onnx.engine.rtx_process"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            errors="replace",
            # Where this package is found from, so that nothing in the user's directory is
            # imported instead; and everything else that this process can import.
            cwd=Path(stof_onnx.__file__).resolve().parents[1],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
        errors = json.loads(answer.read_text()) if answer.exists() else None
    if errors is None:
        said = (done.stderr or done.stdout).strip()[-_MOST_CHARACTERS:] or "nothing"
        raise EngineBuildError(
            f"TensorRT for RTX ended with exit status {done.returncode}; it said: {said}",
            next_step="build the engine with another backend",
        )
    if errors:
        raise EngineBuildError(
            f"TensorRT for RTX builds no engine: {'; '.join(errors[:_MOST_ERRORS])}",
            next_step="build the engine with another backend",
        )
