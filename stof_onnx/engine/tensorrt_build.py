"""Engines through TensorRT's Python bindings and Polygraphy's loaders."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

from stof_onnx.engine.backends import missing
from stof_onnx.engine.errors import EngineBuildError
from stof_onnx.engine.profiles import OptimizationProfile
from stof_onnx.ir.errors import MissingDependencyError

# How Polygraphy's logger marks TensorRT's errors, possibly behind a colour sequence.
_LOGGED_ERROR = re.compile(r"(?:\x1b\[[0-9;]*m)*\[E\]\s*(.*?)(?:\x1b\[[0-9;]*m)*\s*")
_MOST_ERRORS = 3


def build_engine(
    model: Path,
    engine: Path,
    profiles: Sequence[OptimizationProfile],
    *,
    plugin_library: Path | None,
    tf32: bool,
) -> None:
    """Build an engine for the GPU at hand.

    Types are those of the ONNX file (a strongly typed network): the only kind that
    TensorRT 11 has, and here what TensorRT 10 is asked for.

    Args:
        model: the ONNX file; its external data is read from beside it.
        engine: file to write.
        profiles: optimization profiles, none for a static model.
        plugin_library: the one that registers when it is loaded; None to load none.
        tf32: whether float32 products may be computed in TF32.

    Raises:
        MissingDependencyError: TensorRT or the plugin library can't be loaded, or Polygraphy
            is older than the TensorRT.
        EngineBuildError: TensorRT refused the model.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise missing("tensorrt", f"tensorrt can't be imported: {error}") from error
    from polygraphy.backend.trt import (
        CreateConfig,
        NetworkFromOnnxPath,
        Profile,
        engine_bytes_from_network,
        load_plugins,
    )
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    shapes = []
    for profile in profiles:
        shapes.append(Profile())
        for name, sizes in profile.items():
            shapes[-1].add(name, sizes.minimum, sizes.optimum, sizes.maximum)
    log = io.StringIO()
    # Polygraphy prints what TensorRT logs; the streams belong to our caller.
    with (
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        G_LOGGER.verbosity(G_LOGGER.ERROR),
    ):
        if plugin_library is not None:
            try:
                load_plugins(plugins=[str(plugin_library)])
            except OSError as error:
                raise MissingDependencyError(
                    f"the plugin library can't be loaded: {error}",
                    next_step="run `pip install --force-reinstall --no-deps .` in the source tree",
                ) from error
        try:
            content = engine_bytes_from_network(
                NetworkFromOnnxPath(str(model), strongly_typed=True),
                # None for the default: Polygraphy adds a profile for static networks itself.
                config=CreateConfig(profiles=shapes or None, tf32=tf32),
            )
        except PolygraphyException as error:
            raise EngineBuildError(
                f"TensorRT builds no engine of '{model}': {_reason(log.getvalue(), error)}",
                next_step="`stof-onnx expand` the file and build that: if it fails too, the"
                " original model is the cause",
            ) from error
        except AttributeError as error:
            # Polygraphys from before TensorRT 11 ask for what 11 removed (int8_calibrator).
            raise MissingDependencyError(
                f"the installed Polygraphy doesn't know TensorRT {trt.__version__}: {error}",
                next_step="run `pip install --upgrade polygraphy`",
            ) from error
    engine.write_bytes(memoryview(content))


def _reason(log: str, error: Exception) -> str:
    """TensorRT's own errors, which say more than Polygraphy's summary."""
    errors = [match[1] for line in log.splitlines() if (match := _LOGGED_ERROR.fullmatch(line))]
    return "; ".join(errors[:_MOST_ERRORS]) or str(error)
