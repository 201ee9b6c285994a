"""Exports hand-written modules, whose inputs are more than tokens and padding masks.

``checked`` makes a ``ZooModel`` whose ``build`` returns the finished file: it runs the exporter
and compares ONNX Runtime with PyTorch itself, because it draws the inputs itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from export_test_models import clean
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from attention_zoo.checks import CASES, open_session
from attention_zoo.exporters import export
from attention_zoo.handwritten_masks import END_OF_DOCUMENT
from attention_zoo.model import BATCH, HIDDEN, SEQUENCE, VOCABULARY, ModelInput, ZooModel
from attention_zoo.random_weights import (
    PADDINGS,
    Padding,
    axis_sizes,
    padding_mask,
    randomise,
    shape_of,
)

# Takes a shape, the padding of the case, and a source of randomness.
Draw = Callable[[list[int], Padding, torch.Generator], Tensor]


def draw_normal(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=generator)


def draw_tokens(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """Tokens, about one in six of which ends a document."""
    tokens = torch.randint(3, VOCABULARY, shape, generator=generator)
    ends = torch.rand(shape, generator=generator) < 1 / 6
    return torch.where(ends, END_OF_DOCUMENT, tokens)


def draw_keep(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """An int64 padding mask, 1 where kept."""
    return padding_mask(shape[0], shape[1], padding)


def draw_keep_bool(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """A bool padding mask, true where kept."""
    return padding_mask(shape[0], shape[1], padding).bool()


def draw_drop_bool(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """A bool padding mask, true where dropped, as nn.MultiheadAttention takes it."""
    return ~padding_mask(shape[0], shape[1], padding).bool()


def draw_drop_right(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """The same, never on the left, where causal rows would see nothing."""
    return draw_drop_bool(shape, "right" if padding == "left" else padding, generator)


def draw_lengths(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """Lengths from 1 to 7, the shortest sequence."""
    return torch.randint(1, 8, shape, generator=generator)


def draw_documents(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """Ids 1, 2, ... of packed documents; with padding, 0 at the end of each row."""
    starts = torch.rand(shape, generator=generator) < 1 / 5
    ids = 1 + starts.long().cumsum(-1)
    return ids * padding_mask(shape[0], shape[1], "none" if padding == "none" else "right")


def draw_positions(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """Positions that start again at 0 with each packed document."""
    starts = torch.rand(shape, generator=generator) < 1 / 5
    starts[:, 0] = True
    index = torch.arange(shape[1]).expand(shape)
    return index - torch.where(starts, index, 0).cummax(-1).values


def draw_bias(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """A float mask: minus infinity at a third of the pairs, small numbers elsewhere."""
    hidden = torch.rand(shape, generator=generator) < 1 / 3
    hidden[..., 0] = False
    return torch.randn(shape, generator=generator).masked_fill(hidden, float("-inf"))


def draw_pairs(shape: list[int], padding: Padding, generator: torch.Generator) -> Tensor:
    """A bool mask that keeps two thirds of the pairs and every row's first."""
    keep = torch.rand(shape, generator=generator) < 2 / 3
    keep[..., 0] = True
    return keep


@dataclass(frozen=True)
class DrawnInput(ModelInput):
    """A graph input with its own source of values; ``kind`` isn't used."""

    draw: Draw = draw_normal


def drawn(name: str, draw: Draw, axes: tuple[object, ...] = (BATCH, SEQUENCE)) -> DrawnInput:
    """Return an input; ``axes`` as in ``ModelInput``."""
    return DrawnInput(name, "float", axes, draw)  # type: ignore[arg-type]


HIDDEN_INPUT = drawn("hidden", draw_normal, (BATCH, SEQUENCE, HIDDEN))


def checked(model: ZooModel, *, runs: bool = True) -> ZooModel:
    """Return ``model`` with a ``build`` that exports and checks the module.

    ``runs`` says that ONNX Runtime can run the file; if not, onnx's reference evaluator does.
    """
    return dataclasses.replace(model, build=lambda: _export_checked(model, runs))


def _export_checked(model: ZooModel, runs: bool) -> onnx.ModelProto:
    module = model.build().to(getattr(torch, model.dtype)).eval()
    if not model.keeps_weights:
        randomise(module)
    proto = export(model, module, _draw_inputs(model, axis_sizes(model, None), "none"))
    clean(proto)
    error = _largest_error(model, module, open_session(proto) if runs else _Reference(proto))
    # Written so that NaN fails, too.
    if not error <= model.tolerance:
        raise ValueError(f"{model.name} differs from PyTorch by {error:.2e}")
    return proto


def _draw_inputs(model: ZooModel, sizes: dict[str, int], padding: Padding) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    values = []
    for model_input in model.inputs:
        if not isinstance(model_input, DrawnInput):
            raise TypeError(f"{model.name}: {model_input.name} is no DrawnInput")
        value = model_input.draw(shape_of(model_input, sizes), padding, generator)
        values.append(value.to(getattr(torch, model.dtype)) if value.is_floating_point() else value)
    return tuple(values)


class _Reference:
    """onnx's reference evaluator behind the interface of an ONNX Runtime session."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.evaluator = ReferenceEvaluator(proto)
        self.inputs = list(proto.graph.input)

    def get_inputs(self) -> list[onnx.ValueInfoProto]:
        """Return the graph's inputs."""
        return self.inputs

    def run(self, outputs: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return all outputs."""
        return list(self.evaluator.run(outputs, feeds))


def _largest_error(
    model: ZooModel, module: nn.Module, session: onnxruntime.InferenceSession | _Reference
) -> float:
    """Return the largest difference from PyTorch, relative to outputs above 1, at other sizes."""
    worst = 0.0
    for case in range(1 if model.static else CASES):
        for padding in PADDINGS:
            inputs = _draw_inputs(model, axis_sizes(model, case), padding)
            feeds = {i.name: v.numpy() for i, v in zip(model.inputs, inputs, strict=True)}
            with torch.no_grad():
                wanted = module(*inputs)
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            used = {i.name for i in session.get_inputs()}
            results = session.run(None, {name: feeds[name] for name in feeds if name in used})
            for output, want, got in zip(model.outputs, wanted, results, strict=True):
                keep = feeds[output.keep].astype(bool) if output.keep else None
                worst = max(worst, _difference(want.float().numpy(), np.asarray(got), keep))
    return worst


def _difference(want: np.ndarray, got: np.ndarray, keep: np.ndarray | None) -> float:
    """Compare [B, S, ...] arrays, where ``keep`` [B, S] is given only its rows."""
    if want.shape != got.shape:
        raise ValueError(f"ONNX Runtime gives shape {got.shape}, PyTorch {want.shape}")
    if keep is not None:
        want, got = want[keep], got[keep]
    error = float(np.abs(want - got.astype(np.float32)).max())
    return float("inf") if np.isnan(error) else error / max(1.0, float(np.abs(want).max()))
