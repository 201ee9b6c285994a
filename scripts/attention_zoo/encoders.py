"""Text encoders."""

from __future__ import annotations

from dataclasses import replace

from attention_zoo.model import (
    BATCH,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    NEWER_EXPORTERS,
    PADDING,
    POSITIONS,
    SEQUENCE,
    TOKENS,
    VOCABULARY,
    Axis,
    ModelInput,
    ModelOutput,
    ZooBlock,
    ZooFamily,
    family_models,
)
from attention_zoo.transformers_models import SIZES, SPECIAL_TOKENS, Settings, builder
from attention_zoo.wrappers import GlobalText, Text, TextWithAttentions, UnmaskedText

PADDED = (ZooBlock("padding"),) * LAYERS
REFUSED = (ZooBlock("padding", status="refused"),) * LAYERS
# Positions start behind the padding token's.
ROBERTA_SIZES: Settings = SIZES | {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}
# ModernBERT's layer 0 is global, layers 1 and 2 see |q - k| <= 4.
MODERNBERT_SIZES: Settings = {
    **SIZES,
    **SPECIAL_TOKENS,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "num_hidden_layers": 3,
    "local_attention": 8,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
}
DEBERTA_SIZES: Settings = {
    **SIZES,
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
# Block-sparse attention needs more than (5 + 2 * num_random_blocks) blocks.
BIGBIRD_SIZES: Settings = SIZES | {"block_size": 4, "num_random_blocks": 1}
BLOCKS_SEQUENCE = Axis("sequence", 48, (60, 32))
BLOCKS_INPUTS = (
    replace(TOKENS, axes=(BATCH, BLOCKS_SEQUENCE)),
    replace(PADDING, axes=(BATCH, BLOCKS_SEQUENCE)),
)
LONGFORMER_SIZES: Settings = {**ROBERTA_SIZES, "attention_window": [8, 8]}

BERT = ZooFamily("bert", builder(Text, "Bert", pooler=False, **SIZES), "BertModel", PADDED)
BERT_VARIANTS = (
    replace(BERT, exporters=(*NEWER_EXPORTERS, "dynamo24", "torchscript14")),
    replace(
        BERT,
        variant="nomask",
        build=builder(UnmaskedText, "Bert", pooler=False, **SIZES),
        inputs=(TOKENS,),
        blocks=(ZooBlock("none"),) * LAYERS,
    ),
    replace(BERT, variant="static", static=True),
    replace(BERT, variant="fp16", dtype="float16", tolerance=3e-2),
    replace(
        BERT,
        variant="attentions",
        build=builder(TextWithAttentions, "Bert", pooler=False, **SIZES),
        implementations=("eager",),
        outputs=(
            *BERT.outputs,
            *(
                ModelOutput(
                    f"attentions.{layer}",
                    (BATCH, 4, SEQUENCE, SEQUENCE),
                    keep="attention_mask",
                    row_axis=2,
                )
                for layer in range(LAYERS)
            ),
        ),
        blocks=REFUSED,
        notes="the probabilities are outputs, so nothing may be fused",
    ),
)
MODERNBERT = ZooFamily(
    "modernbert",
    builder(Text, "ModernBert", **MODERNBERT_SIZES),
    "ModernBertModel",
    (ZooBlock("padding"), *(ZooBlock("sliding_window+padding"),) * 2),
)
FAMILIES = (
    BERT,
    *BERT_VARIANTS,
    ZooFamily(
        "mpnet",
        builder(Text, "MPNet", pooler=False, **ROBERTA_SIZES),
        "MPNetModel",
        (ZooBlock("padding+bias"),) * LAYERS,
        implementations=("eager",),
    ),
    ZooFamily(
        "roberta", builder(Text, "Roberta", pooler=False, **ROBERTA_SIZES), "RobertaModel", PADDED
    ),
    ZooFamily(
        "distilbert",
        builder(
            Text,
            "DistilBert",
            vocab_size=VOCABULARY,
            dim=HIDDEN,
            n_layers=LAYERS,
            n_heads=4,
            hidden_dim=INTERMEDIATE,
            max_position_embeddings=POSITIONS,
        ),
        "DistilBertModel",
        PADDED,
    ),
    ZooFamily(
        "electra", builder(Text, "Electra", embedding_size=16, **SIZES), "ElectraModel", PADDED
    ),
    ZooFamily(
        "albert",
        builder(Text, "Albert", pooler=False, embedding_size=16, **SIZES),
        "AlbertModel",
        PADDED,
        notes="the layers share their weights",
    ),
    MODERNBERT,
    replace(MODERNBERT, exporters=NEWER_EXPORTERS),
    replace(MODERNBERT, variant="static", static=True),
    ZooFamily(
        "deberta",
        builder(Text, "DebertaV2", **DEBERTA_SIZES),
        "DebertaV2Model",
        (ZooBlock("padding+bias", status="either"),) * LAYERS,
        variant="v3",
        implementations=("eager",),
        notes="disentangled attention: three score products a block",
    ),
    ZooFamily(
        "bigbird",
        builder(Text, "BigBird", pooler=False, attention_type="original_full", **BIGBIRD_SIZES),
        "BigBirdModel",
        PADDED,
        variant="full",
        implementations=("eager",),
    ),
    ZooFamily(
        "bigbird",
        builder(Text, "BigBird", pooler=False, attention_type="block_sparse", **BIGBIRD_SIZES),
        "BigBirdModel",
        (ZooBlock("bias", status="either"),) * (5 * LAYERS),
        variant="sparse",
        inputs=BLOCKS_INPUTS,
        implementations=("eager",),
        static=True,
        notes="gathered blocks, five softmaxes a layer",
    ),
    ZooFamily(
        "longformer",
        builder(Text, "Longformer", pooler=False, **LONGFORMER_SIZES),
        "LongformerModel",
        REFUSED,
        variant="local",
        inputs=BLOCKS_INPUTS,
        implementations=("eager",),
        static=True,
        notes="overlapping chunks",
    ),
    ZooFamily(
        "longformer",
        builder(GlobalText, "Longformer", pooler=False, **LONGFORMER_SIZES),
        "LongformerModel",
        REFUSED,
        variant="global",
        inputs=(
            *BLOCKS_INPUTS,
            ModelInput("global_attention_mask", "first", (BATCH, BLOCKS_SEQUENCE)),
        ),
        implementations=("eager",),
        static=True,
        notes="overlapping chunks and global tokens",
    ),
)
MODELS = tuple(family_models(FAMILIES))
