"""Tensors by what their axes hold, and the many ways to bring them into another order.

Axes are strings of letters: "b" batch, "q" and "k" tokens, "g" and "j" groups of heads and the
heads of a group ("gj" is a query head), "d" and "e" channels, "" an axis of size 1. Letters of
one axis lie row-major: ("b", "q", "gjd") is [B, Sq, H*D].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tests.rewriter.graphs import Dim, Graph, Value

T = TypeVar("T")
Axes = tuple[str, ...]


@dataclass
class Choices:
    """Decisions, taken by ``index`` (of n options), and what was decided.

    Attributes:
        index: a number below n; 0 is the plainest option.
        plain: how much likelier the plainest option is than by chance.
        made: decisions that weren't the plainest, as "name=option".
    """

    index: Callable[[int], int]
    plain: int = 0
    made: list[str] = field(default_factory=list)

    def pick(self, name: str, options: Sequence[T]) -> T:
        """One of the options, the plainest first."""
        count = len(options)
        at = self.index(count * (1 + self.plain)) if count > 1 else 0
        at = at if at < count else 0
        if at and name:
            self.made.append(f"{name}={options[at]}")
        return options[at]

    def chance(self, name: str, one_in: int) -> bool:
        """True once in a while."""
        chosen = self.index(one_in * (1 + self.plain)) == 1
        if chosen and name:
            self.made.append(name)
        return chosen


@dataclass(frozen=True)
class Laid:
    """A tensor and its axes."""

    value: Value
    axes: Axes

    def axis(self, letter: str) -> int:
        """The axis that holds a letter."""
        return next(i for i, axis in enumerate(self.axes) if letter in axis)


@dataclass
class Letters:
    """What each letter stands for.

    Attributes:
        numbers: sizes that are fixed.
        vectors: run-time sizes, INT64 vectors of length 1.
        dims: of all of them as an input declares them.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    vectors: dict[str, Value] = field(default_factory=dict)
    dims: dict[str, Dim] = field(default_factory=dict)

    def fixed(self, axis: str) -> int | None:
        """The size of an axis if it is fixed."""
        size = 1
        for letter in axis:
            if letter not in self.numbers:
                return None
            size *= self.numbers[letter]
        return size

    def vector(self, g: Graph, axis: str) -> Value:
        """The size of an axis, computed in the graph."""
        number = self.fixed(axis)
        if number is not None:
            return g.ints(number)
        size = ""
        for letter in axis:
            factor = (
                g.ints(self.numbers[letter]) if letter in self.numbers else self.vectors[letter]
            )
            size = g.op("Mul", size, factor) if size else factor
        return size

    def declared(self, axes: Axes) -> list[Dim]:
        """Dimensions for an input; axes of several run-time letters have no name."""
        dims: list[Dim] = []
        for axis in axes:
            number = self.fixed(axis)
            dims.append(self.dims[axis] if number is None else number)
        return dims


def reshape(g: Graph, letters: Letters, c: Choices, x: Laid, axes: Axes) -> Laid:
    """Other axes, the same order of letters."""
    if x.axes == axes:
        return x
    unknown = [axis for axis in axes if letters.fixed(axis) is None]
    copied = {
        i
        for i, axis in enumerate(axes)
        if i < len(x.axes) and x.axes[i] == axis and letters.fixed(axis) is None
    }
    style = c.pick("reshape", ["plain", "computed", "one unknown"])
    if style == "computed" or len(unknown) - len(copied) > 1:
        value = g.reshape(x.value, *(letters.vector(g, axis) for axis in axes))
        return Laid(value, axes)
    dims = []
    solved = style == "one unknown" and len(unknown) == len(copied)
    for i, axis in enumerate(axes):
        number = letters.fixed(axis)
        if number is not None:
            dims.append(-1 if solved and i == len(axes) - 1 else number)
        else:
            dims.append(0 if i in copied else -1)
    return Laid(g.reshape(x.value, *dims), axes)


def _units(x: Axes, target: Axes) -> list[str]:
    """The axes of x, cut so that each piece can be found in one axis of the target."""
    pieces: list[str] = []
    for axis in x:
        piece = ""
        for letter in axis:
            if piece and not any(piece + letter in other for other in target):
                pieces.append(piece)
                piece = ""
            piece += letter
        pieces.append(piece)
    return pieces


def rearrange(g: Graph, letters: Letters, c: Choices, x: Laid, axes: Axes) -> Laid:
    """The same elements with other axes, by Reshape, Transpose, Reshape as needed."""
    x = _with_batch_of_one(g, x, axes)
    if x.axes == axes:
        return x
    flat = "".join(x.axes)
    if flat == "".join(axes):
        return reshape(g, letters, c, x, axes)
    units = [unit for unit in _units(x.axes, axes) if unit]
    x = reshape(g, letters, c, x, tuple(units))
    order = list(_in_order(units, axes))
    perm = [units.index(unit) for unit in order]
    if len(perm) > 2 and c.chance("transposed twice", 12):
        first = [*perm[1:], perm[0]]
        value = g.transpose(x.value, *first)
        value = g.transpose(value, len(perm) - 1, *range(len(perm) - 1))
    else:
        value = g.transpose(x.value, *perm)
    return reshape(g, letters, c, Laid(value, tuple(order)), axes)


def _with_batch_of_one(g: Graph, x: Laid, axes: Axes) -> Laid:
    """With an axis for the batch or without one, as it is wanted."""
    wanted, held = (any("b" in axis for axis in found) for found in (axes, x.axes))
    if wanted and not held:
        return Laid(g.unsqueeze(x.value, 0), ("b", *x.axes))
    if held and not wanted and "b" not in x.axes:
        return Laid(x.value, tuple(axis.replace("b", "") for axis in x.axes))
    if held and not wanted:
        at = x.axes.index("b")
        value = g.op("Squeeze", x.value, g.ints(at))
        return Laid(value, (*x.axes[:at], *x.axes[at + 1 :]))
    return x


def _in_order(units: Sequence[str], axes: Axes) -> Iterator[str]:
    for axis in axes:
        rest = axis
        while rest:
            unit = next(u for u in units if rest.startswith(u))
            yield unit
            rest = rest[len(unit) :]


def reduced(g: Graph, op: str, value: Value, axis: int) -> Value:
    """ReduceMax and its like along one axis, which stays."""
    if g.opset >= 18 or op == "ReduceSum":
        return g.op(op, value, g.ints(axis), keepdims=1)
    return g.op(op, value, axes=[axis], keepdims=1)
