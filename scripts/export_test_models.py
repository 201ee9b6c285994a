r"""Export the Transformer models that the tests read from ``tests/models``.

The exported files are committed, so tests need neither PyTorch nor transformers. Run this script
only to add a model or to move to newer exporters, in an environment with exactly::

    pip install torch==2.13.0 transformers==5.23.0 \
        onnx==1.23.2 onnx-ir==1.1.0 onnxscript==0.7.2 onnxruntime==1.32.0

and then::

    python scripts/export_test_models.py                      # everything
    python scripts/export_test_models.py --only bert_sdpa_dynamo mlp_dynamo

Weights are random with a fixed seed and all models are in eval mode. Every file is run by ONNX
Runtime and compared with PyTorch, with and without padding, at shapes other than the one it was
exported with; a difference stops the script. ``manifest.json``, beside the models, records what a
graph optimizer should find in each.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch
from exported_modules import (
    HEADS,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    CausalMemoryAttention,
    CrossAttention,
    PaddedCrossAttention,
    Perceptron,
    TextModelWithAttentions,
    UnmaskedTextModel,
    WindowAttention,
    bert,
    example_bert_bigbird,
    gpt2,
    randomise,
    text_model,
)
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent

Exporter = Literal["dynamo", "torchscript"]
# On the right, padding is invisible to the kept rows of a causal model; so it comes left, too.
Padding = Literal["none", "right", "left"]
PADDINGS: tuple[Padding, ...] = ("none", "right", "left")
# TorchScript's exporter does not know opset 18 and later in full; dynamo starts at 18.
OPSET: dict[Exporter, int] = {"dynamo": 18, "torchscript": 17}


# ---------------------------------------------------------------------------------------------
# What to export


@dataclass(frozen=True)
class Axis:
    """A dynamic axis and the sizes at export and in the two checks."""

    name: str
    exported: int
    checked: tuple[int, int]


BATCH = Axis("batch", 2, (3, 1))
SEQUENCE = Axis("sequence", 20, (33, 7))
MEMORY = Axis("memory_sequence", 27, (41, 10))


@dataclass(frozen=True)
class ModelInput:
    """A graph input: ``ids`` and ``mask`` are int64 [*axes], ``hidden`` is [*axes, HIDDEN]."""

    name: str
    kind: Literal["ids", "mask", "hidden"]
    axes: tuple[Axis, ...] = (BATCH, SEQUENCE)


TEXT_INPUTS = (ModelInput("input_ids", "ids"), ModelInput("attention_mask", "mask"))
HIDDEN_INPUT = ModelInput("hidden", "hidden")
MEMORY_INPUT = ModelInput("memory", "hidden", (BATCH, MEMORY))
MEMORY_MASK = ModelInput("memory_mask", "mask", (BATCH, MEMORY))


@dataclass(frozen=True)
class ModelExport:
    """One file: how to make it and what an optimizer should find in it."""

    name: str
    build: Callable[[], nn.Module]
    masks: tuple[str, ...]
    description: str
    exporter: Exporter = "dynamo"
    inputs: tuple[ModelInput, ...] = TEXT_INPUTS
    outputs: tuple[str, ...] = ("last_hidden_state",)
    is_example: bool = False
    status: Literal["fused", "refused"] = "fused"
    static: bool = False
    dtype: torch.dtype = torch.float32
    tolerance: float = 1e-4
    num_heads: int = HEADS
    head_dim: int = HIDDEN // HEADS
    notes: dict[str, str | int] = field(default_factory=dict)


FAMILIES: dict[str, tuple[tuple[str, ...], str]] = {
    "bert": (("padding",) * LAYERS, "BERT"),
    "gpt2": (("causal+padding",) * LAYERS, "GPT-2"),
    "modernbert": (
        ("padding", "sliding_window+padding", "sliding_window+padding"),
        "ModernBERT, layer 0 global, layers 1 and 2 with abs(q - k) <= 8, rotary embedding",
    ),
    "bert_bigbird": (
        ("arbitrary+padding",) * LAYERS,
        "BERT limited to a constant BigBird mask of 128 x 128, sliced to the sequence",
    ),
}


def family_exports() -> Iterable[ModelExport]:
    """Each model family with both attention implementations and both exporters."""
    for family, (masks, description) in FAMILIES.items():
        for implementation in ("sdpa", "eager"):
            for exporter in OPSET:
                yield ModelExport(
                    f"{family}_{implementation}_{exporter}",
                    functools.partial(text_model, family, implementation),
                    masks,
                    description,
                    exporter,
                )


def variant_exports() -> Iterable[ModelExport]:
    """Single files that each show one thing the families do not."""
    yield ModelExport(
        "bert_static_sdpa_dynamo",
        functools.partial(text_model, "bert", "sdpa"),
        ("padding",) * LAYERS,
        "BERT with static shapes, batch 2 and sequence 20",
        static=True,
    )
    yield ModelExport(
        "gpt2_nomask_sdpa_dynamo",
        lambda: UnmaskedTextModel(gpt2("sdpa")),
        ("causal",) * LAYERS,
        "GPT-2 without attention_mask; adds a packed-sequence term that is always true",
        inputs=TEXT_INPUTS[:1],
    )
    yield ModelExport(
        "bert_fp16_sdpa_dynamo",
        functools.partial(text_model, "bert", "sdpa"),
        ("padding",) * LAYERS,
        "BERT in fp16",
        dtype=torch.float16,
        tolerance=3e-2,
    )
    yield ModelExport(
        "bert_attentions_eager_torchscript",
        lambda: TextModelWithAttentions(bert("eager")),
        ("padding",) * LAYERS,
        "BERT whose softmax probabilities are model outputs too, so nothing may be fused",
        exporter="torchscript",
        outputs=("last_hidden_state", *(f"attentions.{layer}" for layer in range(LAYERS))),
        status="refused",
    )


def layer_exports() -> Iterable[ModelExport]:
    """Hand-written single layers."""
    yield ModelExport(
        "sliding_window_sdpa_dynamo",
        lambda: WindowAttention(window=5, causal=False),
        ("sliding_window",),
        "One attention, abs(q - k) <= 5 from arange",
        inputs=(HIDDEN_INPUT,),
        notes={"window": 5},
    )
    yield ModelExport(
        "causal_window_sdpa_dynamo",
        lambda: WindowAttention(window=9, causal=True),
        ("causal_sliding_window",),
        "One attention, q >= k and q - k < 9 from arange",
        inputs=(HIDDEN_INPUT,),
        notes={"window": 9},
    )
    yield ModelExport(
        "cross_attention_sdpa_dynamo",
        PaddedCrossAttention,
        ("padding",),
        "One attention from a sequence to a padded memory of another length",
        inputs=(HIDDEN_INPUT, MEMORY_INPUT, MEMORY_MASK),
    )
    yield ModelExport(
        "unmasked_cross_sdpa_dynamo",
        CrossAttention,
        ("none",),
        "One attention from a sequence to a memory of another length, no mask",
        inputs=(HIDDEN_INPUT, MEMORY_INPUT),
    )
    yield ModelExport(
        "causal_memory_sdpa_dynamo",
        CausalMemoryAttention,
        ("causal",),
        "One attention with Sk >= Sq, k <= q + Sk - Sq (the last query sees the last key)",
        inputs=(HIDDEN_INPUT, MEMORY_INPUT),
        notes={"alignment": "bottom-right"},
    )
    yield ModelExport(
        "mlp_dynamo", Perceptron, (), "A perceptron: no attention", inputs=(HIDDEN_INPUT,)
    )


def example_exports() -> Iterable[ModelExport]:
    """List the models of ``examples/``."""
    yield ModelExport(
        "bert_bigbird",
        example_bert_bigbird,
        ("arbitrary+padding",) * 4,
        "BERT, 4 layers, 512 positions, BigBird mask in blocks of 32",
        is_example=True,
        num_heads=4,
        head_dim=32,
    )


ALL_EXPORTS = (*family_exports(), *example_exports(), *variant_exports(), *layer_exports())


# ---------------------------------------------------------------------------------------------
# Export, clean, check


def make_inputs(export: ModelExport, sizes: dict[str, int], padding: Padding) -> tuple[Tensor, ...]:
    """Random inputs; each row of a padded batch is shorter than the one before."""
    generator = torch.Generator().manual_seed(1)
    values = []
    for model_input in export.inputs:
        shape = [sizes[axis.name] for axis in model_input.axes]
        if model_input.kind == "ids":
            # Token 0 is ModernBERT's padding token.
            values.append(torch.randint(3, VOCABULARY, shape, generator=generator))
        elif model_input.kind == "hidden":
            hidden = torch.randn(*shape, HIDDEN, generator=generator)
            values.append(hidden.to(export.dtype))
        else:
            batch, length = shape
            kept = torch.full((batch, 1), length)
            if padding != "none":
                kept -= (torch.arange(batch)[:, None] + 1) * length // (batch + 2)
            mask = (torch.arange(length)[None] < kept).to(torch.int64)
            values.append(mask.flip(1) if padding == "left" else mask)
    return tuple(values)


def run_exporter(
    export: ModelExport, module: nn.Module, inputs: tuple[Tensor, ...], file: Path
) -> None:
    """Write ``file`` with the exporter that ``export`` names."""
    input_names = [i.name for i in export.inputs]
    if export.exporter == "dynamo":
        dims: dict[str, object] = {}
        shapes = tuple(
            {n: dims.setdefault(a.name, torch.export.Dim(a.name)) for n, a in enumerate(i.axes)}
            for i in export.inputs
        )
        torch.onnx.export(
            module,
            inputs,
            file,
            dynamo=True,
            opset_version=OPSET["dynamo"],
            dynamic_shapes=None if export.static else shapes,
            external_data=False,
            verbose=False,
            input_names=input_names,
            output_names=list(export.outputs),
        )
        return
    axes = {i.name: {n: axis.name for n, axis in enumerate(i.axes)} for i in export.inputs}
    for output in export.outputs:
        is_probability = output.startswith("attentions")
        axes[output] = {0: "batch", **dict.fromkeys((2, 3) if is_probability else (1,), "sequence")}
    torch.onnx.export(
        module,
        inputs,
        str(file),
        dynamo=False,
        opset_version=OPSET["torchscript"],
        dynamic_axes=None if export.static else axes,
        input_names=input_names,
        output_names=list(export.outputs),
    )


def clean(model: onnx.ModelProto) -> None:
    """Drop stack traces and other texts: they are large and name paths of this machine."""

    def drop_texts(message: object) -> None:
        for attribute in ("doc_string", "metadata_props"):
            if hasattr(message, attribute):
                message.ClearField(attribute)  # type: ignore[attr-defined]

    def clean_graph(graph: onnx.GraphProto) -> None:
        drop_texts(graph)
        for values in (graph.input, graph.output, graph.value_info, graph.initializer):
            for value in values:
                drop_texts(value)
        clean_nodes(graph.node)

    def clean_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            drop_texts(node)
            for attribute in node.attribute:
                drop_texts(attribute)
                # Touching an unset field would set it.
                if attribute.HasField("t"):
                    drop_texts(attribute.t)
                if attribute.HasField("g"):
                    clean_graph(attribute.g)

    drop_texts(model)
    clean_graph(model.graph)
    for function in model.functions:
        drop_texts(function)
        clean_nodes(function.node)


def kept_error(feeds: dict[str, np.ndarray], want: Tensor, got: np.ndarray) -> float:
    """Return the largest difference of [B, S, E] or [B, H, Sq, Sk] outputs at tokens that are kept.

    Nobody reads the output of a padding token, and where its window holds nothing but padding,
    PyTorch's kernel and the exported graph are known to differ.
    """
    error = np.abs(want.float().numpy() - got.astype(np.float32))
    if "attention_mask" in feeds:
        rows = feeds["attention_mask"].astype(bool)
        error = error[rows] if error.ndim == 3 else error.swapaxes(1, 2)[rows]
    return float(error.max())


def check(export: ModelExport, module: nn.Module, model: onnx.ModelProto) -> float:
    """Compare ONNX Runtime with PyTorch and return the largest difference.

    Raises:
        ValueError: a difference above ``export.tolerance``, or not one softmax per attention.
    """
    onnx.checker.check_model(model, full_check=True)
    softmaxes = sum(node.op_type == "Softmax" for node in model.graph.node)
    if softmaxes != len(export.masks):
        raise ValueError(f"{export.name}: {softmaxes} Softmax, expected {len(export.masks)}")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    worst = 0.0
    for case, padding in itertools.product(range(1 if export.static else 2), PADDINGS):
        axes = {axis for i in export.inputs for axis in i.axes}
        sizes = {a.name: a.exported if export.static else a.checked[case] for a in axes}
        inputs = make_inputs(export, sizes, padding)
        feeds = {i.name: value.numpy() for i, value in zip(export.inputs, inputs, strict=True)}
        with torch.no_grad():
            wanted = module(*inputs)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for want, got in zip(wanted, session.run(None, feeds), strict=True):
            error = kept_error(feeds, want, np.asarray(got))
            # Written so that NaN fails too.
            if not error <= export.tolerance:
                raise ValueError(f"{export.name} at {sizes}, padding {padding}: off by {error:.2e}")
            worst = max(worst, error)
    return worst


def write(export: ModelExport, file: Path) -> tuple[onnx.ModelProto, float]:
    """Export, clean, check and save one model."""
    torch.manual_seed(0)
    module = randomise(export.build()).to(export.dtype)
    sizes = {axis.name: axis.exported for i in export.inputs for axis in i.axes}
    inputs = make_inputs(export, sizes, "right")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "model.onnx"
        run_exporter(export, module, inputs, raw)
        model = onnx.load(raw)
    clean(model)
    error = check(export, module, model)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)
    return model, error


def manifest_entry(export: ModelExport) -> dict[str, object]:
    """Say what a test should expect of the file; blocks are in the order of the layers."""
    return {
        "description": export.description,
        "exporter": export.exporter,
        "opset": OPSET[export.exporter],
        "dtype": str(export.dtype).removeprefix("torch."),
        "attention_blocks": len(export.masks),
        "num_heads": export.num_heads if export.masks else 0,
        "head_dim": export.head_dim if export.masks else 0,
        "blocks": [{"mask": mask, "status": export.status} for mask in export.masks],
        **export.notes,
    }


def main() -> int:
    """Parse the command line, export, and print a table."""
    parser = argparse.ArgumentParser(description="Export the models that the tests read.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "tests" / "models")
    parser.add_argument("--examples", type=Path, default=REPOSITORY / "examples")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[export.name for export in ALL_EXPORTS]
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{'file':<44} {'bytes':>9} {'nodes':>6} {'attention':>9} {'error':>8}")
    for export in ALL_EXPORTS:
        if arguments.only and export.name not in arguments.only:
            continue
        folder = arguments.examples if export.is_example else arguments.out
        file = folder / f"{export.name}.onnx"
        model, error = write(export, file)
        size, nodes = file.stat().st_size, len(model.graph.node)
        line = f"{size:>9} {nodes:>6} {len(export.masks):>9} {error:>8.1e}"
        print(f"{file.name:<44} {line}", flush=True)

    manifest = {
        f"{export.name}.onnx": manifest_entry(export)
        for export in ALL_EXPORTS
        if not export.is_example
    }
    (arguments.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # ModernBERT's forward iterates over a set of strings, so the order of its nodes, and with
        # it the bytes of the file, would change from run to run.
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    sys.exit(main())
