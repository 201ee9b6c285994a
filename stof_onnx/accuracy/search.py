"""Finding sizes at which a model runs, when its file doesn't say how they depend on each other.

Guesses are tried on small sizes in a fixed order: lengths of their own first, then equal ones,
sums, and so on (:mod:`stof_onnx.accuracy.relations`). The first guess that runs at two sizes is
taken, and the model is checked at the usual sizes under it, or at smaller ones where it refuses
those. A model that runs at neither of the small sizes is tried at round ones, and at those that
its constants suggest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from onnx import ModelProto

from stof_onnx.accuracy.domains import InputDomain
from stof_onnx.accuracy.relations import Lengths, find_lengths, guesses
from stof_onnx.accuracy.session import RefusedError
from stof_onnx.accuracy.shapes import Shapes, Sizes, Sizing, SymbolicShapes
from stof_onnx.accuracy.tables import suggested_lengths
from stof_onnx.ir.errors import InputError

Attempt = Callable[[Shapes, int], RefusedError | None]

# No two of their lengths are equal, and none is the sum of others.
_PROBES = (Sizing(1, 7, Fraction(2, 3)), Sizing(1, 5, Fraction(3, 2)))
# Tracing leaves the batch size of the example in some models; two rows are a usual one.
_BATCHES = (1, 2)
# With an empty cache, and with a single new position.
_EMPTY = (Sizing(2, 7, Fraction(2, 3)), Sizing(1, 7, Fraction(2, 3)))
_SINGLE = tuple(Sizing(batch, length) for batch in (2, 1) for length in (33, 7))
# Tried in this order where the model refuses a length, odd ones too.
_SHORTER = (100, 77, 64, 48, 33, 32, 24, 17, 16, 12, 8, 7, 5)
# For models that refuse the probes: multiples of blocks and patches, tiny tables.
_ROUND = (32, 64, 16, 8, 48, 96, 128, 224, 256, 512, 4, 3, 2, 1)
_ROUND_RATIOS = (Fraction(2), Fraction(3, 2), Fraction(1), Fraction(2, 3))
_ROUND_GUESSES = 6
_MOST_RUNS = 500
_TOLD_GUESSES = 6


@dataclass(frozen=True)
class Choice:
    """Sizes at which the model runs.

    Attributes:
        sizes: of the dimensions that were free.
        shapes: of the inputs.
        start: position of the first new token.
    """

    sizes: Sizes
    shapes: Shapes
    start: int


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        choices: at least one; no two have the same shapes.
        notes: which relation was assumed, and which sizes the model refused.
    """

    choices: tuple[Choice, ...]
    notes: tuple[str, ...]


def find_sizes(
    model: ModelProto,
    overrides: Mapping[str, Sequence[int]] | None,
    domains: Mapping[str, InputDomain],
    attempt: Attempt,
    sizings: Iterable[Sizing],
) -> Found:
    """Find sizes at which a model runs, near the wanted ones.

    Args:
        model: an ONNX model of standard operators.
        overrides: shapes that the user gave for some inputs.
        domains: the values of the inputs.
        attempt: runs the model on inputs of the given shapes, the first new token at the given
            position; returns what it says if it refuses.
        sizings: wanted.

    Raises:
        InputError: the overrides don't fit the model, or it runs at none of the sizes tried.
    """
    search = _Search(model, overrides, domains, attempt)
    variants = list(search.variants())
    for batch, variant in itertools.product(_BATCHES, variants):
        if all(search.runs(variant, replace(probe, batch=batch)) for probe in _PROBES):
            return search.near(variant, sizings)
    for length in (*suggested_lengths(model), *_ROUND):
        for variant, ratio, batch in itertools.product(
            variants[:_ROUND_GUESSES], _ROUND_RATIOS, _BATCHES
        ):
            if search.runs(variant, Sizing(batch, length, ratio)):
                return search.multiples(variant, length, ratio)
    raise search.failure(variants)


