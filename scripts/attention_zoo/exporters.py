"""Runs PyTorch's two exporters on a ``ZooModel``."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from attention_zoo.model import Axis, ModelInput, ModelOutput, ZooModel


def export(model: ZooModel, module: nn.Module, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """Return what the exporter that ``model`` names writes for ``module`` at ``inputs``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "raw.onnx"
        if model.exporter.startswith("dynamo"):
            _run_dynamo(model, module, inputs, file)
        else:
            _run_torchscript(model, module, inputs, file)
        return onnx.load(file)


def _run_dynamo(model: ZooModel, module: nn.Module, inputs: tuple[Tensor, ...], file: Path) -> None:
    torch.onnx.export(
        module,
        inputs,
        file,
        dynamo=True,
        opset_version=model.opset,
        dynamic_shapes=None if model.static else _dynamic_shapes(model, module),
        external_data=False,
        verbose=False,
        input_names=[i.name for i in model.inputs],
        output_names=[o.name for o in model.outputs],
    )


def _dynamic_shapes(model: ZooModel, module: nn.Module) -> tuple[object, ...]:
    """Say which axes are dynamic, grouped as ``forward`` takes its arguments."""
    # torch.export cannot name a sum of two axes; from strings it finds the relation itself.
    named = not any(isinstance(a, Axis) and a.sum_of for i in model.inputs for a in i.axes)
    dims: dict[str, object] = {}

    def shape(axes: Sequence[Axis | int]) -> dict[int, object]:
        return {
            n: dims.setdefault(a.name, torch.export.Dim(a.name) if named else a.name)
            for n, a in enumerate(axes)
            if isinstance(a, Axis)
        }

    shapes = [shape(i.axes) for i in model.inputs]
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        return tuple(shapes)
    single = len(parameters) - 1
    return (*shapes[:single], tuple(shapes[single:]))


def _run_torchscript(
    model: ZooModel, module: nn.Module, inputs: tuple[Tensor, ...], file: Path
) -> None:
    values: tuple[ModelInput | ModelOutput, ...] = (*model.inputs, *model.outputs)
    axes = {
        value.name: {n: a.name for n, a in enumerate(value.axes) if isinstance(a, Axis)}
        for value in values
    }
    with torch.no_grad():
        torch.onnx.export(
            module,
            inputs,
            str(file),
            dynamo=False,
            opset_version=model.opset,
            dynamic_axes=None if model.static else axes,
            input_names=[i.name for i in model.inputs],
            output_names=[o.name for o in model.outputs],
        )
