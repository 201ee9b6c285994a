"""The standard ``Attention`` operator of opsets 23 and 24, node by node and as PyTorch writes it.

The files made here are one layer each: projections, ``Attention``, output projection.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from attention_zoo.built_graphs import (
    compare,
    rotary_tables,
)
from attention_zoo.handwritten import forms
from attention_zoo.handwritten_export import HIDDEN_INPUT, drawn
from attention_zoo.handwritten_form import CONTEXT, Form, form_models
from attention_zoo.handwritten_layers import Separate
from attention_zoo.model import HEAD_DIM, HIDDEN, POSITIONS, Exporter, ZooBlock, ZooModel
from attention_zoo.standard_layer import Layer, OperatorForm
from attention_zoo.standard_reference import expected, make_feeds

FORMS = (
    OperatorForm("plain_4d", "none"),
    OperatorForm("plain_3d", "none", rank=3),
    OperatorForm("causal_4d", "causal", is_causal=True),
    OperatorForm("causal_3d", "causal", rank=3, is_causal=True),
    OperatorForm("grouped_4d", "causal", kv_heads=2, is_causal=True),
    OperatorForm("grouped_3d", "causal", rank=3, kv_heads=2, is_causal=True),
    OperatorForm("multi_query_3d", "none", rank=3, kv_heads=1),
    OperatorForm("mask_bool_4d", "dense", given="bool_4d"),
    OperatorForm("mask_bool_2d_3d", "dense", rank=3, given="bool_2d"),
    OperatorForm("mask_float_4d", "bias", given="float_4d"),
    OperatorForm("mask_float_2d_3d", "bias", rank=3, given="float_2d"),
    OperatorForm("mask_float_heads", "bias", given="float_heads"),
    OperatorForm("mask_padding", "padding", given="padding"),
    OperatorForm("mask_window_3d", "sliding_window", rank=3, given="window"),
    OperatorForm("causal_padding", "causal+padding", given="padding", is_causal=True),
    OperatorForm("causal_bool_3d", "causal+dense", rank=3, given="bool_4d", is_causal=True),
    OperatorForm("softcap", "none", softcap=4.0),
    OperatorForm("softcap_causal_3d", "causal", rank=3, softcap=4.0, is_causal=True),
    OperatorForm("softcap_padding", "padding", softcap=4.0, given="padding"),
    OperatorForm("scale", "causal", scale=0.2, is_causal=True),
    OperatorForm("scale_one_3d", "none", rank=3, scale=1.0),
    OperatorForm("float16", "causal", dtype="float16", is_causal=True),
    OperatorForm("float16_precision", "causal", dtype="float16", precision=1, is_causal=True),
    OperatorForm("value_dim_3d", "causal", rank=3, value_dim=12, is_causal=True),
    OperatorForm("cross_4d", "none", memory=True),
    OperatorForm("cross_causal_3d", "causal", rank=3, memory=True, is_causal=True),
    OperatorForm("past_4d", "causal", past=True, is_causal=True),
    OperatorForm("past_grouped_3d", "causal", rank=3, kv_heads=2, past=True, is_causal=True),
    OperatorForm("past_padding", "padding", past=True, given="padding"),
    OperatorForm("rotary_3d", "causal", rank=3, rotary="half", is_causal=True),
    OperatorForm("rotary_interleaved_4d", "causal", rotary="interleaved", is_causal=True),
    OperatorForm(
        "rotary_partial_4d", "causal+padding", rotary="partial", is_causal=True, given="padding"
    ),
    OperatorForm(
        "rotary_positions_3d", "causal", rank=3, kv_heads=2, rotary="positions", is_causal=True
    ),
    OperatorForm(
        "norms_rotary_4d", "causal", kv_heads=2, norms=True, rotary="half", is_causal=True
    ),
    OperatorForm("norms_3d", "sliding_window", rank=3, norms=True, given="window"),
    OperatorForm("scores_raw", "none", scores_mode=0),
    OperatorForm("scores_weights_3d", "causal", rank=3, is_causal=True, scores_mode=3),
    OperatorForm("opset24_plain_3d", "none", 24, rank=3),
    OperatorForm("opset24_causal_4d", "causal", 24, is_causal=True, kv_heads=2),
    OperatorForm("opset24_padding", "padding", 24, given="padding"),
    OperatorForm("opset24_past_3d", "causal", 24, rank=3, past=True, is_causal=True),
    OperatorForm("opset24_nonpad", "padding", 24, nonpad=True),
    OperatorForm("opset24_nonpad_3d_grouped", "padding", 24, rank=3, kv_heads=2, nonpad=True),
    OperatorForm(
        "opset24_nonpad_window", "sliding_window+padding", 24, nonpad=True, given="window"
    ),
    OperatorForm("opset24_nonpad_causal", "causal+padding", 24, nonpad=True, is_causal=True),
)


def build_operator(form: OperatorForm) -> onnx.ModelProto:
    """Build and check a form.

    Raises:
        ValueError: ONNX Runtime and numpy differ.
    """
    layer = Layer(form)
    return compare(
        form.name,
        layer.build(),
        functools.partial(make_feeds, form),
        functools.partial(expected, form, layer),
        2e-2 if form.dtype == "float16" else 1e-4,
    )


# ---------------------------------------------------------------------------------------------
# As PyTorch writes it


class OnnxOperators(nn.Module):
    """``torch.onnx.ops``: the operators called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.project = Separate(kv_heads=2)
        self.query_norm = nn.RMSNorm(HEAD_DIM)
        self.output = nn.Linear(HIDDEN, HIDDEN)
        cosine, sine = rotary_tables(POSITIONS, HEAD_DIM // 2)
        self.register_buffer("cosine", torch.from_numpy(cosine))
        self.register_buffer("sine", torch.from_numpy(sine))

    def forward(self, hidden: Tensor, position_ids: Tensor) -> Tensor:
        """[B, S, E] and int64 [B, S] -> [B, S, E]."""
        query, key, value = self.project(hidden)
        tables = (self.get_buffer("cosine"), self.get_buffer("sine"), position_ids)
        query = torch.onnx.ops.rotary_embedding(self.query_norm(query), *tables)
        key = torch.onnx.ops.rotary_embedding(key, *tables)
        context = torch.onnx.ops.attention(query, key, value, is_causal=True)[0]
        attended: Tensor = self.output(context.transpose(1, 2).flatten(2))
        return attended


def draw_plain_positions(shape: list[int], padding: str, generator: torch.Generator) -> Tensor:
    """Positions from 0 in every row."""
    return torch.arange(shape[1]).repeat(shape[0], 1)


EXPORTED_24 = (
    "causal_arange_sdpa",
    "causal_is_causal",
    "window_arange_sdpa",
    "dilated_buffer_add",
    "padding_bool_sdpa",
    "documents_sdpa",
    "dense_float_2d_sdpa",
    "scale_sdpa",
    "grouped_sdpa",
    "packed_permute_unbind",
    "torch_attention_padding",
    "torch_encoder_norm_first",
    "cross_sdpa",
    "cached_sdpa",
    "modified_norms",
)
EXPORTED_23 = (
    "packed_chunk",
    "packed_unbind",
    "torch_attention_padding",
    "torch_attention_both",
    "torch_encoder_causal",
    "torch_decoder_padded",
    "cross_sdpa",
    "cached_sdpa",
    "alibi_causal_sdpa",
    "modified_norms",
    "modified_rotary",
)
# Their masks are [B, 1, 1, S].
NOT_RUN = (
    "padding_bool_sdpa",
    "torch_attention_padding",
    "torch_encoder_norm_first",
    "torch_decoder_padded",
    "cross_sdpa",
)


def exported_models() -> Iterator[ZooModel]:
    """Yield hand-written modules in the opsets that have the operator."""
    by_name = {form.name: form for form in forms()}
    chosen: tuple[tuple[Exporter, tuple[str, ...]], ...] = (
        ("dynamo24", EXPORTED_24),
        ("dynamo23", EXPORTED_23),
    )
    for exporter, names in chosen:
        for name in names:
            not_run = (exporter,) if name in NOT_RUN else ()
            yield from form_models(
                dataclasses.replace(by_name[name], exporters=(exporter,), not_run=not_run)
            )
    yield from form_models(
        Form(
            "onnx_operators",
            OnnxOperators,
            ("causal",),
            inputs=(HIDDEN_INPUT, drawn("position_ids", draw_plain_positions)),
            outputs=(CONTEXT,),
            exporters=("dynamo23",),
            kv_heads=2,
        )
    )


def operator_models() -> Iterator[ZooModel]:
    """Yield the files made node by node."""
    for form in FORMS:
        yield ZooModel(
            name=f"standard_{form.name}",
            family="standard_operator",
            build=functools.partial(build_operator, form),
            blocks=(
                ZooBlock(
                    form.mask,
                    kv_num_heads=form.kv_heads,
                    status="refused" if form.scores_mode is not None else "fused",
                ),
            ),
            exporter="graph",
            dtype=form.dtype,
            notes=f"opset {form.opset}; outputs the scores" if form.scores_mode is not None else "",
        )


MODELS: tuple[ZooModel, ...] = (*operator_models(), *exported_models())