@dataclass(frozen=True)
class _Variant:
    """The input shapes under one guess.

    Attributes:
        symbolic: the shapes.
        lengths: those among their dimensions, before the guess.
        cached: lengths of the KV cache, by input and axis, that come before the new positions.
    """

    symbolic: SymbolicShapes
    lengths: Lengths
    cached: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.symbolic.relations)) or "lengths of their own"

    @property
    def is_sum(self) -> bool:
        """Whether a length is the sum of two others."""
        return any(len(relation.plus) > 1 for relation in self.symbolic.relations)

    @property
    def notes(self) -> list[str]:
        """What is assumed about the shapes."""
        return [
            f"{relation.target} is taken to be {relation.text}"
            for relation in self.symbolic.relations
        ]


class _Search:
    """Runs a model at sizes, and remembers how it went."""

    def __init__(
        self,
        model: ModelProto,
        overrides: Mapping[str, Sequence[int]] | None,
        domains: Mapping[str, InputDomain],
        attempt: Attempt,
    ) -> None:
        self._model = model
        self._overrides = overrides
        self._domains = domains
        self._attempt = attempt
        self._results: dict[object, str] = {}
        self._first_refusal = ""

    def variants(self) -> Iterator[_Variant]:
        """The input shapes under each guess; dimensions without names first share one."""
        together = SymbolicShapes(self._model, self._overrides)
        yield from self._guessed(together, apart=False)
        apart = SymbolicShapes(self._model, self._overrides, apart=True)
        if apart.dims() != together.dims():
            yield from self._guessed(apart, apart=True)

    def _guessed(self, symbolic: SymbolicShapes, *, apart: bool) -> Iterator[_Variant]:
        lengths = find_lengths(symbolic, self._domains)
        for guess in guesses(lengths):
            related = SymbolicShapes(
                self._model, self._overrides, relations=guess.relations, apart=apart
            )
            yield _Variant(related, lengths, lengths.caches if guess.follows_cache else ())

    def runs(self, variant: _Variant, sizing: Sizing) -> bool:
        """Whether the model runs at the sizes that ``sizing`` gives."""
        return self._choose(variant, variant.symbolic.sizes(sizing)) is not None

    def near(self, variant: _Variant, sizings: Iterable[Sizing]) -> Found:
        """The wanted sizes where the model runs at them, or the next smaller ones."""
        choices: list[Choice] = []
        notes = variant.notes
        for sizing in sizings:
            wanted = variant.symbolic.sizes(sizing)
            choice = self._first(variant, _smaller(sizing))
            if choice is None:
                continue
            choices.append(choice)
            if choice.sizes != wanted:
                notes.append(
                    f"the model refuses {describe(wanted)} ({self._try(variant, wanted)});"
                    f" {describe(choice.sizes)} was used instead"
                )
        choices.extend(self._at_cache_limits(variant))
        return _found(choices, notes)

    def multiples(self, variant: _Variant, length: int, ratio: Fraction) -> Found:
        """``length``, its double and so on, for a model that only runs at some lengths."""
        wanted = ((1, length), (2, length), (2, length // 2), (1, 2 * length), (3, 3 * length))
        sizings = [Sizing(batch, multiple, ratio) for batch, multiple in wanted if multiple]
        chosen = [self._choose(variant, variant.symbolic.sizes(sizing)) for sizing in sizings]
        found = _found((choice for choice in chosen if choice is not None), variant.notes)
        refused = variant.symbolic.sizes(_PROBES[0])
        used = "; ".join(describe(choice.sizes) for choice in found.choices)
        note = (
            f"the model refuses {describe(refused)} ({self._try(variant, refused)});"
            f" {used} {'was' if len(found.choices) == 1 else 'were'} used instead"
        )
        return Found(found.choices, (*found.notes, note))

    def failure(self, variants: Sequence[_Variant]) -> InputError:
        """The error that says what was tried."""
        symbolic = variants[0].symbolic
        tried = f"; tried: {', '.join(map(str, variants[:_TOLD_GUESSES]))}" if symbolic.free else ""
        if len(variants) > _TOLD_GUESSES:
            tried += f" and {len(variants) - _TOLD_GUESSES} other relations"
        return InputError(
            f"the original model runs in ONNX Runtime at none of the sizes tried:"
            f" {self._first_refusal or 'the shapes given leave no room for the others'}{tried}",
            f"shapes that it takes for {symbolic.describe()}",
            f"give them with --input-shapes, e.g. --input-shapes {_example(variants)}",
        )

    def _at_cache_limits(self, variant: _Variant) -> Iterator[Choice]:
        """The first step of a generation, without a cache, and a later one, one token long."""
        free = set(variant.symbolic.free)
        dims = variant.symbolic.dims()
        cached = free.intersection(str(dims[source][axis]) for source, axis in variant.cached)
        new = free.intersection(variant.lengths.of("new")) if variant.cached else ()
        for names, size, sizings in ((cached, 0, _EMPTY), (new, 1, _SINGLE)):
            fixed = dict.fromkeys(names, size)
            candidates = [{**variant.symbolic.sizes(sizing), **fixed} for sizing in sizings]
            choices = (self._choose(variant, sizes) for sizes in candidates if names)
            yield from itertools.islice((choice for choice in choices if choice is not None), 1)

    def _first(self, variant: _Variant, candidates: Iterable[Sizing]) -> Choice | None:
        for candidate in candidates:
            choice = self._choose(variant, variant.symbolic.sizes(candidate))
            if choice is not None:
                return choice
        return None

    def _choose(self, variant: _Variant, sizes: Sizes) -> Choice | None:
        result = self._try(variant, sizes)
        return result if isinstance(result, Choice) else None

    def _try(self, variant: _Variant, sizes: Sizes) -> Choice | str:
        """Run the model at ``sizes``, once; the reason if it doesn't run."""
        known = variant.symbolic.known(sizes)
        if any(known[relation.target] < 1 for relation in variant.symbolic.relations):
            return "a length would be negative"
        shapes = variant.symbolic.resolve(sizes)
        start = max((shapes[source][axis] for source, axis in variant.cached), default=0)
        key = (tuple(shapes.items()), start)
        if key not in self._results:
            if len(self._results) >= _MOST_RUNS:
                return "not tried after many others"
            refusal = self._attempt(shapes, start)
            self._results[key] = "" if refusal is None else str(refusal)
            self._first_refusal = self._first_refusal or self._results[key]
        return self._results[key] or Choice(sizes, shapes, start)


def _found(choices: Iterable[Choice], notes: Sequence[str]) -> Found:
    distinct: dict[tuple[tuple[str, tuple[int, ...]], ...], Choice] = {}
    for choice in choices:
        distinct.setdefault(tuple(choice.shapes.items()), choice)
    return Found(tuple(distinct.values()), tuple(dict.fromkeys(notes)))


def _smaller(sizing: Sizing) -> Iterator[Sizing]:
    """``sizing`` first, then shorter ones, then those of a single row."""
    shorter = [length for length in _SHORTER if length < sizing.length]
    for batch in dict.fromkeys((sizing.batch, *_BATCHES)):
        for length in (sizing.length, *shorter):
            yield Sizing(batch, length, sizing.ratio)


def _example(variants: Sequence[_Variant]) -> str:
    """Shapes for the inputs that bind every dimension, under the likeliest relation."""
    symbolic = next((v.symbolic for v in variants if v.is_sum), variants[0].symbolic)
    shapes = symbolic.resolve(symbolic.sizes(_PROBES[0]))
    bound: set[int | str] = set()
    parts = []
    for name, dims in symbolic.dims().items():
        if not bound.issuperset(dim for dim in dims if isinstance(dim, str)):
            bound.update(dims)
            parts.append(f"{name}:[{','.join(map(str, shapes[name]))}]")
    return " ".join(parts)


def describe(sizes: Sizes) -> str:
    """Sizes in words."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "its own shapes"
