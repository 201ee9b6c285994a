"""Compares an exported file in ONNX Runtime with the PyTorch module it came from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from attention_zoo.model import ModelOutput, ZooModel
from attention_zoo.random_weights import PADDINGS, axis_sizes, make_inputs

CASES = 2


@dataclass(frozen=True)
class Comparison:
    """How a file compares with PyTorch.

    Attributes:
        largest_difference: over the cases that ran, None if none did; relative to the largest
            number of an output if that is above 1, and infinite if there is a NaN.
        problems: what ONNX Runtime said, and where, in the cases that did not run.
    """

    largest_difference: float | None
    problems: tuple[str, ...]


def compare(model: ZooModel, module: nn.Module, proto: onnx.ModelProto) -> Comparison:
    """Run the file and the module at all checked shapes and paddings.

    Raises:
        Exception: of onnx.checker or ONNX Runtime, if the file cannot even be opened.
    """
    session = open_session(proto)
    paddings = PADDINGS if any(i.kind == "mask" for i in model.inputs) else PADDINGS[:1]
    differences, problems = [], []
    for case, padding in itertools.product(range(1 if model.static else CASES), paddings):
        sizes = axis_sizes(model, case)
        inputs = make_inputs(model, sizes, padding)
        try:
            differences.append(_case_difference(model, module, session, inputs))
        except Exception as problem:  # the other cases may run
            problems.append(f"at {sizes}, padding {padding}: {problem}")
    return Comparison(max(differences, default=None), tuple(problems))


def _case_difference(
    model: ZooModel,
    module: nn.Module,
    session: onnxruntime.InferenceSession,
    inputs: tuple[Tensor, ...],
) -> float:
    feeds = {i.name: value.numpy() for i, value in zip(model.inputs, inputs, strict=True)}
    with torch.no_grad():
        wanted = module(*inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    # An exporter may drop an input that changes nothing.
    used = {i.name for i in session.get_inputs()}
    results = session.run(None, {name: feeds[name] for name in feeds if name in used})
    return max(
        _difference(output, feeds, want, np.asarray(got))
        for output, want, got in zip(model.outputs, wanted, results, strict=True)
    )


def open_session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Check the file and open it on the CPU.

    Raises:
        onnx.checker.ValidationError: the file is no valid ONNX.
    """
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The file itself is asked for, not what ONNX Runtime's optimizer makes of it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _difference(
    output: ModelOutput, feeds: dict[str, np.ndarray], want: Tensor, got: np.ndarray
) -> float:
    expected = want.float().numpy()
    if expected.shape != got.shape:
        raise ValueError(f"{output.name} has shape {got.shape}, PyTorch's has {expected.shape}")
    difference = np.abs(expected - got.astype(np.float32))
    kept = _kept_rows(output, feeds, got.shape)
    if kept is not None:
        difference, expected = difference[kept], expected[kept]  # type: ignore[index]
    if difference.size == 0:  # the only new token is padding
        return 0.0
    if np.isnan(difference).any():
        return float("inf")
    return float(difference.max()) / max(1.0, float(np.abs(expected).max()))


def _kept_rows(
    output: ModelOutput, feeds: dict[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[object, ...] | None:
    """Index the rows that are no padding.

    Nobody reads the output of a padding token, and where its window holds nothing but padding,
    PyTorch's kernel and the exported graph are known to differ.
    """
    if output.keep is None or output.keep not in feeds:
        return None
    # A decoder's mask covers its cache, too: the new tokens are its last part.
    rows = shape[output.row_axis]
    batch, row = np.nonzero(feeds[output.keep][:, -rows:])
    index: list[object] = [slice(None)] * len(shape)
    index[0], index[output.row_axis] = batch, row
    return tuple(index)
