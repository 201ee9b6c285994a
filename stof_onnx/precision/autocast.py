"""Lowering by NVIDIA ModelOpt's AutoCast, an alternative to our own choice of nodes.

AutoCast runs the model and keeps nodes whose results are large in float32. It is told to keep
what :mod:`stof_onnx.precision.selection` keeps, too: on its own it turns the lowest number of a
mask into minus infinity, and with it rows without keys into NaN.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from stof_onnx.ir.errors import InputError, MissingDependencyError
from stof_onnx.model_io import first_line, save_model
from stof_onnx.precision.convert import Conversion, prepared, require_float32
from stof_onnx.precision.element_types import element_types
from stof_onnx.precision.selection import select
from stof_onnx.precision.shell import shell
from stof_onnx.precision.target import Precision


def require_autocast() -> None:
    """Check that ModelOpt is installed, before any work is done.

    Raises:
        MissingDependencyError: it isn't.
    """
    _autocast()


def convert_by_autocast(
    model: ModelProto, precision: Precision, inputs: Mapping[str, np.ndarray[Any, Any]]
) -> Conversion:
    """Lower a model by AutoCast.

    Args:
        model: a float32 model; not changed.
        precision: what to lower it to.
        inputs: an array for each input, with which AutoCast runs the model.

    Returns:
        The model with float32 inputs and outputs. AutoCast may raise its opset: to 22 for
        bfloat16.

    Raises:
        MissingDependencyError: ModelOpt isn't installed.
        InputError: the model isn't float32, or AutoCast fails on it.
    """
    require_float32(model, precision)
    autocast = _autocast()
    body = prepared(model)
    source = shell(body)
    for field in ("node", "initializer", "value_info"):
        getattr(source.graph, field).extend(getattr(body.graph, field))
    names = set()
    for number, node in enumerate(source.graph.node):
        # Distinct names are how AutoCast is told which nodes to keep.
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{number}"
        names.add(node.name)
    kept = select(source, precision).kept
    with tempfile.TemporaryDirectory(prefix="stof-onnx-") as folder, _silence():
        path = Path(folder) / "model.onnx"
        save_model(source, path)
        # A folder of files is run as it is; one file would be cut into batches.
        feeds = Path(folder) / "feeds"
        feeds.mkdir()
        np.savez(feeds / "0.npz", allow_pickle=False, **inputs)
        try:
            result: ModelProto = autocast.convert_to_mixed_precision(
                str(path),
                low_precision_type=precision.short,
                nodes_to_exclude=[f"^{re.escape(source.graph.node[n].name)}$" for n in kept],
                keep_io_types=True,
                calibration_data=str(feeds),
                providers=["cpu"],
            )
        except Exception as error:  # whatever its passes stumble over
            raise InputError(
                f"AutoCast can't convert the model: {type(error).__name__}: {first_line(error)}",
                next_step="leave out --autocast",
            ) from error
    return Conversion(result, *_counts(result, precision))


def _autocast() -> Any:
    try:
        with _silence():
            from modelopt.onnx import autocast
    except ImportError as error:
        raise MissingDependencyError(
            f"--autocast needs NVIDIA ModelOpt with its ONNX part ({first_line(error)})",
            next_step="pip install 'stof-onnx[autocast]', or leave out --autocast",
        ) from error
    return autocast


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep ModelOpt's log and its libraries' warnings away from the command line's output."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _counts(result: ModelProto, precision: Precision) -> tuple[int, dict[str, int]]:
    """How many operators make 16-bit and float32 tensors; Casts don't count."""
    types = element_types(result)
    made = [{types.get(t) for t in n.output} for n in result.graph.node if n.op_type != "Cast"]
    lowered = sum(precision.elem_type in found for found in made)
    kept = sum(TensorProto.FLOAT in found for found in made)
    return lowered, {"by AutoCast or stof-onnx": kept}
