"""ONNX Runtime's own attention operators (domain com.microsoft), as built and as optimized.

``Attention`` projects its input itself, ``MultiHeadAttention`` takes three projections,
``GroupQueryAttention`` adds a cache, rotary embedding and lengths. The forms here are those that
ONNX Runtime's optimizer doesn't write for small models; ``fused_by_optimizer`` has the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import onnx

from attention_zoo.built_graphs import (
    Feeds,
    compare,
)
from attention_zoo.fused_by_optimizer import optimized_models
from attention_zoo.fused_layer import FusedForm, Layer
from attention_zoo.fused_reference import expected, make_feeds
from attention_zoo.model import HEAD_DIM, HEADS, ZooBlock, ZooModel


def _attention(name: str, mask: str, **fields: object) -> FusedForm:
    return FusedForm(f"attention_{name}", "Attention", mask, **fields)  # type: ignore[arg-type]


def _multi_head(name: str, mask: str, **fields: object) -> FusedForm:
    return FusedForm(f"mha_{name}", "MultiHeadAttention", mask, **fields)  # type: ignore[arg-type]


def _grouped(name: str, mask: str, **fields: object) -> FusedForm:
    # The operator rotates heads of 16 features or a multiple only.
    fields = {"kv_heads": 2, "head_dim": 16 if "rotary" in fields else HEAD_DIM} | fields
    return FusedForm(f"gqa_{name}", "GroupQueryAttention", mask, **fields)  # type: ignore[arg-type]


# By default a hidden pair gets -10000, which is a number like any other: a bias.
ATTENTION_FORMS = (
    _attention("plain", "none"),
    _attention("lengths", "bias", given="lengths"),
    _attention("ends_starts", "bias", given="ends_starts"),
    _attention("padding", "bias", given="padding"),
    _attention("padding_filter", "padding", given="padding", filter_value=-3.4028234663852886e38),
    _attention("pairs", "bias", given="pairs"),
    _attention("megatron", "bias", given="megatron", runs=False),
    _attention("causal", "causal", unidirectional=True),
    _attention("causal_padding", "causal+bias", unidirectional=True, given="padding"),
    _attention("past", "causal", unidirectional=True, past=True),
    _attention("past_padding", "causal+bias", unidirectional=True, past=True, given="padding"),
    _attention("bias", "bias", bias_axes=(1, HEADS)),
    _attention("bias_padding", "bias", bias_axes=(1, HEADS), given="padding"),
    _attention("value_dim", "bias", value_dim=12, given="padding"),
    _attention("scale", "none", scale=0.2),
)

MULTI_HEAD_FORMS = (
    _multi_head("plain", "none"),
    _multi_head("bias", "none", projected_bias=True),
    _multi_head("causal", "causal", unidirectional=True),
    _multi_head("lengths", "bias", given="lengths"),
    _multi_head("padding", "bias", given="padding", projected_bias=True),
    _multi_head("pairs", "bias", given="pairs"),
    _multi_head("causal_padding", "causal+bias", given="padding", unidirectional=True),
    _multi_head("attention_bias", "bias", bias_axes=("batch", 1)),
    _multi_head("attention_bias_heads", "bias", bias_axes=("batch", HEADS)),
    _multi_head("attention_bias_padding", "bias", bias_axes=(1, HEADS), given="padding"),
    _multi_head("packed", "none", packed=True, runs=False),
    _multi_head("packed_padding", "bias", packed=True, given="padding", runs=False),
    _multi_head("cross", "none", memory="rows"),
    _multi_head("cross_padding", "bias", memory="rows", given="padding"),
    _multi_head("cross_heads", "none", memory="heads"),
    _multi_head("past", "none", past=True),
    _multi_head("past_causal", "causal", past=True, unidirectional=True),
    _multi_head("past_attention_bias", "bias", past=True, bias_axes=("batch", 1)),
    _multi_head("value_dim", "none", value_dim=12),
    _multi_head("scale", "none", scale=0.2),
    _multi_head("float16", "none", dtype="float16"),
    _multi_head("scores", "none", scores=True),
)

GROUPED_FORMS = (
    _grouped("prompt", "causal+padding"),
    _grouped("prompt_packed", "causal+padding", packed=True),
    _grouped("prompt_heads", "causal+padding", kv_heads=HEADS),
    _grouped("prompt_multi_query", "causal+padding", kv_heads=1),
    _grouped("rotary", "causal+padding", rotary="half"),
    _grouped("rotary_packed", "causal+padding", rotary="half", packed=True),
    _grouped("rotary_interleaved", "causal+padding", rotary="interleaved"),
    _grouped("window", "causal_sliding_window+padding", window=5),
    _grouped(
        "window_rotary_packed",
        "causal_sliding_window+padding",
        window=5,
        rotary="half",
        packed=True,
    ),
    _grouped("softcap", "causal+padding", softcap=4.0),
    _grouped("scale", "causal+padding", scale=0.2),
    _grouped("smooth", "causal+padding", sinks="smooth"),
    _grouped("sinks", "causal+padding", sinks="learned"),
    _grouped("sinks_window", "causal_sliding_window+padding", sinks="learned", window=5),
    _grouped("attention_bias", "causal+padding+bias", bias_axes=("batch", 1)),
    _grouped("past", "causal+padding", past=True),
    _grouped("past_rotary", "causal+padding", past=True, rotary="half"),
    _grouped("past_window", "causal_sliding_window+padding", past=True, window=5),
    _grouped("decode", "causal+padding", decode=True),
    _grouped("decode_rotary_packed", "causal+padding", decode=True, rotary="half", packed=True),
    _grouped("float16", "causal+padding", dtype="float16"),
)

FORMS = (*ATTENTION_FORMS, *MULTI_HEAD_FORMS, *GROUPED_FORMS)


def build_fused(form: FusedForm) -> onnx.ModelProto:
    """Build and check a form.

    Raises:
        ValueError: ONNX Runtime and numpy differ.
    """
    layer = Layer(form)
    model = layer.build()
    if not form.runs:
        return model
    make: Callable[[int, int], Feeds] = functools.partial(make_feeds, form)
    reference = functools.partial(expected, form, layer)
    tolerance = 2e-2 if form.dtype == "float16" else 1e-4
    return compare(form.name, model, make, reference, tolerance)


def _notes(form: FusedForm) -> str:
    if form.scores:
        return "the weights are an output, too"
    return "" if form.runs else "ONNX Runtime 1.32 has no CPU kernel for this form: not checked"


def built_models() -> Iterator[ZooModel]:
    """Yield the files made node by node."""
    for form in FORMS:
        yield ZooModel(
            name=f"fused_{form.name}",
            family="fused_operator",
            build=functools.partial(build_fused, form),
            blocks=(
                ZooBlock(
                    form.mask,
                    kv_num_heads=form.kv_heads,
                    head_dim=form.head_dim,
                    status="refused" if form.scores else "fused",
                ),
            ),
            exporter="graph",
            dtype=form.dtype,
            notes=_notes(form),
        )


MODELS: tuple[ZooModel, ...] = (*built_models(), *optimized_models())
