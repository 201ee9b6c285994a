"""Inputs that respect a model: valid indices, 0/1 masks with every kind of padding.

Every shape is run without padding, with right padding of a different length in each
row of the batch, with left padding, with holes, and with one row that is padding
throughout: what such a row yields is part of what a rewrite has to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from stof_onnx.accuracy.domains import InputDomain, graph_inputs, infer_domains
from stof_onnx.accuracy.precision import runnable
from stof_onnx.accuracy.search import Choice, find_sizes
from stof_onnx.accuracy.session import Arrays, RefusedError, open_session
from stof_onnx.accuracy.shapes import Shapes, Sizing
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
        notes: what was assumed about the shapes, and which sizes the model refused.
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
    the next one that it takes; lengths that depend on each other (a mask over cached and
    new positions) are found by trying. Notes say what was used.

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
    domains = infer_domains(model)
    maker = _Maker(model, domains, seed)

    def attempt(shapes: Shapes, start: int) -> RefusedError | None:
        return _refusal(Feed("", maker.arrays(shapes, _NO_PADDING, start)), probe)

    sizings = (*_SIZINGS, *(Sizing(1, length) for length in lengths))
    found = find_sizes(model, input_shapes, domains, attempt, sizings)
    groups = [
        [
            Feed(_name(choice, padding), maker.arrays(choice.shapes, padding, choice.start))
            for padding in maker.paddings(choice.shapes)
        ]
        for choice in found.choices
    ]
    feeds, notes = _accepted(groups, probe)
    return FeedPlan(tuple(feeds), (*found.notes, *notes))


def _accepted(groups: Sequence[Sequence[Feed]], probe: Probe) -> tuple[list[Feed], list[str]]:
    """The feeds without those whose padding the model refuses.

    GroupQueryAttention, for one, takes no padding among new positions. The smallest sizes show
    whether a model is like that; only then are all feeds tried.
    """
    feeds = [feed for group in groups for feed in group]
    if all(_refusal(feed, probe) is None for feed in groups[0][1:]):
        return feeds, []
    refusals = {
        feed.name: refusal
        for group in groups
        for feed in group[1:]
        if (refusal := _refusal(feed, probe)) is not None
    }
    first, reason = next(iter(refusals.items()))
    others = f" and {len(refusals) - 1} other inputs with padding" if len(refusals) > 1 else ""
    note = f"the model refuses {first} ({reason}){others}; they were left out"
    return [feed for feed in feeds if feed.name not in refusals], [note]


def _refusal(feed: Feed, probe: Probe) -> RefusedError | None:
    try:
        probe(feed.arrays)
    except RefusedError as error:
        return error
    return None


def _name(choice: Choice, padding: str) -> str:
    """Free sizes and padding in words; the shapes where nothing is free."""
    parts = [f"{name} {size}" for name, size in choice.sizes.items()]
    parts = parts or [f"{name} {list(shape)}" for name, shape in choice.shapes.items()]
    return ", ".join([*parts, padding] if padding else parts)


class _Maker:
    """Makes arrays for the inputs of one model."""

    def __init__(self, model: ModelProto, domains: Mapping[str, InputDomain], seed: int) -> None:
        self._seed = seed
        self._domains = domains
        self._dtypes = {value.name: _numpy_dtype(value) for value in graph_inputs(model)}

    def paddings(self, shapes: Shapes) -> tuple[str, ...]:
        """The kinds of padding that make a difference."""
        return _PADDINGS if any(map(self._is_padding_mask, shapes, shapes.values())) else ("",)

    def _is_padding_mask(self, name: str, shape: tuple[int, ...]) -> bool:
        return self._domains[name].kind == "mask" and len(shape) == 2

    def arrays(self, shapes: Shapes, padding: str, start: int) -> Arrays:
        """An array for each input.

        Args:
            shapes: of the inputs.
            padding: one of the kinds of padding, for masks of rank 2.
            start: the first value of positions.
        """
        arrays: Arrays = {}
        for number, (name, shape) in enumerate(shapes.items()):
            # Each input its own stream: adding a padding changes no token.
            rng = np.random.default_rng([self._seed, number, *shape])
            if self._is_padding_mask(name, shape):
                values = _padding_mask(shape, padding, rng)
            else:
                longest = max((size for other in shapes.values() for size in other), default=1)
                domain = self._domains[name]
                if domain.kind == "position":
                    domain = replace(domain, low=domain.low + start)
                values = _values(domain, self._dtypes[name], shape, longest, rng)
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
