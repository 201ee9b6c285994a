"""Vision encoders and both towers of CLIP."""

from __future__ import annotations

from attention_zoo.model import (
    BATCH,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    TEXT_INPUTS,
    Axis,
    ModelInput,
    ModelOutput,
    ZooBlock,
    ZooFamily,
    family_models,
)
from attention_zoo.transformers_models import SIZES, SPECIAL_TOKENS, Settings, builder
from attention_zoo.wrappers import ResizedImage, Single, Text

CHANNELS = 3
PATCH = 4
UNMASKED = (ZooBlock("none"),) * LAYERS
BIASED = (ZooBlock("bias"),) * LAYERS
IMAGE_SIZES: Settings = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INTERMEDIATE,
    "image_size": 16,
    "patch_size": PATCH,
}
# Two stages of 2 layers; every second layer is shifted by half a window.
SWIN_SIZES: Settings = {
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "patch_size": PATCH,
    "mlp_ratio": 2.0,
}
SWIN_BLOCKS = (*(ZooBlock("bias", 2, 2),) * 2, *(ZooBlock("bias", 4, 4),) * 2)
SWIN_NOTES = "windows; shifted layers add a mask of 0 and -100 to the bias"


def images(size: int) -> tuple[ModelInput, ...]:
    """Square images in a batch of any size."""
    return (ModelInput("pixel_values", "float", (BATCH, CHANNELS, size, size)),)


def patches(count: int) -> tuple[ModelOutput, ...]:
    """Return the output that has one row a patch."""
    return (ModelOutput("last_hidden_state", (BATCH, count, HIDDEN)),)


# Numbers of pixels that are whole patches, but not those of the position table.
HEIGHT = Axis("height", 24, (32, 16))
WIDTH = Axis("width", 32, (16, 40))
FAMILIES = (
    ZooFamily(
        "swin",
        builder(Single, "Swin", pooler=False, image_size=32, **SWIN_SIZES),
        "SwinModel",
        SWIN_BLOCKS,
        inputs=images(32),
        outputs=patches(16),
        notes=f"layer 1 is shifted, the second stage is one window; {SWIN_NOTES}",
    ),
    ZooFamily(
        "swin",
        builder(Single, "Swin", pooler=False, image_size=56, **SWIN_SIZES),
        "SwinModel",
        SWIN_BLOCKS,
        variant="padded",
        inputs=images(56),
        outputs=patches(49),
        notes=f"14 x 14, then 7 x 7 patches, padded to whole windows; {SWIN_NOTES}",
    ),
    ZooFamily(
        "swin",
        builder(Single, "Swin", pooler=False, image_size=32, **SWIN_SIZES),
        "SwinModel",
        SWIN_BLOCKS,
        variant="static",
        inputs=images(32),
        outputs=patches(16),
        static=True,
        notes=f"layer 1 is shifted, the second stage is one window; {SWIN_NOTES}",
    ),
    ZooFamily(
        "vit",
        builder(Single, "ViT", pooler=False, **IMAGE_SIZES),
        "ViTModel",
        UNMASKED,
        inputs=images(16),
        outputs=patches(17),
    ),
    ZooFamily(
        "vit",
        builder(ResizedImage, "ViT", pooler=False, **IMAGE_SIZES),
        "ViTModel",
        UNMASKED,
        variant="resized",
        inputs=(ModelInput("pixel_values", "float", (BATCH, CHANNELS, HEIGHT, WIDTH)),),
        outputs=(ModelOutput("last_hidden_state", (BATCH, Axis("patches"), HIDDEN)),),
        notes="any image size; the position table is interpolated",
    ),
    ZooFamily(
        "dinov2",
        builder(Single, "Dinov2", mlp_ratio=2, **IMAGE_SIZES),
        "Dinov2Model",
        UNMASKED,
        inputs=images(16),
        outputs=patches(17),
    ),
    ZooFamily(
        "beit",
        builder(Single, "Beit", pooler=False, use_relative_position_bias=True, **IMAGE_SIZES),
        "BeitModel",
        BIASED,
        inputs=images(16),
        outputs=patches(17),
    ),
    ZooFamily(
        "clip",
        builder(Single, "CLIPVision", **IMAGE_SIZES),
        "CLIPVisionModel",
        UNMASKED,
        variant="vision",
        inputs=images(16),
        outputs=patches(17),
    ),
    ZooFamily(
        "clip",
        builder(Text, "CLIPText", **SIZES, **SPECIAL_TOKENS),
        "CLIPTextModel",
        (ZooBlock("causal+padding"),) * LAYERS,
        variant="text",
        inputs=TEXT_INPUTS,
    ),
)
MODELS = tuple(family_models(FAMILIES))
