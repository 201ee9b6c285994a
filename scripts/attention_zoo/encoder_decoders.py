"""The two halves of encoder-decoders, as files of their own, and a whole T5."""

from __future__ import annotations

from dataclasses import replace

from attention_zoo.model import (
    BATCH,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    MEMORY,
    NEWER_EXPORTERS,
    PADDING,
    POSITIONS,
    TEXT_INPUTS,
    TOKENS,
    VOCABULARY,
    ModelInput,
    ZooBlock,
    ZooFamily,
    family_models,
)
from attention_zoo.transformers_models import SPECIAL_TOKENS, Settings, builder
from attention_zoo.wrappers import EncoderDecoder, MemoryDecoder, TextEncoderStack

T5_SIZES: Settings = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": HIDDEN // HEADS,
    "d_ff": INTERMEDIATE,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
    # Few and near buckets, so that the sequences that are checked meet all of them.
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
# BART and those that descend from it.
BART_SIZES: Settings = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "encoder_ffn_dim": INTERMEDIATE,
    "decoder_layers": LAYERS,
    "decoder_attention_heads": HEADS,
    "decoder_ffn_dim": INTERMEDIATE,
    "max_position_embeddings": POSITIONS,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
    **SPECIAL_TOKENS,
}
MEMORY_INPUTS = (
    ModelInput("encoder_hidden_states", "float", (BATCH, MEMORY, HIDDEN)),
    ModelInput("encoder_attention_mask", "mask", (BATCH, MEMORY)),
)
DECODER_INPUTS = (*TEXT_INPUTS, *MEMORY_INPUTS)
# The encoder's tokens and mask, then the decoder's.
BOTH_INPUTS = (
    replace(TOKENS, name="encoder_input_ids", axes=(BATCH, MEMORY)),
    replace(PADDING, name="encoder_attention_mask", axes=(BATCH, MEMORY)),
    *TEXT_INPUTS,
)
T5_ENCODER_BLOCKS = (ZooBlock("padding+bias"),) * LAYERS
T5_DECODER_BLOCKS = (ZooBlock("causal+padding+bias"), ZooBlock("padding")) * LAYERS

T5_ENCODER = ZooFamily(
    "t5",
    builder(TextEncoderStack, "T5", **T5_SIZES),
    "T5Model",
    T5_ENCODER_BLOCKS,
    variant="encoder",
)
T5_DECODER = ZooFamily(
    "t5",
    builder(MemoryDecoder, "T5", **T5_SIZES),
    "T5Model",
    T5_DECODER_BLOCKS,
    variant="decoder",
    inputs=DECODER_INPUTS,
)


def halves(family: str, name: str) -> tuple[ZooFamily, ZooFamily]:
    """Encoder and decoder of a descendant of BART."""
    return (
        ZooFamily(
            family,
            builder(TextEncoderStack, name, **BART_SIZES),
            f"{name}Model",
            (ZooBlock("padding"),) * LAYERS,
            variant="encoder",
        ),
        ZooFamily(
            family,
            builder(MemoryDecoder, name, **BART_SIZES),
            f"{name}Model",
            (ZooBlock("causal+padding"), ZooBlock("padding")) * LAYERS,
            variant="decoder",
            inputs=DECODER_INPUTS,
        ),
    )


FAMILIES = (
    T5_ENCODER,
    T5_DECODER,
    replace(T5_ENCODER, exporters=NEWER_EXPORTERS),
    replace(T5_DECODER, exporters=NEWER_EXPORTERS),
    replace(T5_ENCODER, variant="encoder_static", static=True),
    ZooFamily(
        "t5",
        builder(EncoderDecoder, "T5", **T5_SIZES),
        "T5Model",
        (*T5_ENCODER_BLOCKS, *T5_DECODER_BLOCKS),
        variant="whole",
        inputs=BOTH_INPUTS,
    ),
    *halves("bart", "Bart"),
    *halves("marian", "Marian"),
    *halves("pegasus", "Pegasus"),
)
MODELS = tuple(family_models(FAMILIES))
