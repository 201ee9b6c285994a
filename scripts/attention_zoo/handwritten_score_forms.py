"""Scales, fills, products, packed projections and grouped heads written in many ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from attention_zoo import handwritten_masks as masks
from attention_zoo.handwritten_form import (
    ALL_EXPORTERS,
    KEEP,
    Form,
    arithmetic,
    given,
    keeping,
    layer,
    written,
)
from attention_zoo.handwritten_layers import (
    Attend,
    Eager,
    Einsum,
    Packed,
    Packing,
    SelfAttention,
    Separate,
    Stack,
    baddbmm,
    bmm,
    bmm_repeated,
    grouped_broadcast,
    grouped_einsum,
    grouped_expand,
    grouped_repeat,
    in_float32,
    minus_maximum,
    nan_to_num,
    one_key_head,
    sdpa,
    sdpa_grouped,
    sdpa_scaled,
    with_dropout,
)
from attention_zoo.model import (
    COMMON_EXPORTERS,
)


def score_forms() -> Iterator[Form]:
    """Yield scales, fills and products written in other ways."""
    for place in ("query", "key", "both", "none", "division", "computed", "numpy_like"):
        attend = Eager("fill_lowest", place)
        yield Form(f"scale_{place}", layer(attend, arithmetic(masks.causal)), ("causal",))
    yield Form(
        "scale_after_mask",
        layer(Eager("fill_1e9", "after_mask"), arithmetic(masks.causal)),
        ("causal",),
    )
    yield Form("scale_sdpa", layer(sdpa_scaled), ("none",), (), ALL_EXPORTERS)
    yield Form("no_mask_eager", layer(Eager()), ("none",))
    yield Form(
        "gpt1_multiply",
        layer(Eager("multiply"), written(masks.ones_tril)),
        ("causal",),
        notes="written by product and sum with -1e4, which hides only as long as scores are small",
    )
    for name, softmax in (
        ("minus_maximum", minus_maximum),
        ("nan_to_num", nan_to_num),
        ("dropout_off", with_dropout),
    ):
        attend = Eager("fill", softmax=softmax)
        yield Form(f"softmax_{name}", layer(attend, arithmetic(masks.causal)), ("causal",))
    yield Form(
        "softmax_float32_in_float16",
        layer(Eager("fill_lowest", softmax=in_float32), arithmetic(masks.causal)),
        ("causal",),
        dtype="float16",
        tolerance=1e-2,
    )
    yield Form("bmm_plain", layer(bmm), ("none",))
    yield Form("bmm_padding", layer(bmm, given(masks.inverted_padding)), ("padding",), (KEEP,))
    yield Form(
        "bmm_repeated_padding", layer(bmm_repeated, given(masks.key_padding)), ("padding",), (KEEP,)
    )
    yield Form("baddbmm_causal", layer(baddbmm, written(masks.triu_of_infinities)), ("causal",))
    for name, heads_first, scores, context in (
        ("bqhd_bkhd", False, "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd"),
        ("bhid_bhjd", True, "bhid,bhjd->bhij", "bhij,bhjd->bhid"),
        ("b_i_h_d", False, "b i h d, b j h d -> b h i j", "b h i j, b j h d -> b i h d"),
        ("dots", True, "...id,...jd->...ij", "...ij,...jd->...id"),
    ):
        yield Form(
            f"einsum_{name}",
            _einsum_builder(scores, context, heads_first),
            ("sliding_window",),
        )


def _einsum_builder(scores: str, context: str, heads_first: bool) -> Callable[[], nn.Module]:
    return lambda: SelfAttention(
        Einsum(scores, context),
        masks.Arithmetic(masks.window),
        Separate(heads_first=heads_first),
    )


def head_forms() -> Iterator[Form]:
    """Yield packed projections and grouped heads."""
    packings: tuple[Packing, ...] = Packing.__args__  # type: ignore[attr-defined]
    for packing in packings:
        yield Form(f"packed_{packing}", _packed_builder(packing), ("causal_sliding_window",))
    grouped: tuple[tuple[str, Attend, int, bool], ...] = (
        ("repeat_interleave", grouped_repeat, 2, True),
        ("expand", grouped_expand, 2, True),
        ("broadcast", grouped_broadcast, 2, True),
        ("einsum", grouped_einsum, 2, False),
        ("sdpa", sdpa_grouped, 2, True),
        ("multi_query", one_key_head, 1, True),
    )
    for name, attend, kv_heads, heads_first in grouped:
        yield Form(
            f"grouped_{name}",
            _grouped_builder(attend, kv_heads, heads_first),
            ("causal",),
            # TorchScript's exporter doesn't know enable_gqa.
            exporters=("dynamo18", "dynamo23") if name == "sdpa" else COMMON_EXPORTERS,
            kv_heads=kv_heads,
        )
    yield Form(
        "stack_shared_mask",
        lambda: Stack(
            [SelfAttention(sdpa, project=Packed("chunk")), SelfAttention(Eager("fill"))],
            masks.FromInput(masks.window_padding),
        ),
        ("sliding_window+padding",) * 2,
        (KEEP,),
        outputs=keeping("attention_mask"),
    )


def _packed_builder(packing: Packing) -> Callable[[], nn.Module]:
    return lambda: SelfAttention(sdpa, masks.Arithmetic(masks.causal_window), Packed(packing))


def _grouped_builder(attend: Attend, kv_heads: int, heads_first: bool) -> Callable[[], nn.Module]:
    return lambda: SelfAttention(
        attend,
        masks.Arithmetic(masks.causal),
        Separate(kv_heads=kv_heads, heads_first=heads_first),
    )
