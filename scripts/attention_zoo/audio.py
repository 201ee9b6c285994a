"""Whisper's encoder and decoder, and wav2vec 2.0."""

from __future__ import annotations

from dataclasses import replace

from attention_zoo.model import (
    BATCH,
    HEADS,
    HIDDEN,
    HIDDEN_OUTPUT,
    INTERMEDIATE,
    LAYERS,
    MEMORY,
    NEWER_EXPORTERS,
    POSITIONS,
    SEQUENCE,
    TEXT_INPUTS,
    VOCABULARY,
    Axis,
    ModelInput,
    ModelOutput,
    ZooBlock,
    ZooFamily,
    family_models,
)
from attention_zoo.transformers_models import SIZES, SPECIAL_TOKENS, Settings, builder
from attention_zoo.wrappers import EncoderStack, Single, UnmaskedMemoryDecoder, Wave

FRAMES = 40
WHISPER_SIZES: Settings = {
    "vocab_size": VOCABULARY,
    "num_mel_bins": 8,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "encoder_ffn_dim": INTERMEDIATE,
    "decoder_layers": LAYERS,
    "decoder_attention_heads": HEADS,
    "decoder_ffn_dim": INTERMEDIATE,
    "max_source_positions": FRAMES // 2,
    "max_target_positions": POSITIONS,
    "decoder_start_token_id": 1,
    **SPECIAL_TOKENS,
}
WAV2VEC_SIZES: Settings = {
    **{name: size for name, size in SIZES.items() if name != "max_position_embeddings"},
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
SAMPLES = Axis("samples", 300, (411, 200))

WHISPER_ENCODER = ZooFamily(
    "whisper",
    builder(EncoderStack, "Whisper", **WHISPER_SIZES),
    "WhisperModel",
    (ZooBlock("none"),) * LAYERS,
    variant="encoder",
    inputs=(ModelInput("input_features", "float", (BATCH, 8, FRAMES)),),
    outputs=(ModelOutput("last_hidden_state", (BATCH, FRAMES // 2, HIDDEN)),),
)
WHISPER_DECODER = ZooFamily(
    "whisper",
    builder(UnmaskedMemoryDecoder, "Whisper", **WHISPER_SIZES),
    "WhisperModel",
    (ZooBlock("causal+padding"), ZooBlock("none")) * LAYERS,
    variant="decoder",
    inputs=(*TEXT_INPUTS, ModelInput("encoder_hidden_states", "float", (BATCH, MEMORY, HIDDEN))),
    outputs=(HIDDEN_OUTPUT,),
)
FAMILIES = (
    WHISPER_ENCODER,
    WHISPER_DECODER,
    replace(WHISPER_ENCODER, exporters=NEWER_EXPORTERS),
    replace(WHISPER_DECODER, exporters=NEWER_EXPORTERS),
    ZooFamily(
        "wav2vec2",
        builder(Single, "Wav2Vec2", **WAV2VEC_SIZES),
        "Wav2Vec2Model",
        (ZooBlock("none"),) * LAYERS,
        inputs=(ModelInput("input_values", "float", (BATCH, SAMPLES)),),
        outputs=(ModelOutput("last_hidden_state", (BATCH, SEQUENCE, HIDDEN)),),
    ),
    ZooFamily(
        "wav2vec2",
        builder(Wave, "Wav2Vec2", feat_extract_norm="layer", **WAV2VEC_SIZES),
        "Wav2Vec2Model",
        (ZooBlock("padding"),) * LAYERS,
        variant="padded",
        inputs=(
            ModelInput("input_values", "float", (BATCH, SAMPLES)),
            ModelInput("attention_mask", "mask", (BATCH, SAMPLES)),
        ),
        outputs=(ModelOutput("last_hidden_state", (BATCH, SEQUENCE, HIDDEN)),),
        notes="the samples' padding is turned into the frames'",
    ),
)
MODELS = tuple(family_models(FAMILIES))
