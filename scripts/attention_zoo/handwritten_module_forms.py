"""PyTorch's own layers, cross attention, caches, biases, other axes, and decoys."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from attention_zoo.handwritten_decoys import (
    DECOY_FORMS,
    Decoy,
    EfficientAttention,
    Pooling,
    PoolingProduct,
    ResidualScores,
    ReturnsScores,
    Router,
    SoftRouter,
)
from attention_zoo.handwritten_export import (
    HIDDEN_INPUT,
    DrawnInput,
    draw_normal,
    drawn,
)
from attention_zoo.handwritten_form import (
    CONTEXT,
    DROP,
    DROP_RIGHT,
    KEEP,
    MEMORY_DROP,
    MEMORY_INPUT,
    MEMORY_KEEP,
    Form,
)
from attention_zoo.handwritten_models import (
    Alibi,
    Biased,
    Cached,
    ChannelsFirst,
    ClippedBias,
    ContentBias,
    Cross,
    GridWindows,
    LearnedQueries,
    Modified,
    SequenceFirst,
    T5Bias,
    TorchAttention,
    TorchDecoder,
    TorchEncoder,
)
from attention_zoo.model import (
    BATCH,
    COMMON_EXPORTERS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    PAST,
    SEQUENCE,
    TOTAL,
    Axis,
    Exporter,
    ModelOutput,
)


def torch_forms() -> Iterator[Form]:
    """Yield PyTorch's own layers."""
    attention: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
        ("padding", lambda: TorchAttention("padding"), "padding"),
        ("padding_weights", lambda: TorchAttention("padding", need_weights=True), "padding"),
        ("causal", lambda: TorchAttention("causal"), "causal"),
        ("causal_bool_weights", lambda: TorchAttention("causal_bool", need_weights=True), "causal"),
        ("both", lambda: TorchAttention("both"), "causal+padding"),
        ("none", lambda: TorchAttention("none"), "none"),
    )
    for name, build, mask in attention:
        given = {"padding": (DROP,), "causal+padding": (DROP_RIGHT,)}.get(mask, ())
        yield Form(f"torch_attention_{name}", build, (mask,), given, static_torchscript=True)
    first = (SEQUENCE, BATCH, HIDDEN)
    for name, module in (
        ("torch_attention_sequence_first", lambda: TorchAttention("padding", batch_first=False)),
        ("sequence_first_bmm", SequenceFirst),
    ):
        yield Form(
            name,
            module,
            ("padding",),
            inputs=(drawn("hidden", draw_normal, first), DROP),
            outputs=(ModelOutput("context", first),),
            static_torchscript=name.startswith("torch"),
        )
    encoders: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
        ("norm_first", lambda: TorchEncoder(norm_first=True), "padding"),
        ("norm_last", lambda: TorchEncoder(norm_first=False), "padding"),
        ("causal", lambda: TorchEncoder(norm_first=True, causal=True), "causal"),
    )
    for name, build, mask in encoders:
        given = (DROP,) if mask == "padding" else ()
        yield Form(f"torch_encoder_{name}", build, (mask,) * 2, given, static_torchscript=True)
    memory = (HIDDEN_INPUT, MEMORY_INPUT)
    decoders: tuple[tuple[str, bool, tuple[DrawnInput, ...]], ...] = (
        ("torch_decoder", False, memory),
        ("torch_decoder_padded", True, (*memory, MEMORY_DROP)),
    )
    for name, padded, inputs in decoders:
        yield Form(
            name,
            TorchDecoder,
            ("causal", "padding" if padded else "none"),
            inputs=inputs,
            static_torchscript=True,
        )


