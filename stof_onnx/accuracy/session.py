"""Running a model with ONNX Runtime on the CPU, through Polygraphy."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from stof_onnx.model_io import first_line, needs_external_data, save_model

Arrays = dict[str, np.ndarray[Any, Any]]

# ONNX Runtime logs a failing run on stderr by itself; the caller gets the exception instead.
_ORT_FATAL_ONLY = 4


class RefusedError(Exception):
    """ONNX Runtime can't load a model, or can't run it on a feed; the text is one line."""


class Session:
    """A model that is ready to run.

    Args:
        runner: an active Polygraphy runner.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Run the model once.

        Args:
            arrays: an array for each input.

        Returns:
            The outputs by name, in the model's order.

        Raises:
            RefusedError: ONNX Runtime refuses these inputs.
        """
        try:
            # The arrays fit the model by construction; ONNX Runtime's own refusal says more.
            with quiet_polygraphy():
                return dict(self._runner.infer(dict(arrays), check_inputs=False))
        except Exception as error:  # ONNX Runtime's exception types have no public base
            raise RefusedError(first_line(error)) from error


@contextlib.contextmanager
def open_session(model: ModelProto, name: str, *, optimize: bool = True) -> Iterator[Session]:
    """Load a model into ONNX Runtime for the duration of a context.

    Args:
        model: an ONNX model of standard operators.
        name: of the runner, for Polygraphy's messages.
        optimize: whether ONNX Runtime may optimize the graph, as it does by default.

    Raises:
        RefusedError: ONNX Runtime can't load the model.
    """
    from polygraphy.backend.onnxrt import OnnxrtRunner

    with contextlib.ExitStack() as stack:
        source: str | bytes
        if needs_external_data(model):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stof-onnx-"))
            source = str(Path(folder) / "model.onnx")
            save_model(model, source)
        else:
            source = model.SerializeToString()
        with quiet_polygraphy():
            runner = OnnxrtRunner(_inference_session(source, optimize), name=name)
            stack.enter_context(runner)
        yield Session(runner)


def _inference_session(source: str | bytes, optimize: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ORT_FATAL_ONLY
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception types have no public base
        raise RefusedError(first_line(error)) from error


@contextlib.contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Keep Polygraphy from writing to stdout, where the command line's result goes."""
    from polygraphy.logger import G_LOGGER

    # One more than CRITICAL: those come as exceptions too.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield
