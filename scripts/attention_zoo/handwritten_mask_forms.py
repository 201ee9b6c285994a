"""Masks of every family, as constants, as arithmetic and from inputs.

Constant tables are named by their structure; "arbitrary" is as good a name for them.
"""

from __future__ import annotations

import torch

from attention_zoo import handwritten_masks as masks
from attention_zoo.handwritten_export import (
    draw_bias,
    draw_pairs,
    drawn,
)
from attention_zoo.handwritten_form import (
    ALL_EXPORTERS,
    DOCUMENTS,
    KEEP,
    KEEP_BOOL,
    LENGTHS,
    POSITIONS,
    TOKENS,
    WITH_23,
    Form,
    arithmetic,
    arithmetic_rank4,
    constant,
    constant_float,
    given,
    keeping,
    layer,
    written,
)
from attention_zoo.handwritten_layers import (
    Eager,
    SelfAttention,
    nan_to_zero,
    sdpa,
    sdpa_causal,
)
from attention_zoo.handwritten_models import (
    Embedded,
)
from attention_zoo.model import (
    BATCH,
    HEADS,
    SEQUENCE,
)

ADD, FILL = Eager("add"), Eager("fill")
TABLE = "a constant table"
BLOCKS = "a constant table of BigBird; its random blocks are smaller than those that are named"

BAND_FORMS = (
    Form("causal_arange_sdpa", layer(sdpa, arithmetic(masks.causal)), ("causal",), (), WITH_23),
    Form("causal_arange_fill", layer(FILL, arithmetic_rank4(masks.causal)), ("causal",)),
    Form("causal_is_causal", layer(sdpa_causal), ("causal",), (), ALL_EXPORTERS),
    Form("causal_tril_fill", layer(FILL, written(masks.ones_tril)), ("causal",)),
    Form("causal_triu_add", layer(ADD, written(masks.triu_of_infinities)), ("causal",)),
    Form("causal_triu_sdpa", layer(sdpa, written(masks.triu_of_infinities)), ("causal",)),
    Form("causal_buffer_fill", layer(FILL, constant(masks.causal)), ("causal",), notes=TABLE),
    Form(
        "causal_buffer_uint8",
        layer(FILL, lambda: masks.Buffer(masks.table(masks.causal).to(torch.uint8), rank=4)),
        ("causal",),
        notes=TABLE,
    ),
    Form(
        "causal_buffer_lowest",
        layer(ADD, constant_float(masks.causal, masks.LOWEST)),
        ("causal",),
        notes=TABLE,
    ),
    Form("window_arange_sdpa", layer(sdpa, arithmetic(masks.window)), ("sliding_window",)),
    Form(
        "window_band_fill_1e9", layer(Eager("fill_1e9"), written(masks.band)), ("sliding_window",)
    ),
    Form(
        "window_buffer_add",
        layer(ADD, constant_float(masks.window)),
        ("sliding_window",),
        notes=TABLE,
    ),
    Form(
        "causal_window_arange_fill",
        layer(Eager("fill_lowest"), arithmetic(masks.causal_window)),
        ("causal_sliding_window",),
    ),
    Form(
        "causal_window_buffer_sdpa",
        layer(sdpa, constant(masks.causal_window)),
        ("causal_sliding_window",),
        notes=TABLE,
    ),
)

SPARSE_FORMS = (
    Form("dilated_arange_sdpa", layer(sdpa, arithmetic(masks.dilated)), ("dilated",), (), WITH_23),
    Form(
        "dilated_buffer_add", layer(ADD, constant_float(masks.dilated)), ("dilated",), notes=TABLE
    ),
    Form("causal_dilated_fill", layer(FILL, arithmetic_rank4(masks.causal_dilated)), ("dilated",)),
    Form("strided_arange_fill", layer(FILL, arithmetic(masks.strided)), ("causal+strided",)),
    Form(
        "strided_buffer_sdpa",
        layer(sdpa, constant(masks.strided)),
        ("causal+strided",),
        notes=TABLE,
    ),
    Form("fixed_strided_sdpa", layer(sdpa, arithmetic(masks.fixed_strided)), ("causal+strided",)),
    Form("longformer_arange_sdpa", layer(sdpa, arithmetic(masks.longformer)), ("longformer",)),
    Form(
        "longformer_buffer_add",
        layer(ADD, constant_float(masks.longformer)),
        ("longformer",),
        notes=TABLE,
    ),
    Form("longformer_assigned", layer(FILL, written(masks.longformer_assigned)), ("longformer",)),
    Form("bigbird_table_sdpa", layer(sdpa, masks.RandomBlocks), ("bigbird",)),
    Form("bigbird_buffer_sdpa", layer(sdpa, constant(masks.bigbird)), ("arbitrary",), notes=BLOCKS),
    Form(
        "bigbird_buffer_lowest",
        layer(ADD, constant_float(masks.bigbird, masks.LOWEST)),
        ("arbitrary",),
        notes=BLOCKS,
    ),
    Form(
        "block_diagonal_buffer",
        layer(sdpa, lambda: masks.Buffer(masks.unequal_blocks())),
        ("block_diagonal",),
        notes=TABLE,
    ),
    Form("chunked_arange_sdpa", layer(sdpa, arithmetic(masks.chunked)), ("chunked",)),
    Form("chunked_buffer_fill", layer(FILL, constant(masks.chunked)), ("chunked",), notes=TABLE),
    Form("causal_chunked_fill", layer(FILL, arithmetic(masks.causal_chunked)), ("causal+chunked",)),
    Form("prefix_arange_sdpa", layer(sdpa, arithmetic(masks.prefix)), ("prefix",)),
    Form("prefix_buffer_add", layer(ADD, constant_float(masks.prefix)), ("prefix",), notes=TABLE),
)

