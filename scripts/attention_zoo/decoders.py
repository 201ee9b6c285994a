"""Decoders without a cache."""

from __future__ import annotations

from dataclasses import replace

from attention_zoo.model import (
    COMMON_EXPORTERS,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    NEWER_EXPORTERS,
    POSITIONS,
    TEXT_INPUTS,
    TOKENS,
    VOCABULARY,
    ModelInput,
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
from attention_zoo.wrappers import CausalText, PositionedText, UnmaskedCausalText

# Small enough to hide most keys of the sequences that are checked.
WINDOW = 6
CAUSAL = (ZooBlock("causal+padding"),) * LAYERS
GROUPED = (ZooBlock("causal+padding", kv_num_heads=KV_HEADS),) * LAYERS
GROUPED_WINDOW = (ZooBlock("causal_sliding_window+padding", kv_num_heads=KV_HEADS),) * LAYERS
# Layer 0 sees a window, layer 1 everything.
ALTERNATING = (GROUPED_WINDOW[0], GROUPED[0])
ALTERNATING_TYPES = ["sliding_attention", "full_attention"]
LLAMA_SIZES: Settings = GROUPED_SIZES | SPECIAL_TOKENS

GPT2_SIZES: Settings = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": POSITIONS,
    "n_inner": INTERMEDIATE,
}
OPT_SIZES: Settings = {
    **SIZES,
    **SPECIAL_TOKENS,
    "ffn_dim": INTERMEDIATE,
    "word_embed_proj_dim": HIDDEN,
}
# transformers 4.46 alternates from the layer's number, 5 reads layer_types. A softcap of 5 bends
# the scores visibly, the usual 50 would not.
GEMMA2_SIZES: Settings = {
    **LLAMA_SIZES,
    "sliding_window": WINDOW,
    "layer_types": ALTERNATING_TYPES,
    "attn_logit_softcapping": 5.0,
    "query_pre_attn_scalar": 8,
}
GEMMA3_SIZES: Settings = {
    **LLAMA_SIZES,
    "sliding_window": WINDOW,
    "layer_types": ALTERNATING_TYPES,
    "query_pre_attn_scalar": 8,
}
GPT_OSS_SIZES: Settings = {
    **LLAMA_SIZES,
    "sliding_window": WINDOW,
    "layer_types": ALTERNATING_TYPES,
    "intermediate_size": 16,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    # The default, one grouped product, has no ONNX form.
    "experts_implementation": "batched_mm",
}
FALCON_SIZES: Settings = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": INTERMEDIATE,
    **SPECIAL_TOKENS,
}

GPT2 = ZooFamily("gpt2", builder(CausalText, "GPT2", **GPT2_SIZES), "GPT2Model", CAUSAL)
LLAMA = ZooFamily("llama", builder(CausalText, "Llama", **LLAMA_SIZES), "LlamaModel", GROUPED)
GEMMA2 = ZooFamily(
    "gemma2",
    builder(CausalText, "Gemma2", **GEMMA2_SIZES),
    "Gemma2Model",
    ALTERNATING,
    notes="softcap 5 with eager; sdpa cannot do it, so transformers leaves it out",
)
GEMMA3 = ZooFamily(
    "gemma3", builder(CausalText, "Gemma3Text", **GEMMA3_SIZES), "Gemma3TextModel", ALTERNATING
)
GPT_OSS = ZooFamily(
    "gptoss",
    builder(CausalText, "GptOss", **GPT_OSS_SIZES),
    "GptOssModel",
    ALTERNATING,
    implementations=("eager",),
    notes="a sink a head; the router's softmax is no attention",
)
FAMILIES = (
    GPT2,
    LLAMA,
    GEMMA2,
    GPT_OSS,
    ZooFamily(
        "bloom",
        builder(
            CausalText,
            "Bloom",
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            **SPECIAL_TOKENS,
        ),
        "BloomModel",
        (ZooBlock("causal+padding+bias"),) * LAYERS,
        implementations=("eager",),
        notes="ALiBi over positions that are counted from the padding mask",
    ),
    GEMMA3,
    *(
        replace(family, exporters=NEWER_EXPORTERS)
        for family in (GPT2, LLAMA, GEMMA2, GEMMA3, GPT_OSS)
    ),
    *(
        replace(
            LLAMA,
            variant="positions",
            build=builder(PositionedText, "Llama", **LLAMA_SIZES),
            inputs=(*TEXT_INPUTS, ModelInput("position_ids", "positions")),
            exporters=exporters,
        )
        for exporters in (COMMON_EXPORTERS, NEWER_EXPORTERS)
    ),
    *(replace(family, exporters=("dynamo24", "torchscript14")) for family in (GPT2, LLAMA)),
    replace(GPT2, variant="static", static=True),
    replace(LLAMA, variant="static", static=True),
    replace(GEMMA2, variant="static", static=True),
    replace(LLAMA, variant="fp16", dtype="float16", tolerance=3e-2),
    replace(
        GPT2,
        variant="nomask",
        build=builder(UnmaskedCausalText, "GPT2", **GPT2_SIZES),
        inputs=(TOKENS,),
        blocks=(ZooBlock("causal"),) * LAYERS,
        notes="transformers 5 adds a packed-sequence term that is always true",
    ),
    replace(
        LLAMA,
        variant="nomask",
        build=builder(UnmaskedCausalText, "Llama", **LLAMA_SIZES),
        inputs=(TOKENS,),
        blocks=(ZooBlock("causal", kv_num_heads=KV_HEADS),) * LAYERS,
        notes="transformers 5 adds a packed-sequence term that is always true",
    ),
    ZooFamily("gptneox", builder(CausalText, "GPTNeoX", **SIZES), "GPTNeoXModel", CAUSAL),
    ZooFamily("opt", builder(CausalText, "OPT", **OPT_SIZES), "OPTModel", CAUSAL),
    ZooFamily(
        "mistral",
        builder(CausalText, "Mistral", sliding_window=WINDOW, **LLAMA_SIZES),
        "MistralModel",
        GROUPED_WINDOW,
        variant="window",
    ),
    ZooFamily("qwen2", builder(CausalText, "Qwen2", **LLAMA_SIZES), "Qwen2Model", GROUPED),
    ZooFamily("qwen3", builder(CausalText, "Qwen3", **LLAMA_SIZES), "Qwen3Model", GROUPED),
    ZooFamily("phi3", builder(CausalText, "Phi3", **LLAMA_SIZES), "Phi3Model", GROUPED),
    ZooFamily(
        "falcon",
        builder(CausalText, "Falcon", **FALCON_SIZES),
        "FalconModel",
        (ZooBlock("causal+padding", kv_num_heads=1),) * LAYERS,
        variant="rotary",
        notes="multi-query",
    ),
    ZooFamily(
        "falcon",
        builder(
            CausalText,
            "Falcon",
            new_decoder_architecture=True,
            num_kv_heads=KV_HEADS,
            **FALCON_SIZES,
        ),
        "FalconModel",
        GROUPED,
        variant="grouped",
    ),
    ZooFamily(
        "falcon",
        builder(CausalText, "Falcon", alibi=True, multi_query=False, **FALCON_SIZES),
        "FalconModel",
        (ZooBlock("causal+padding+bias"),) * LAYERS,
        variant="alibi",
    ),
)
MODELS = tuple(family_models(FAMILIES))
