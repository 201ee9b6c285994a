"""Classes beyond the list, for what they add: other rotary, bias, window and packing idioms."""

from __future__ import annotations

from attention_zoo.decoders import (
    CAUSAL,
    GPT2_SIZES,
    GROUPED,
    GROUPED_WINDOW,
    LLAMA_SIZES,
    WINDOW,
)
from attention_zoo.model import (
    BATCH,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    VOCABULARY,
    ModelOutput,
    ZooBlock,
    ZooFamily,
    family_models,
)
from attention_zoo.transformers_models import (
    GROUPED_SIZES,
    SIZES,
    SPECIAL_TOKENS,
    Settings,
    builder,
)
from attention_zoo.vision import IMAGE_SIZES, images
from attention_zoo.wrappers import CausalText, Single, Text

PADDED = (ZooBlock("padding"),) * LAYERS
MHA_SIZES: Settings = {**SIZES, **SPECIAL_TOKENS}


def decoder(
    family: str,
    name: str,
    blocks: tuple[ZooBlock, ...],
    settings: Settings,
    *,
    variant: str = "base",
    notes: str = "",
) -> ZooFamily:
    """Return ``<name>Model``, run without a cache."""
    return ZooFamily(
        family,
        builder(CausalText, name, **settings),
        f"{name}Model",
        blocks,
        variant=variant,
        notes=notes,
    )


FAMILIES = (
    decoder(
        "gptj",
        "GPTJ",
        CAUSAL,
        {**GPT2_SIZES, "rotary_dim": 4, **SPECIAL_TOKENS},
        notes="rotary in neighbouring pairs, on half of each head",
    ),
    decoder(
        "gptneo",
        "GPTNeo",
        (ZooBlock("causal+padding"), ZooBlock("causal_sliding_window+padding")),
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "intermediate_size": INTERMEDIATE,
            "max_position_embeddings": POSITIONS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            **SPECIAL_TOKENS,
        },
        notes="scale 1; the window is a sliced buffer",
    ),
    decoder(
        "mpt",
        "Mpt",
        (ZooBlock("causal+padding+bias"),) * LAYERS,
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "expansion_ratio": 2,
            "max_seq_len": POSITIONS,
        },
        notes="ALiBi by the distance to the last key",
    ),
    decoder("phi", "Phi", CAUSAL, {**MHA_SIZES}, notes="rotary on half of each head"),
    decoder("stablelm", "StableLm", CAUSAL, {**MHA_SIZES, "num_key_value_heads": HEADS}),
    decoder(
        "cohere",
        "Cohere",
        GROUPED,
        {**MHA_SIZES, "num_key_value_heads": KV_HEADS},
        notes="rotary in neighbouring pairs",
    ),
    decoder("olmo2", "Olmo2", GROUPED, {**MHA_SIZES, "num_key_value_heads": KV_HEADS}),
    decoder(
        "starcoder2",
        "Starcoder2",
        GROUPED_WINDOW,
        {**MHA_SIZES, "num_key_value_heads": KV_HEADS, "sliding_window": WINDOW},
        variant="window",
    ),
    decoder("granite", "Granite", GROUPED, {**LLAMA_SIZES, "attention_multiplier": 0.5}),
    decoder("biogpt", "BioGpt", CAUSAL, {**MHA_SIZES}),
    decoder(
        "gptbigcode",
        "GPTBigCode",
        (ZooBlock("causal+padding", kv_num_heads=1),) * LAYERS,
        {**GPT2_SIZES, **SPECIAL_TOKENS},
        notes="multi-query, one packed projection",
    ),
    decoder(
        "llama4",
        "Llama4Text",
        (
            ZooBlock("causal_chunked+padding", kv_num_heads=KV_HEADS),
            ZooBlock("causal+padding", kv_num_heads=KV_HEADS),
        ),
        {
            **GROUPED_SIZES,
            **SPECIAL_TOKENS,
            "intermediate_size_mlp": INTERMEDIATE,
            "attention_chunk_size": 8,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "moe_layers": [],
            "num_local_experts": 2,
        },
        notes="layer 0 sees chunks of 8; rotary as complex numbers",
    ),
    decoder(
        "mixtral",
        "Mixtral",
        GROUPED,
        {
            **LLAMA_SIZES,
            "num_local_experts": 2,
            "intermediate_size": 16,
            "experts_implementation": "batched_mm",
        },
        notes="the router's softmax is no attention",
    ),
    ZooFamily(
        "esm",
        builder(
            Text,
            "Esm",
            pooler=False,
            position_embedding_type="rotary",
            mask_token_id=3,
            token_dropout=False,
            **(SIZES | {"pad_token_id": 1}),
        ),
        "EsmModel",
        PADDED,
        notes="Q is scaled before the rotary embedding",
    ),
    ZooFamily("roformer", builder(Text, "RoFormer", **SIZES), "RoFormerModel", PADDED),
    ZooFamily(
        "xlmroberta",
        builder(Text, "XLMRoberta", pooler=False, **MHA_SIZES),
        "XLMRobertaModel",
        PADDED,
    ),
    ZooFamily(
        "siglip",
        builder(Single, "SiglipVision", vision_use_head=False, **IMAGE_SIZES),
        "SiglipVisionModel",
        (ZooBlock("none"),) * LAYERS,
        variant="vision",
        inputs=images(16),
        outputs=(ModelOutput("last_hidden_state", (BATCH, 16, HIDDEN)),),
    ),
    ZooFamily(
        "dinov3",
        builder(Single, "DINOv3ViT", **IMAGE_SIZES),
        "DINOv3ViTModel",
        (ZooBlock("none"),) * LAYERS,
        inputs=images(16),
        outputs=(ModelOutput("last_hidden_state", (BATCH, 17, HIDDEN)),),
        notes="rotary over rows and columns, not on the class token",
    ),
)
MODELS = tuple(family_models(FAMILIES))
