"""Disturbances: small changes after which a graph isn't the attention that it looks like.

Each has a station, where it happens. Most are functions of the tensor there; those with no
function are done by the code that writes the station (``Scene.has``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.rewriter.graphs import Graph, Value
from tests.rewriter.random_layouts import Choices, Laid, Letters, reduced

Function = Callable[[Graph, Letters, Laid], Value | None]


@dataclass(frozen=True)
class Decoy:
    """Where a disturbance happens, and what it makes of the tensor there."""

    station: str
    function: Function | None = None

    def apply(self, g: Graph, letters: Letters, x: Laid) -> Value | None:
        """The disturbed tensor; None where it doesn't fit the tensor."""
        return None if self.function is None else self.function(g, letters, x)


def _op(op: str, *numbers: float) -> Function:
    """An operator on the tensor and numbers."""

    def apply(g: Graph, letters: Letters, x: Laid) -> Value:
        like = [g.op("CastLike", g.const(n), x.value) for n in numbers]
        return g.op(op, x.value, *like)

    return apply


def _per(letter: str, op: str = "Mul") -> Function:
    """A number for each head, query, key, ...: constant where that many are fixed."""

    def apply(g: Graph, letters: Letters, x: Laid) -> Value | None:
        if letter not in x.axes or letters.fixed(letter) is None:
            return None
        size = letters.fixed(letter) or 1
        shape = [size if axis == letter else 1 for axis in x.axes]
        numbers = g.const((1 + np.arange(size) / 2).reshape(shape))
        return g.op(op, x.value, g.op("CastLike", numbers, x.value))

    return apply


def _mixed(letter: str) -> Function:
    """x times the mean over an axis: a factor that differs from element to element."""

    def apply(g: Graph, letters: Letters, x: Laid) -> Value | None:
        if letter not in x.axes:
            return None
        return g.op("Mul", x.value, reduced(g, "ReduceMean", x.value, x.axes.index(letter)))

    return apply


def _shift(op: str, letter: str) -> Function:
    """A reduction along an axis subtracted."""

    def apply(g: Graph, letters: Letters, x: Laid) -> Value | None:
        if letter not in x.axes:
            return None
        return g.op("Sub", x.value, reduced(g, op, x.value, x.axes.index(letter)))

    return apply


def _reversed(letter: str) -> Function:
    """An axis read backwards."""

    def apply(g: Graph, letters: Letters, x: Laid) -> Value | None:
        if letter not in x.axes:
            return None
        axis = g.ints(x.axes.index(letter))
        return g.op("Slice", x.value, g.ints(-1), g.ints(-(2**62)), axis, g.ints(-1))

    return apply


def _rolled(letter: str) -> Function:
    """An axis moved on by one."""

    def apply(g: Graph, letters: Letters, x: Laid) -> Value | None:
        if letter not in x.axes:
            return None
        axis = x.axes.index(letter)
        parts = g.slice(x.value, axis, 1, 2**62), g.slice(x.value, axis, 0, 1)
        return g.op("Concat", *parts, axis=axis)

    return apply


def _repeated_first(letter: str) -> Function:
    """The first element of an axis in the place of all."""

    def apply(g: Graph, letters: Letters, x: Laid) -> Value | None:
        if letter not in x.axes:
            return None
        first = g.slice(x.value, x.axes.index(letter), 0, 1)
        return g.op("Expand", first, g.op("Shape", x.value))

    return apply


def _turned_square(g: Graph, letters: Letters, x: Laid) -> Value | None:
    """Scores plus themselves transposed."""
    if letters.fixed("q") is None or letters.fixed("q") != letters.fixed("k"):
        return None
    order = [*range(len(x.axes) - 2), len(x.axes) - 1, len(x.axes) - 2]
    return g.op("Add", x.value, g.transpose(x.value, *order))


def _through_integers(g: Graph, letters: Letters, x: Laid) -> Value:
    return g.op("CastLike", g.cast(x.value, "int32"), x.value)


def _renormalised(g: Graph, letters: Letters, x: Laid) -> Value:
    square = g.op("Mul", x.value, x.value)
    return g.op("Div", square, reduced(g, "ReduceSum", square, len(x.axes) - 1))


def _by_temperature(g: Graph, letters: Letters, x: Laid) -> Value:
    temperature = g.input("temperature", [], "float32")
    return g.op("Div", x.value, g.op("CastLike", temperature, x.value))


def _masked_by_itself(g: Graph, letters: Letters, x: Laid) -> Value:
    low, zero = (g.op("CastLike", g.const(n), x.value) for n in (-math.inf, 0.0))
    return g.op("Where", g.op("Greater", x.value, zero), x.value, low)


