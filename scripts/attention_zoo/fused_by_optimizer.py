"""Exported models after ONNX Runtime's transformers optimizer (onnxruntime.transformers).

It matches few of what today's exporters write, mostly TorchScript's; the table has those.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from export_test_models import clean
from torch import nn

from attention_zoo.checks import CASES, compare, open_session
from attention_zoo.exporters import export
from attention_zoo.model import HEADS, HIDDEN, ZooModel
from attention_zoo.random_weights import Padding, axis_sizes, make_inputs, randomise

DOMAIN = "com.microsoft"
SOURCES = ("encoders", "decoders", "encoder_decoders", "vision", "audio")


@dataclass(frozen=True)
class Optimized:
    """A model of the zoo and how it is optimized.

    Attributes:
        source: name of the zoo's model.
        model_type: what the optimizer takes it for.
        multi_head: write MultiHeadAttention where the optimizer has the choice.
        mask: the optimizer's mask_index: the whole mask, or the number of kept tokens, which says
            the same only if padding is on the right.
        transformers: the only major version whose graph the optimizer knows; 0 for any.
    """

    source: str
    model_type: str
    multi_head: bool = False
    mask: Literal["raw", "end"] = "raw"
    transformers: int = 0

    @property
    def name(self) -> str:
        """The file's stem."""
        operator = "_mha" if self.multi_head else ""
        end = "_end" if self.mask == "end" else ""
        return f"fused_opt_{self.source}{operator}{end}"


OPTIMIZED = (
    Optimized("bert_base_eager_torchscript17", "bert", mask="end"),
    Optimized("bert_base_eager_torchscript17", "bert", multi_head=True),
    Optimized("roberta_base_eager_torchscript17", "bert"),
    Optimized(
        "distilbert_base_eager_torchscript17", "bert", mask="end", multi_head=True, transformers=5
    ),
    Optimized("distilbert_base_eager_torchscript17", "bert", transformers=5),
    Optimized("electra_base_eager_torchscript17", "bert"),
    Optimized("albert_base_eager_torchscript17", "bert"),
    Optimized("bart_encoder_eager_torchscript17", "bert", transformers=5),
    Optimized("clip_vision_eager_torchscript17", "clip"),
    Optimized("bert_base_sdpa_torchscript17", "bert", transformers=4),
    Optimized("distilbert_base_sdpa_torchscript17", "bert", transformers=4),
    Optimized("bart_encoder_sdpa_torchscript17", "bert", transformers=4),
)


def zoo_models() -> dict[str, ZooModel]:
    """Return the models of the registries that the table names, by name."""
    return {
        model.name: model
        for source in SOURCES
        if importlib.util.find_spec(f"attention_zoo.{source}")
        for model in importlib.import_module(f"attention_zoo.{source}").MODELS
    }


def optimize(proto: onnx.ModelProto, wanted: Optimized) -> onnx.ModelProto:
    """Return what ONNX Runtime's optimizer makes of a model.

    Raises:
        ValueError: it fused no attention.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions(wanted.model_type)
    options.use_multi_head_attention = wanted.multi_head
    options.use_raw_attention_mask(wanted.mask == "raw")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(proto, file)
        optimized: onnx.ModelProto = optimize_model(
            str(file),
            model_type=wanted.model_type,
            num_heads=HEADS,
            hidden_size=HIDDEN,
            optimization_options=options,
            opt_level=0,
        ).model
    # The optimizer forgets the import for some models.
    if not any(entry.domain == DOMAIN for entry in optimized.opset_import):
        optimized.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    if not any(
        n.op_type.endswith("Attention") and n.domain == DOMAIN for n in optimized.graph.node
    ):
        raise ValueError(f"ONNX Runtime's optimizer fused no attention of {wanted.source}")
    return optimized


def build_optimized(wanted: Optimized, model: ZooModel) -> onnx.ModelProto:
    """Export, optimize and check a model of the zoo.

    Raises:
        ValueError: nothing was fused, or the result differs from PyTorch.
    """
    module = model.build().to(getattr(torch, model.dtype)).eval()
    if not model.keeps_weights:
        randomise(module)
    proto = export(model, module, make_inputs(model, axis_sizes(model, None), "none"))
    optimized = optimize(proto, wanted)
    clean(optimized)
    error = _largest_error(wanted, model, module, optimized)
    if not error <= model.tolerance:
        raise ValueError(f"{wanted.name} differs from PyTorch by {error:.2e}")
    return optimized


def _largest_error(
    wanted: Optimized, model: ZooModel, module: nn.Module, optimized: onnx.ModelProto
) -> float:
    if wanted.mask == "raw":
        comparison = compare(model, module, optimized)
        if comparison.problems:
            raise ValueError(f"{wanted.name}: {comparison.problems[0]}")
        return comparison.largest_difference
    session, worst = open_session(optimized), 0.0
    paddings: tuple[Padding, ...] = ("none", "right")
    for case, padding in itertools.product(range(CASES), paddings):
        inputs = make_inputs(model, axis_sizes(model, case), padding)
        feeds = {i.name: value.numpy() for i, value in zip(model.inputs, inputs, strict=True)}
        kept = feeds["attention_mask"].astype(bool)
        with torch.no_grad():
            want = module(*inputs).numpy()
        difference = np.abs(want - session.run(None, feeds)[0])[kept].max()
        worst = max(worst, float(difference) / max(1.0, float(np.abs(want).max())))
    return worst


def optimized_models() -> Iterator[ZooModel]:
    """Yield the optimized files."""
    models = zoo_models()
    major = int(importlib.metadata.version("transformers").split(".")[0])
    for wanted in OPTIMIZED:
        if wanted.transformers not in {0, major}:
            continue
        model = models[wanted.source]
        yield dataclasses.replace(
            model,
            name=wanted.name,
            family="fused_by_optimizer",
            build=functools.partial(build_optimized, wanted, model),
            notes=f"{wanted.source} by onnxruntime.transformers.optimizer",
        )