def layout_forms() -> Iterator[Form]:
    """Yield cross attention, caches, biases, changed scores, and other axes."""
    crossing = (HIDDEN_INPUT, MEMORY_INPUT, MEMORY_KEEP)
    yield Form("cross_eager", lambda: Cross(eager=True), ("padding",), inputs=crossing)
    yield Form("cross_sdpa", lambda: Cross(eager=False), ("padding",), inputs=crossing)
    yield Form(
        "learned_queries",
        LearnedQueries,
        ("padding",),
        inputs=crossing[1:],
        outputs=(ModelOutput("context", (BATCH, 5, HIDDEN)),),
    )
    cache = (BATCH, HEADS, PAST, HEAD_DIM)
    present = (BATCH, HEADS, TOTAL, HEAD_DIM)
    for eager in (False, True):
        yield Form(
            f"cached_{'eager' if eager else 'sdpa'}",
            _cached_builder(eager),
            ("causal",),
            (drawn("past_key", draw_normal, cache), drawn("past_value", draw_normal, cache)),
            outputs=(CONTEXT, ModelOutput("key", present), ModelOutput("value", present)),
        )
    biases: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
        ("alibi_causal", lambda: Biased(Alibi("distance"), is_causal=True), "causal+alibi"),
        (
            "alibi_causal_sdpa",
            lambda: Biased(Alibi("key"), eager=False, is_causal=True),
            "causal+alibi",
        ),
        ("alibi_symmetric", lambda: Biased(Alibi("symmetric")), "alibi"),
        ("t5_bias", lambda: Biased(T5Bias()), "bias"),
        ("t5_bias_sdpa", lambda: Biased(T5Bias(), eager=False), "bias"),
        ("clipped_bias", lambda: Biased(ClippedBias()), "bias"),
        ("content_bias", ContentBias, "bias"),
    )
    for name, build, mask in biases:
        yield Form(name, build, (mask,))
    for form in ("softcap", "sinks", "zero_sink", "rotary", "norms"):
        exporters: tuple[Exporter, ...] = COMMON_EXPORTERS
        if form == "norms":
            # TorchScript's exporter doesn't know RMSNorm.
            exporters = ("dynamo18",)
        yield Form(f"modified_{form}", _modified_builder(form), ("causal",), exporters=exporters)
    channels = (BATCH, HIDDEN, Axis("length", 20, (33, 7)))
    yield Form(
        "channels_first_einsum",
        ChannelsFirst,
        ("none",),
        inputs=(drawn("image", draw_normal, channels),),
        outputs=(ModelOutput("mixed", channels),),
    )
    grid = (BATCH, 8, 12, HIDDEN)
    for eager in (True, False):
        yield Form(
            f"grid_windows_{'eager' if eager else 'sdpa'}",
            _grid_builder(eager),
            ("bias",),
            # The dynamo exporter takes heads of rank 4 only.
            exporters=COMMON_EXPORTERS if eager else ("torchscript17",),
            inputs=(drawn("grid", draw_normal, grid),),
            outputs=(ModelOutput("mixed", grid),),
            notes="scores of rank 5: batch, window, head, query, key",
        )


def _cached_builder(eager: bool) -> Callable[[], nn.Module]:
    return lambda: Cached(eager=eager)


def _grid_builder(eager: bool) -> Callable[[], nn.Module]:
    return lambda: GridWindows(eager=eager)


def _modified_builder(form: str) -> Callable[[], nn.Module]:
    return lambda: Modified(form)  # type: ignore[arg-type]


def decoy_forms() -> Iterator[Form]:
    """Yield what must be refused."""
    for form in DECOY_FORMS:
        yield Form(f"decoy_{form}", _decoy_builder(form), ("none",), status="refused")
    pairs = (BATCH, HEADS, SEQUENCE, SEQUENCE)
    for what in ("scores", "weights", "mean_weights"):
        second = ModelOutput(what, pairs if what != "mean_weights" else (BATCH, SEQUENCE, SEQUENCE))
        yield Form(
            f"decoy_returns_{what}",
            _returns_builder(what),
            ("none",),
            outputs=(CONTEXT, second),
            status="refused",
        )
    yield Form(
        "decoy_residual_scores",
        ResidualScores,
        ("none", "dense"),
        status="refused",
        notes="the second block may be fused: its scores get a run-time addend",
    )
    yield Form("decoy_efficient_attention", EfficientAttention, ("none",) * 2, status="refused")
    yield Form(
        "decoy_pooling",
        Pooling,
        ("none",),
        (KEEP,),
        outputs=(ModelOutput("pooled", (BATCH, HIDDEN)),),
        status="refused",
    )
    yield Form(
        "decoy_pooling_product",
        PoolingProduct,
        ("none",),
        outputs=(ModelOutput("pooled", (BATCH, HEADS, HIDDEN)),),
        status="refused",
    )
    yield Form("decoy_router", Router, ("none",), status="refused")
    yield Form("decoy_soft_router", SoftRouter, ("none",), status="refused")


def _decoy_builder(form: str) -> Callable[[], nn.Module]:
    return lambda: Decoy(form)  # type: ignore[arg-type]


def _returns_builder(what: str) -> Callable[[], nn.Module]:
    return lambda: ReturnsScores(what)  # type: ignore[arg-type]