def _after(g: Graph, letters: Letters, x: Laid) -> Value | None:
    """A mask over weights, which then no longer sum to one."""
    if letters.fixed("k") is None or x.axes[-1] != "k":
        return None
    keep = g.const(np.arange(letters.fixed("k") or 1) % 2 == 0, "bool")
    zero = g.op("CastLike", g.const(0.0), x.value)
    return g.op("Where", keep, x.value, zero)


def _through_flat_softmax(g: Graph, letters: Letters, x: Laid) -> Value:
    """Softmax once more, over all keys."""
    return g.op("Softmax", x.value, axis=x.axis("k"))


_EVERY = {
    "doubled": _op("Mul", 2.0),
    "shifted": _op("Add", 0.5),
    "negated": _op("Neg"),
    "times -1": _op("Mul", -1.0),
    "clipped": _op("Clip", -0.5, 0.5),
    "rectified": _op("Relu"),
    "through integers": _through_integers,
    "by a temperature": _by_temperature,
    "batch reversed": _reversed("b"),
    "heads reversed": _reversed("gj"),
    "groups reversed": _reversed("g"),
    "first batch for all": _repeated_first("b"),
    "first head for all": _repeated_first("gj"),
}
_OF = {
    "query": {
        "scaled per head": _per("gj"),
        "scaled per channel": _per("d"),
        "scaled per query": _mixed("q"),
        "tokens reversed": _reversed("q"),
        "tokens rolled": _rolled("q"),
    },
    "key": {
        "scaled per head": _per("g"),
        "scaled per key": _mixed("k"),
        "tokens reversed": _reversed("k"),
        "tokens rolled": _rolled("k"),
        "channels reversed": _reversed("d"),
    },
    "value": {
        "scaled per head": _per("g"),
        "tokens rolled": _rolled("k"),
        "channels rolled": _rolled("e"),
        "first token for all": _repeated_first("k"),
    },
    "scores": {
        "scaled per head": _per("gj"),
        "divided per head": _per("gj", "Div"),
        "scaled per query": _per("q"),
        "scaled per key": _per("k"),
        "less the mean": _shift("ReduceMean", "k"),
        "less the maximum of queries": _shift("ReduceMax", "q"),
        "less the maximum of heads": _shift("ReduceMax", "gj"),
        "less the minimum": _shift("ReduceMin", "k"),
        "less the maximum": _shift("ReduceMax", "k"),
        "capped": _op("Tanh"),
        "with their transpose": _turned_square,
        "masked by themselves": _masked_by_itself,
        "keys rolled": _rolled("k"),
        "queries rolled": _rolled("q"),
    },
    "weights": {
        "masked": _after,
        "renormalised": _renormalised,
        "squared": lambda g, letters, x: g.op("Mul", x.value, x.value),
        "scaled per head": _per("gj"),
        "scaled per key": _per("k"),
        "softmax again": _through_flat_softmax,
        "keys rolled": _rolled("k"),
        "queries rolled": _rolled("q"),
    },
    "context": {"scaled per head": _per("gj"), "queries rolled": _rolled("q")},
}
_SPECIAL = {
    "softmax": ("softmax axis",),
    "guard": ("guard writes 1", "guard reversed"),
    "sinks": (
        "sinks cut from more",
        "sinks of other heads",
        "sinks of each query",
        "shift before sinks",
        "sinks first",
        "scaled with sinks",
        "first column cut",
    ),
    "product": (
        "heads repeated otherwise",
        "key not transposed",
        "keys of the first batch",
        "values of the first batch",
        "weights transposed",
        "summed over queries",
    ),
    "einsum": ("one channel for all", "one query channel for all"),
    "elsewhere": tuple(
        form.format(what)
        for what in ("scores", "weights", "query")
        for form in ("{} read twice", "shape of {} read", "{} is an output", "{} captured")
    ),
}

DECOYS: dict[str, Decoy] = {
    **{
        f"{station} {name}": Decoy(station, function)
        for station in _OF
        for name, function in {**_EVERY, **_OF[station]}.items()
    },
    **{
        f"masked scores {name}": Decoy("masked", function)
        for name, function in {**_EVERY, **_OF["scores"]}.items()
    },
    **{
        f"capped scores {name}": Decoy("capped", function)
        for name, function in {**_EVERY, **_OF["scores"]}.items()
    },
    **{name: Decoy(station) for station, names in _SPECIAL.items() for name in names},
}
_STATIONS = sorted({decoy.station for decoy in DECOYS.values()})


def choose(c: Choices) -> dict[str, list[str]]:
    """Disturbances for one attention, by station: mostly none or one."""
    chosen: dict[str, list[str]] = {}
    for _ in range([0, 1, 0, 1, 2][c.index(5)]):
        station = _STATIONS[c.index(len(_STATIONS))]
        names = [name for name, decoy in DECOYS.items() if decoy.station == station]
        chosen.setdefault(station, []).append(names[c.index(len(names))])
    return chosen
