"""Inputs that respect a model: valid indices, 0/1 masks with every kind of padding.

Every shape is run without padding, with right padding of a different length in each
row of the batch, with left padding, with holes, and with one row that is padding
throughout: what such a row yields is part of what a rewrite has to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from stof_onnx.accuracy.domains import InputDomain, graph_inputs, infer_domains
from stof_onnx.accuracy.precision import runnable
from stof_onnx.accuracy.session import Arrays, RefusedError, open_session
from stof_onnx.accuracy.shapes import Shapes, Sizes, Sizing, SymbolicShapes
from stof_onnx.ir.errors import InputError

Probe = Callable[[Arrays], object]

# Odd and even, below and above 64 (the tile of most kernels), one row and several. Where there
# is a second length (the keys of cross-attention), it is once longer and otherwise shorter.
_SIZINGS = (
    Sizing(1, 7, Fraction(2, 3)),
    Sizing(2, 33, Fraction(3, 2)),
    Sizing(2, 64, Fraction(2, 3)),
    Sizing(3, 127, Fraction(2, 3)),
)
# Tried in this order where the model refuses a length: odd ones too, then larger round ones, for
# models that only take multiples of their block size.
_OTHER_LENGTHS = (100, 77, 64, 48, 33, 32, 24, 17, 16, 12, 8, 7, 5, 4, 3, 2, 1, 128, 256, 512)

_NO_PADDING = "no padding"
_PADDINGS = (_NO_PADDING, "right padding", "left padding", "random holes", "an all-padding row")
# Of the positions in "random holes", how many are kept.
_KEEP = 0.7
# Values of ids that nothing bounds: few, so that equal ones (same document, same type) occur.
_FEW_IDS = 4
_DTYPES = frozenset(
    [
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    ]
)


@dataclass(frozen=True)
class Feed:
    """One set of inputs.

    Attributes:
        name: what it is, e.g. "batch 2, sequence 33, right padding".
        arrays: an array for each input of the model.
    """

    name: str
    arrays: Arrays


@dataclass(frozen=True)
class FeedPlan:
    """The inputs to check a model with.

    Attributes:
        feeds: at least one; each runs in ONNX Runtime.
        notes: which sizes the model refused.
    """

    feeds: tuple[Feed, ...]
    notes: tuple[str, ...] = ()


def generate_feeds(
    model: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> list[Feed]:
    """Make inputs for a model; see :func:`plan_feeds`.

    Args:
        model: an ONNX model of standard operators.
        input_shapes: shapes to use for some or all inputs.
        seed: of the random numbers; the same seed gives the same inputs.
    """
    model, _ = runnable(model)
    try:
        with open_session(model, "probe") as session:
            return list(plan_feeds(model, session.run, input_shapes, seed).feeds)
    except RefusedError as error:
        raise InputError(f"ONNX Runtime can't load the model: {error}") from error


def plan_feeds(
    model: ModelProto,
    probe: Probe,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    lengths: Sequence[int] = (),
) -> FeedPlan:
    """Make inputs for a model at several shapes, with several kinds of padding.

    A size that the model refuses (a table of 64 positions ends at 64) is replaced by
    the next one that it takes; a note says so.

    Args:
        model: an ONNX model of standard operators.
        probe: runs the model on one set of inputs, or raises RefusedError.
        input_shapes: shapes to use for some or all inputs; dimensions of the same
            name follow in the others.
        seed: of the random numbers; the same seed gives the same inputs.
        lengths: further sequence lengths to use, for one row each.

    Raises:
        InputError: ``input_shapes`` doesn't fit the model, an input isn't a tensor of
            numbers, or the model runs at none of the sizes tried.
    """
    maker = _Maker(model, seed)
    symbolic = SymbolicShapes(model, input_shapes)
    notes: list[str] = []
    chosen: dict[tuple[tuple[str, int], ...], Shapes] = {}
    sizings = (*_SIZINGS, *(Sizing(1, length) for length in lengths))
    for sizing in sizings if symbolic.free else _SIZINGS[:1]:
        sizes, shapes = _accepted(symbolic, sizing, maker, probe, notes)
        chosen.setdefault(tuple(sizes.items()), shapes)
    feeds = [
        Feed(_name(sizes, shapes, padding), maker.arrays(shapes, padding))
        for sizes, shapes in chosen.items()
        for padding in maker.paddings(shapes)
    ]
    return FeedPlan(tuple(feeds), tuple(dict.fromkeys(notes)))


def _name(sizes: Sequence[tuple[str, int]], shapes: Shapes, padding: str) -> str:
    """Free sizes and padding in words; the shapes where nothing is free."""
    parts = [f"{name} {size}" for name, size in sizes]
    parts = parts or [f"{name} {list(shape)}" for name, shape in shapes.items()]
    return ", ".join([*parts, padding] if padding else parts)


def _describe(sizes: Sizes) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "its own shapes"


def _accepted(
    symbolic: SymbolicShapes, sizing: Sizing, maker: _Maker, probe: Probe, notes: list[str]
) -> tuple[Sizes, Shapes]:
    """The first sizes from ``sizing`` on at which the model runs."""
    refusal: tuple[Sizes, RefusedError] | None = None
    tried: list[Sizes] = []
    for candidate in _candidates(sizing):
        sizes = symbolic.sizes(candidate)
        if sizes in tried:
            continue
        tried.append(sizes)
        shapes = symbolic.resolve(sizes)
        try:
            probe(maker.arrays(shapes, _NO_PADDING))
        except RefusedError as error:
            refusal = refusal or (sizes, error)
            continue
        if refusal is not None:
            refused, reason = refusal
            notes.append(
                f"the model refuses {_describe(refused)} ({reason});"
                f" {_describe(sizes)} was used instead"
            )
        return sizes, shapes
    assert refusal is not None
    raise InputError(
        f"the original model runs in ONNX Runtime at none of the sizes tried: {refusal[1]}",
        f"shapes that it takes for {symbolic.describe()}",
        "give them with --input-shapes",
    )


def _candidates(sizing: Sizing) -> list[Sizing]:
    """``sizing`` first, then with equal lengths, other lengths, and a single row."""
    shorter = [length for length in _OTHER_LENGTHS if length < sizing.length]
    longer = [length for length in _OTHER_LENGTHS if length > sizing.length]
    candidates = [sizing]
    for batch in dict.fromkeys((sizing.batch, 1)):
        for length in (sizing.length, *shorter, *longer):
            candidates.append(Sizing(batch, length, sizing.ratio))
            candidates.append(Sizing(batch, length))
    return candidates


class _Maker:
    """Makes arrays for the inputs of one model."""

    def __init__(self, model: ModelProto, seed: int) -> None:
        self._seed = seed
        self._domains = infer_domains(model)
        self._dtypes = {value.name: _numpy_dtype(value) for value in graph_inputs(model)}

    def paddings(self, shapes: Shapes) -> tuple[str, ...]:
        """The kinds of padding that make a difference."""
        return _PADDINGS if any(map(self._is_padding_mask, shapes, shapes.values())) else ("",)

    def _is_padding_mask(self, name: str, shape: tuple[int, ...]) -> bool:
        return self._domains[name].kind == "mask" and len(shape) == 2

    def arrays(self, shapes: Shapes, padding: str) -> Arrays:
        """An array for each input.

        Args:
            shapes: of the inputs.
            padding: one of the kinds of padding, for masks of rank 2.
        """
        arrays: Arrays = {}
        for number, (name, shape) in enumerate(shapes.items()):
            # Each input its own stream: adding a padding changes no token.
            rng = np.random.default_rng([self._seed, number, *shape])
            if self._is_padding_mask(name, shape):
                values = _padding_mask(shape, padding, rng)
            else:
                longest = max((size for other in shapes.values() for size in other), default=1)
                values = _values(self._domains[name], self._dtypes[name], shape, longest, rng)
            arrays[name] = np.asarray(values).astype(self._dtypes[name])
        return arrays


def _values(
    domain: InputDomain,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    longest: int,
    rng: np.random.Generator,
) -> Any:
    """Random values of a domain; masks of any rank but 2 come here too."""
    if domain.kind == "real":
        return rng.standard_normal(shape)
    if domain.kind == "mask":
        return rng.random(shape) < _KEEP
    if domain.kind == "additive_mask":
        return np.where(rng.random(shape) < _KEEP, 0.0, np.finfo(dtype).min)
    if domain.kind == "position":
        count = shape[-1] if shape else 1
        last = np.iinfo(dtype).max if domain.high is None else domain.high - 1
        return np.broadcast_to(np.minimum(np.arange(count) + domain.low, last), shape)
    high = domain.high
    if high is None:
        # Vectors are lengths, where 0 and the full length matter; matrices are ids.
        high = longest + 1 if len(shape) <= 1 else _FEW_IDS
    high = min(high, int(np.iinfo(dtype).max))
    return rng.integers(domain.low, high, shape)


def _padding_mask(shape: tuple[int, ...], padding: str, rng: np.random.Generator) -> Any:
    """A [batch, positions] mask, True where a position is kept."""
    batch, count = shape
    keep = np.ones(shape, dtype=bool)
    # A different number of padded positions in each row, from about count / (batch + 1) up.
    widths = [min((row + 1) * count // (batch + 1), count - 1) for row in range(batch)]
    if padding == "right padding":
        for row, width in enumerate(widths):
            keep[row, count - width :] = False
    elif padding == "left padding":
        for row, width in enumerate(widths):
            keep[row, :width] = False
    elif padding == "random holes":
        keep = rng.random(shape) < _KEEP
        keep[np.arange(batch), rng.integers(0, count, batch)] = True
    elif padding == "an all-padding row":
        keep[-1] = False
    return keep


def _numpy_dtype(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    if not value.type.HasField("tensor_type"):
        raise InputError(f"input '{value.name}' is not a tensor", "a model with tensor inputs")
    elem_type = value.type.tensor_type.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type) if elem_type else np.dtype(object)
    if dtype.name not in _DTYPES:
        raise InputError(
            f"input '{value.name}' has type {TensorProto.DataType.Name(elem_type)}",
            "a float, integer or boolean type",
        )
    return np.dtype(dtype)
