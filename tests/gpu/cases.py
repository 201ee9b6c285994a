"""The attention nodes that run on the GPU: which are compiled, at which shapes they run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from onnx import helper

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.operators.masked_attention import MaskedAttention
from stof_onnx.ir.operators.tensor_info import ONNX_TYPES, TensorInfo
from stof_onnx.templates.attention_node import AttentionNode
from tests.gpu.masks import (
    ALL_FAMILIES,
    BIGBIRD_LENGTH,
    EMPTY_ROW_FAMILIES,
    FAMILIES,
    FLOAT16_MIN,
    FLOAT32_MIN,
    HIDING_FAMILIES,
    SETTINGS,
    TWICE_FAMILIES,
)
from tests.gpu.problem import Problem
from tests.ir.attention_cases import PLACES, Array, Mask, Place, Sizes, sinks_of

DTYPES = ("float16", "bfloat16", "float32")
BFLOAT16_MIN = -(2.0**127) * (2 - 2.0**-7)


class Layout(NamedTuple):
    """Places of query, key and value (keys of PLACES), and order and rank of the output."""

    places: tuple[str, str, str]
    output: tuple[str, int]


LAYOUTS: dict[str, Layout] = {
    "rows": Layout(("BS(HD)",) * 3, ("BSHD", 3)),
    "rank4": Layout(("BSHD",) * 3, ("BSHD", 4)),
    "heads-first": Layout(("BHSD",) * 3, ("BHSD", 4)),
    "packed": Layout(("packed first", "BS3HD", "packed last"), ("BSHD", 3)),
    "interleaved": Layout(("BSH3D", "BS(H3D)", "BSH3D"), ("BSHD", 3)),
    "gaps": Layout(("gaps",) * 3, ("BHSD", 4)),
    "mixed": Layout(("BSHD", "BHSD", "BS(HD)"), ("BSHD", 4)),
}
DIMS = (
    (32, 32),
    (64, 64),
    (128, 128),
    (40, 40),
    (80, 80),
    (96, 96),
    (33, 33),
    (34, 36),
    (256, 256),
    (64, 96),
    (128, 48),
)
"""Head dims of query and key, and of value: 33 is copied 2 bytes at a time (16-bit types), 34 4,
36 8, multiples of 8 16."""
HEADS = ((2, 1), (1, 1), (1, 4), (2, 3), (4, 2))
"""Heads of key and value, and query heads for each of them."""
SHAPES = (
    (1, 1, 1),
    (2, 7, 7),
    (1, 63, 65),
    (3, 64, 64),
    (2, 65, 63),
    (1, 127, 127),
    (2, 300, 300),
    (3, 1, 300),
    (1, 300, 7),
    (2, 7, 1000),
    (1, 128, 64),
    (1, 1000, 1000),
)
"""Batch, Sq, Sk."""


@dataclass(frozen=True)
class Config:
    """A node: what one kernel is compiled for.

    Attributes:
        family: name of the mask's family.
        dtype: of query, key, value and output.
        heads: as in HEADS.
        dims: as in DIMS.
        layout: a key of LAYOUTS.
        scale: factor of the scores; 1 / sqrt(D) if None.
        score_dtype: in which bias and fill meet the scores.
        program: attributes of the mask program to change.
        amplitude: queries and keys are multiplied by it.
        integers: whether they are small integers, so that scores are exact.
        known_width: whether the node knows the widths of rows.
        softcap: c of c * tanh(score / c); 0 for none.
        sinks: mean of the sinks; no sinks if None.
    """

    family: str
    dtype: str = "float16"
    heads: tuple[int, int] = (2, 1)
    dims: tuple[int, int] = (64, 64)
    layout: str = "rows"
    scale: float | None = None
    score_dtype: str = "float32"
    program: tuple[tuple[str, Any], ...] = ()
    amplitude: float = 1.0
    integers: bool = False
    known_width: bool = True
    softcap: float = 0.0
    sinks: float | None = None

    def __str__(self) -> str:
        parts = [self.family, self.dtype, "x".join(map(str, self.dims))]
        parts += ["h" + "x".join(map(str, self.heads)), self.layout]
        usual = Config("")
        names = ("scale", "score_dtype", "amplitude", "integers", "known_width")
        for name in (*names, "softcap", "sinks"):
            if getattr(self, name) != getattr(usual, name):
                parts.append(f"{name}={getattr(self, name)}")
        parts += [f"{name}={value}" for name, value in self.program]
        return "-".join(parts)


@dataclass(frozen=True)
class Case:
    """A node at one shape: batch, Sq, Sk."""

    config: Config
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.config}-{'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Node:
    """A case in full.

    Attributes:
        record: the node's attributes.
        inputs: values of the node's inputs.
        infos: what the node knows of them.
        problem: the mathematics, with the oracle's answer.
    """

    record: MaskedAttention
    inputs: tuple[Array, ...]
    infos: tuple[TensorInfo, ...] = field(repr=False)
    problem: Problem = field(repr=False)

    @property
    def template_node(self) -> AttentionNode:
        """The node as kernel templates see it."""
        return AttentionNode(self.record, self.infos)


def node_of(case: Case) -> Node:
    """The node of a case; its numbers depend on nothing but the case."""
    config, (batch, queries, keys) = case.config, case.shape
    sizes = Sizes(batch, *config.heads, queries, keys, *config.dims)
    rng = np.random.default_rng([batch, queries, keys, *config.dims, *config.heads])
    mask = ALL_FAMILIES[config.family](sizes, rng)
    mask = replace(mask, program=replace(mask.program, **dict(config.program)))
    tensors = _query_key_value(config, sizes, rng)
    layout = LAYOUTS[config.layout]
    places = [
        PLACES[name](x.shape[1], x.shape[3]) for name, x in zip(layout.places, tensors, strict=True)
    ]
    record = _record(config, sizes, mask, places)
    stored = [place.store(x) for place, x in zip(places, tensors, strict=True)]
    infos = [_info(x, place, config) for place, x in zip(places, stored, strict=True)]
    for held in mask.operands:
        arrays = list(held.arrays().values()) if isinstance(held, BlockTable) else [held]
        stored += arrays
        is_table = isinstance(held, BlockTable)
        infos += [TensorInfo(_type(x), x.shape if is_table else (None,) * x.ndim) for x in arrays]
    sinks = None if config.sinks is None else sinks_of(config.sinks, sizes.heads, rng)
    if sinks is not None:
        stored.append(sinks)
        infos.append(TensorInfo(_type(sinks), sinks.shape))
    problem = Problem(
        *tensors,
        keep=mask.keep,
        bias=mask.bias,
        scale=record.scale,
        fill=record.mask.fill,
        fill_is_added=record.mask.fill_mode == "add",
        score_dtype=config.score_dtype,
        nan_to_zero=record.mask.nan_to_zero,
        softcap=config.softcap,
        sinks=sinks,
        again=mask.again,
    )
    return Node(record, tuple(np.ascontiguousarray(x) for x in stored), tuple(infos), problem)


def _query_key_value(
    config: Config, s: Sizes, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    def draw(*shape: int) -> Array:
        values = rng.integers(-3, 4, shape) if config.integers else rng.standard_normal(shape)
        return np.asarray(values * config.amplitude).astype(np.dtype(config.dtype))

    query = draw(s.batch, s.heads, s.queries, s.head_dim)
    key = draw(s.batch, s.kv_heads, s.keys, s.head_dim)
    value = rng.standard_normal((s.batch, s.kv_heads, s.keys, s.value_head_dim))
    return query, key, value.astype(np.dtype(config.dtype))


def _record(config: Config, s: Sizes, mask: Mask, places: Sequence[Place]) -> MaskedAttention:
    output, rank = LAYOUTS[config.layout].output
    scale = 1 / math.sqrt(s.head_dim) if config.scale is None else config.scale
    return MaskedAttention(
        num_heads=s.heads,
        kv_num_heads=s.kv_heads,
        head_dim=s.head_dim,
        value_head_dim=s.value_head_dim,
        scale=float(np.float32(scale)),  # the attribute is a float32
        query=places[0].layout,
        key=places[1].layout,
        value=places[2].layout,
        output=output,  # type: ignore[arg-type]
        output_rank=rank,
        mask=mask.program,
        score_dtype=config.score_dtype,
        dtype=config.dtype,
        softcap=config.softcap,
        sinks=config.sinks is not None,
    )


def _info(x: Array, place: Place, config: Config) -> TensorInfo:
    if place.layout.order == "BHSD":
        return TensorInfo(_type(x), (None, x.shape[1], None, x.shape[3]))
    rest = x.shape[2:] if config.known_width else (None,) * (x.ndim - 2)
    return TensorInfo(_type(x), (None, None, *rest))


def _type(x: Array) -> Any:
    return ONNX_TYPES[helper.np_dtype_to_tensor_dtype(x.dtype)]


def node_of_config(config: Config) -> Node:
    """The node at some small shape: its record and infos are the same at any."""
    return node_of(Case(config, (2, 3, 4)))


# ---- the table ---------------------------------------------------------------------------------

_PAIRED = (
    ("family", "shape"),
    ("dtype", "dims"),
    ("dtype", "layout"),
    ("dtype", "heads"),
    ("dtype", "shape"),
    ("dims", "layout"),
    ("dims", "shape"),
    ("heads", "layout"),
    ("layout", "shape"),
)
"""Pairs of factors of which the table holds as many combinations as its size allows; families and
dtypes are all combined."""
_SHAPES_OF_A_CONFIG = 2


def _pairs(factors: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for one, other in _PAIRED:
        if one in factors and other in factors:
            yield one, other, factors[one], factors[other]


def _fits(family: str, shape: tuple[int, int, int]) -> bool:
    return family != "bigbird" or max(shape) <= BIGBIRD_LENGTH


def _covering_cases() -> list[Case]:
    """Greedy: each row takes the values that bring the most new pairs."""
    seen: set[tuple[Any, ...]] = set()
    cases = []
    choices = list(itertools.product(DIMS, LAYOUTS, HEADS))
    for number, (family, dtype) in enumerate(itertools.product(FAMILIES, DTYPES)):
        start = number * 37 % len(choices)  # ties go to another choice each time
        base = {"family": family, "dtype": dtype}
        best = max(
            (
                {**base, "dims": dims, "layout": layout, "heads": heads}
                for dims, layout, heads in choices[start:] + choices[:start]
            ),
            key=lambda factors: sum(pair not in seen for pair in _pairs(factors)),
        )
        seen.update(_pairs(best))
        shapes = [shape for shape in SHAPES if _fits(family, shape)]
        for _ in range(_SHAPES_OF_A_CONFIG):
            factors = max(
                ({**best, "shape": shape} for shape in shapes),
                key=lambda factors: sum(pair not in seen for pair in _pairs(factors)),
            )
            seen.update(_pairs(factors))
            shapes.remove(factors["shape"])
            cases.append(Case(Config(**best), factors["shape"]))
    return cases


def _program(**changes: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(changes.items())


def _empty_row_cases() -> Iterator[Case]:
    """Rows that see no key, by every rule of docs/operators.md."""
    zero = _program(nan_to_zero=True)
    for family, dtype in itertools.product(EMPTY_ROW_FAMILIES, DTYPES):
        yield Case(Config(family, dtype), (2, 65, 130))
        yield Case(Config(family, dtype, program=zero), (2, 65, 130))
    for family, dtype in itertools.product(("few_rows", "padding_everything"), DTYPES):
        for mode in ("replace", "add"):
            mean = _program(fill=FLOAT32_MIN, fill_mode=mode)
            yield Case(Config(family, dtype, (1, 4), (40, 40), program=mean), (2, 65, 130))
    lowest = {"float16": FLOAT16_MIN, "bfloat16": BFLOAT16_MIN}
    for (dtype, fill), mode in itertools.product(lowest.items(), ("replace", "add")):
        # Scores of integers are exact: the type in which the fill is added decides alone.
        config = Config("few_rows", dtype, score_dtype=dtype, scale=0.5, integers=True)
        yield Case(replace(config, program=_program(fill=fill, fill_mode=mode)), (2, 65, 130))
    soft = _program(fill=-1e4, fill_mode="add")
    for dtype in DTYPES:
        config = Config("padding_everything", dtype, scale=0.5, integers=True, program=soft)
        yield Case(config, (2, 65, 130))


def _number_cases() -> Iterator[Case]:
    """Scales, magnitudes and alignments that the covering table leaves out."""
    for dtype in DTYPES:
        for family in ("causal", "bias_by_head"):
            yield Case(Config(family, dtype, scale=-0.25), (1, 130, 130))
            yield Case(Config(family, dtype, scale=1.75), (1, 130, 130))
        yield Case(Config("padding_holes", dtype, scale=1.0, amplitude=6.0), (2, 100, 200))
        yield Case(Config("dilated", dtype, scale=-1.0, amplitude=6.0), (2, 100, 200))
        yield Case(Config("documents", dtype, known_width=False), (2, 65, 65))
        yield Case(Config("sliding_window", dtype, dims=(36, 36)), (2, 129, 129))


def hiding_configs() -> Iterator[Config]:
    """Biases that hide what is kept beside a finite fill, which then decides."""
    for family, dtype in itertools.product(HIDING_FAMILIES, DTYPES):
        # Integers: scores are exact, however they are rounded on the way.
        config = Config(family, dtype, scale=0.5, integers=True, dims=(40, 40))
        for mode in ("replace", "add"):
            yield replace(config, program=_program(fill=FLOAT32_MIN, fill_mode=mode))
    zero = _program(fill=FLOAT32_MIN, nan_to_zero=True)
    for family in ("hidden_infinite", "hidden_rows"):
        yield Config(family, "float32", scale=0.5, integers=True, program=zero)
    lowest = {"float16": FLOAT16_MIN, "bfloat16": BFLOAT16_MIN}
    for (dtype, fill), mode in itertools.product(lowest.items(), ("replace", "add")):
        for family in ("hidden_float16", "hidden_infinite"):
            config = Config(family, dtype, score_dtype=dtype, scale=0.5, integers=True)
            yield replace(config, program=_program(fill=fill, fill_mode=mode))
    mean = _program(fill=FLOAT32_MIN, fill_mode="add")
    for dtype in DTYPES:  # any numbers: the lowest one swallows them
        yield Config("hidden_lowest", dtype, (1, 4), (33, 33), program=mean)


def softcap_configs() -> Iterator[Config]:
    """Softcaps that bind and that hardly do, with either tanh of the kernel."""
    for dtype in DTYPES:
        yield Config("causal", dtype, amplitude=3.0, softcap=5.0)
        yield Config("sliding_window", dtype, (2, 4), (128, 128), amplitude=6.0, softcap=50.0)
        yield Config("padding_holes", dtype, softcap=1000.0)
        yield Config("bias_by_head", dtype, (1, 2), (40, 40), softcap=2.0, amplitude=2.0)
        yield Config("no_mask", dtype, scale=-0.5, softcap=3.0)


def sink_configs() -> Iterator[Config]:
    """Sinks that are beside the scores, above and below them; with them every rule for rows."""
    for dtype in DTYPES:
        yield Config("causal_window", dtype, (2, 4), sinks=0.0)
        yield Config("no_mask", dtype, (1, 4), (40, 40), scale=-0.25, sinks=3.0)
        yield Config("alibi", dtype, (2, 2), sinks=-2.0)
        yield Config("causal", dtype, (1, 2), (256, 256), softcap=30.0, amplitude=2.0, sinks=1.0)
        yield Config("table_by_head", dtype, (2, 1), (33, 33), sinks=40.0)
        yield Config("few_rows", dtype, sinks=-1e30)


def rule_configs() -> Iterator[Config]:
    """Rows that see no key with a sink: one that takes all, and one as low as the fill."""
    rules = (
        (-math.inf, "replace", 0.0),
        (FLOAT32_MIN, "replace", 0.0),
        (FLOAT32_MIN, "replace", FLOAT32_MIN),
        (FLOAT32_MIN, "add", FLOAT32_MIN),
        (-1e4, "add", -1e4),
        (-1e4, "add", 0.0),
        (FLOAT32_MIN, "replace", -math.inf),
        (-math.inf, "replace", -math.inf),
    )
    families = ("few_rows", "padding_everything", "hidden_lowest")
    for number, ((fill, mode, sinks), family) in enumerate(itertools.product(rules, families)):
        yield Config(
            family,
            DTYPES[number % len(DTYPES)],
            (1, 2 + number % 2),
            scale=0.5,
            program=_program(fill=fill, fill_mode=mode, nan_to_zero=number % 4 == 1),
            integers=True,
            softcap=4.0 * (number % 5 == 2),
            sinks=sinks,
        )
    lowest = {"float16": FLOAT16_MIN, "bfloat16": BFLOAT16_MIN}
    for (dtype, fill), mode in itertools.product(lowest.items(), ("replace", "add")):
        config = Config("few_rows", dtype, score_dtype=dtype, scale=0.5, integers=True)
        yield replace(config, program=_program(fill=fill, fill_mode=mode), sinks=fill)


def twice_configs() -> Iterator[Config]:
    """Pairs that are hidden twice: fills whose double is -inf, and others; sinks."""
    # Integers: scores are exact, however they are rounded on the way.
    modes = ("add", "replace")
    for number, (family, mode) in enumerate(itertools.product(TWICE_FAMILIES, modes)):
        program = _program(fill_mode=mode)
        yield Config(family, DTYPES[number % 3], scale=0.5, integers=True, program=program)
        program = _program(fill=(-1e4, -120.0)[number // 2 % 2], fill_mode=mode, nan_to_zero=True)
        dtype = DTYPES[(number + 1) % 3]
        yield Config(family, dtype, (2, 2), scale=0.5, integers=True, program=program)
    lowest = {"float16": FLOAT16_MIN, "bfloat16": BFLOAT16_MIN}
    for (dtype, fill), mode in itertools.product(lowest.items(), ("replace", "add")):
        config = Config("hidden_twice_by_table", dtype, score_dtype=dtype, scale=0.5, integers=True)
        yield replace(
            config, program=_program(fill=fill, fill_mode=mode, nan_to_zero=mode == "add")
        )
    sinks = ((FLOAT32_MIN, FLOAT32_MIN), (-1e4, -1e4), (FLOAT32_MIN, 0.0), (FLOAT32_MIN, -math.inf))
    for number, ((fill, sink), family) in enumerate(itertools.product(sinks, TWICE_FAMILIES)):
        program = _program(fill=fill, fill_mode=modes[number % 2])
        config = Config(family, "float32", scale=0.5, integers=True, program=program)
        yield replace(config, sinks=sink, softcap=4.0 * (number % 4 == 0))


def _long_cases() -> Iterator[Case]:
    """More tiles of keys than a block has threads: its list of tiles is filled more than once."""
    mean = _program(fill=FLOAT32_MIN)
    for dtype in DTYPES:
        for family in ("no_mask", "causal_end", "padding_holes"):
            yield Case(Config(family, dtype, (1, 2), (32, 32)), (1, 70, 8300))
    for family in ("hidden_lowest", "padding_everything"):
        yield Case(Config(family, heads=(1, 1), dims=(32, 32), program=mean), (2, 70, 8300))
    yield Case(Config("distance_bias", "float32", (1, 1), (32, 32)), (1, 70, 16500))
    capped = Config("causal_end", heads=(1, 2), dims=(32, 32), softcap=3.0, amplitude=2.0)
    yield Case(replace(capped, sinks=5.0), (1, 70, 8300))
    yield Case(Config("hidden_twice", heads=(1, 2), dims=(32, 32)), (2, 70, 8300))


def _setting_cases() -> Iterator[Case]:
    """Every setting of the kernel, also where its list of tiles is filled more than once."""
    for family, dtype in itertools.product(SETTINGS, DTYPES):
        yield Case(Config(family, dtype), (2, 70, 130))
        yield Case(Config(family, dtype, dims=(33, 40)), (1, 130, 1000))


CASES: tuple[Case, ...] = (
    *_covering_cases(),
    *_empty_row_cases(),
    *_number_cases(),
    *(Case(config, (2, 65, 130)) for config in hiding_configs()),
    *(Case(config, (2, 130, 200)) for config in softcap_configs()),
    *(Case(config, (2, 130, 200)) for config in sink_configs()),
    *(Case(config, (2, 65, 130)) for config in rule_configs()),
    *(Case(config, (2, 65, 130)) for config in twice_configs()),
    *_long_cases(),
    *_setting_cases(),
)


def configs_of(cases: Iterable[Case]) -> tuple[Config, ...]:
    """The distinct configurations, in order."""
    return tuple(dict.fromkeys(case.config for case in cases))