INPUT_FORMS = (
    Form("prefix_lengths_sdpa", layer(sdpa, given(masks.prefix_lengths)), ("prefix",), (LENGTHS,)),
    Form(
        "lengths_sdpa",
        layer(sdpa, given(masks.lengths)),
        ("padding",),
        (LENGTHS,),
        WITH_23,
        not_run=("dynamo23",),
    ),
    Form("lengths_fill", layer(FILL, given(masks.lengths)), ("padding",), (LENGTHS,)),
    Form(
        "causal_lengths_sdpa",
        layer(sdpa, given(masks.causal_lengths)),
        ("causal+padding",),
        (LENGTHS,),
    ),
    Form(
        "padding_bool_where",
        layer(Eager("where"), given(masks.key_padding)),
        ("padding",),
        (KEEP_BOOL,),
    ),
    Form("padding_bool_sdpa", layer(sdpa, given(masks.key_padding)), ("padding",), (KEEP_BOOL,)),
    Form(
        "padding_int_where_inverted",
        layer(Eager("where_inverted"), given(masks.key_padding)),
        ("padding",),
        (KEEP,),
    ),
    Form("padding_int_add", layer(ADD, given(masks.inverted_padding)), ("padding",), (KEEP,)),
    Form(
        "padding_subtract",
        layer(Eager("subtract"), given(masks.key_padding)),
        ("padding",),
        (KEEP,),
    ),
    Form(
        "padding_both_ways",
        layer(sdpa, given(masks.padding_both_ways)),
        ("arbitrary",),
        (KEEP,),
        notes="keys and queries are padded; each token sees itself",
    ),
    Form(
        "causal_padding_sdpa",
        layer(sdpa, given(masks.causal_padding)),
        ("causal+padding",),
        (KEEP,),
        outputs=keeping("attention_mask"),
    ),
    Form(
        "causal_padding_where",
        layer(Eager("where_inverted"), given(masks.causal_padding)),
        ("causal+padding",),
        (KEEP,),
    ),
    Form(
        "window_padding_fill",
        layer(Eager("fill_inverted", softmax=nan_to_zero), given(masks.window_padding)),
        ("sliding_window+padding",),
        (KEEP,),
    ),
    Form(
        "documents_sdpa", layer(sdpa, given(masks.documents)), ("document",), (DOCUMENTS,), WITH_23
    ),
    Form(
        "documents_causal",
        layer(FILL, given(masks.causal_documents)),
        ("causal+document",),
        (DOCUMENTS,),
    ),
    Form(
        "documents_window",
        layer(FILL, given(masks.window_documents)),
        ("sliding_window+document",),
        (DOCUMENTS,),
    ),
    Form(
        "documents_padding",
        layer(sdpa, given(masks.documents_padding)),
        ("arbitrary",),
        (DOCUMENTS,),
        notes="id 0 is padding, which nobody sees; the first token is seen by all",
    ),
    Form(
        "documents_from_ends",
        lambda: Embedded(
            SelfAttention(FILL, masks.FromInput(masks.documents_from_ends)), reads_tokens=True
        ),
        ("causal+document",),
        inputs=(TOKENS,),
    ),
    Form(
        "documents_from_positions",
        layer(sdpa, given(masks.documents_from_positions)),
        ("causal+document",),
        (POSITIONS,),
    ),
    Form(
        "dense_float_4d_add",
        layer(ADD, given(masks.as_it_is)),
        ("bias",),
        (drawn("mask", draw_bias, (BATCH, 1, SEQUENCE, SEQUENCE)),),
    ),
    Form(
        "dense_float_heads_sdpa",
        layer(sdpa, given(masks.as_it_is)),
        ("bias",),
        (drawn("mask", draw_bias, (BATCH, HEADS, SEQUENCE, SEQUENCE)),),
    ),
    Form(
        "dense_float_2d_sdpa",
        layer(sdpa, given(masks.as_it_is)),
        ("bias",),
        (drawn("mask", draw_bias, (SEQUENCE, SEQUENCE)),),
        WITH_23,
    ),
    Form(
        "dense_bool_4d_sdpa",
        layer(sdpa, given(masks.as_it_is)),
        ("dense",),
        (drawn("mask", draw_pairs, (BATCH, 1, SEQUENCE, SEQUENCE)),),
        WITH_23,
    ),
    Form(
        "dense_bool_3d_fill",
        layer(FILL, given(masks.by_head)),
        ("dense",),
        (drawn("mask", draw_pairs, (BATCH, SEQUENCE, SEQUENCE)),),
    ),
)
