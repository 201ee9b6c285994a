"""Masks in the idioms of exported graphs, for ``graphs.Attention.masks``.

A term is a boolean tensor (true: keep) that broadcasts to [B, H, Sq, Sk]; ``Mask`` joins
terms by And and brings the result to the scores, ``Bias`` adds numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.rewriter.graphs import Attention, Graph, Sizes, Value

TABLE = 40  # edge of constant tables: sequences must not be longer
INFINITY = math.inf

How = Literal["add", "keep", "drop", "product", "inverted"]


@dataclass(frozen=True)
class Term:
    """One condition.

    Attributes:
        kind: a key of :data:`TERMS`.
        size: window, block, stride or number of global tokens, where the kind has one.
        style: which of several ways to write it; "" is the first.
    """

    kind: str
    size: int = 0
    style: str = ""


def lowest(dtype: str) -> float:
    """finfo.min, the fill that transformers and dynamo use."""
    return {"float16": -65504.0, "bfloat16": -3.3895313892515355e38}.get(
        dtype, float(np.finfo(np.float32).min)
    )


@dataclass(frozen=True)
class Mask:
    """Terms joined by And, and how they meet the scores.

    Attributes:
        terms: all of which must hold.
        how: "add" Where(keep, 0, fill); "keep" and "drop" write with Where; "product"
            adds ``(1 - mask) * fill``; "inverted" does so with the numbers of the input
            "padding", whatever they are.
        fill: None for the lowest number of the type.
        with_true: the chain starts with And(True, ...), as transformers 5 writes it.
    """

    terms: tuple[Term, ...]
    how: How = "add"
    fill: float | None = None
    with_true: bool = False

    def apply(self, g: Graph, a: Attention, sizes: Sizes, scores: Value) -> Value:
        """The masked scores."""
        fill = g.const(lowest(a.dtype) if self.fill is None else self.fill, a.dtype)
        if self.how == "inverted":
            batch, _, keys = a.input_dims
            mask = g.input("padding", [batch, keys], "int64", "padding")
            return self._add_inverted(g, a, g.unsqueeze(mask, 1, 2), fill, scores)
        keep = self.keep(g, a, sizes)
        if self.how == "add":
            return g.op("Add", scores, g.op("Where", keep, g.const(0.0, a.dtype), fill))
        if self.how == "product":
            return self._add_inverted(g, a, keep, fill, scores)
        if self.how == "keep":
            return g.op("Where", keep, scores, fill)
        return g.op("Where", g.op("Not", keep), fill, scores)

    @staticmethod
    def _add_inverted(g: Graph, a: Attention, mask: Value, fill: Value, scores: Value) -> Value:
        inverted = g.op("Sub", g.const(1.0, a.dtype), g.cast(mask, a.dtype))
        return g.op("Add", scores, g.op("Mul", inverted, fill))

    def keep(self, g: Graph, a: Attention, sizes: Sizes) -> Value:
        """The conjunction."""
        values = [TERMS[term.kind](g, a, sizes, term) for term in self.terms]
        if self.with_true:
            values.insert(0, g.const(np.ones((1, 1, 1, 1)), "bool"))
        keep = values[0]
        for value in values[1:]:
            keep = g.op("And", keep, value)
        return keep


@dataclass(frozen=True)
class Bias:
    """Numbers added to the scores.

    Attributes:
        kind: "input" [B, H, Sq, Sk]; "keys" [B, 1, 1, Sk]; "table" of 0 and -inf, sliced;
            "numbers" the same with a number for each head and pair; "heads" a constant
            number for each head; "slopes" times k - q (ALiBi).
    """

    kind: Literal["input", "keys", "table", "numbers", "heads", "slopes"]

    def apply(self, g: Graph, a: Attention, sizes: Sizes, scores: Value) -> Value:
        """The biased scores."""
        return g.op("Add", scores, self._value(g, a, sizes))

    def _value(self, g: Graph, a: Attention, sizes: Sizes) -> Value:
        batch, queries, keys = a.input_dims
        if self.kind == "input":
            return g.input("bias", [batch, a.heads, queries, keys], a.dtype)
        if self.kind == "keys":
            return g.input("key_bias", [batch, 1, 1, keys], a.dtype)
        if self.kind == "table":
            table = np.where(_random_table(), 0.0, -math.inf)
            return _cut(g, g.const(table[None, None], a.dtype), sizes)
        if self.kind == "numbers":
            numbers = np.random.default_rng(7).standard_normal((1, a.heads, TABLE, TABLE))
            return _cut(g, g.const(numbers, a.dtype), sizes)
        slopes = g.const(np.arange(1, 1 + a.heads).reshape(-1, 1, 1) / 8, a.dtype)
        if self.kind == "heads":
            return slopes
        q, k = _positions(g, sizes)
        return g.op("Mul", slopes, g.cast(g.op("Sub", k, q), a.dtype))


def _range(g: Graph, length: Value) -> Value:
    zero = g.const(0, "int64")
    return g.op("Range", zero, g.op("Squeeze", length, g.ints(0)), g.const(1, "int64"))


def _positions(g: Graph, sizes: Sizes) -> tuple[Value, Value]:
    """q as [1, 1, Sq, 1] and k as [1, 1, 1, Sk]."""
    return (
        g.unsqueeze(_range(g, sizes.queries), 0, 1, 3),
        g.unsqueeze(_range(g, sizes.keys), 0, 1, 2),
    )


def _random_table(*lead: int) -> np.ndarray:
    table = np.random.default_rng(7).random((*lead, TABLE, TABLE)) < 0.6
    table[..., 0] = True  # no empty rows
    return table


def _cut(g: Graph, table: Value, sizes: Sizes) -> Value:
    """The first Sq rows and Sk columns of the last two axes."""
    return g.slice(g.slice(table, -2, 0, sizes.queries), -1, 0, sizes.keys)


def _causal(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    q, k = _positions(g, sizes)
    if term.style == "geq":
        return g.op("GreaterOrEqual", q, k)
    if term.style == "not_greater":
        return g.op("Not", g.op("Greater", k, q))
    if term.style == "end":
        past = g.op("Sub", sizes.keys, sizes.queries)
        return g.op("LessOrEqual", k, g.op("Add", q, past))
    shape = g.op("Concat", sizes.queries, sizes.keys, axis=0)
    if term.style == "tril":  # torch.ones(...).tril()
        ones = g.op("Expand", g.const(True, "bool"), shape)
        return g.op("Trilu", ones, upper=0)
    if term.style == "triu":  # ~torch.ones(...).triu(1)
        ones = g.op("Expand", g.const(1.0, "float32"), shape)
        upper = g.op("Trilu", ones, g.const(1, "int64"), upper=1)
        return g.op("Not", g.cast(upper, "bool"))
    if term.style == "is_causal":  # what is_causal=True becomes
        ones = g.op("Expand", g.const(1.0, "float32"), shape)
        lower = g.op("Trilu", ones, upper=0)
        return g.op("Not", g.op("Equal", lower, g.const(0.0, "float32")))
    if term.style == "buffer":
        return _cut(g, g.const(np.tri(TABLE, dtype=bool)[None, None], "bool"), sizes)
    return g.op("LessOrEqual", k, q)


def _window(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    q, k = _positions(g, sizes)
    width = g.const(term.size, "int64")
    if term.style == "past":  # keeps q - k < size, as transformers 5 writes it
        return g.op("Greater", k, g.op("Sub", q, width))
    return g.op("LessOrEqual", g.op("Abs", g.op("Sub", q, k)), width)


def _blocks(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    q, k = (g.op("Div", i, g.const(term.size, "int64")) for i in _positions(g, sizes))
    return g.op("Equal", q, k)


def _strided(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    q, k = _positions(g, sizes)
    rest = g.op("Mod", g.op("Sub", q, k), g.const(term.size, "int64"))
    return g.op("Equal", rest, g.const(0, "int64"))


def _global(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    first = g.const(term.size, "int64")
    q, k = (g.op("Less", i, first) for i in _positions(g, sizes))
    return g.op("Or", q, k)


def _padding(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    """Styles: how it is read, and after a colon the type of the input.

    "unsqueeze", "gather_nd", "flat"; "buffer" is longer than the keys and cut.
    """
    style, _, dtype = term.style.partition(":")
    batch, _, keys = a.input_dims
    if style == "buffer":
        mask = g.input("padding", [batch, TABLE], dtype or "int64", "padding")
        mask = g.slice(mask, 1, 0, sizes.keys)
    else:
        mask = g.input("padding", [batch, keys], dtype or "int64", "padding")
    if dtype != "bool":
        mask = g.cast(mask, "bool")
    if style in ("", "unsqueeze", "buffer"):
        return g.unsqueeze(mask, 1, 2)
    b = g.unsqueeze(_range(g, sizes.batch), 1, 2, 3)
    _, k = _positions(g, sizes)
    if style == "gather_nd":  # dynamo: index pairs
        shape = g.op("Concat", sizes.batch, g.ints(1, 1), sizes.keys, axis=0)
        pair = [g.unsqueeze(g.op("Expand", i, shape), -1) for i in (b, k)]
        return g.op("GatherND", mask, g.op("Concat", *pair, axis=-1))
    # TorchScript: flattened, read at b * S + k.
    flat = g.op("Add", g.op("Mul", b, sizes.keys), k)
    return g.op("Gather", g.reshape(mask, -1), flat)


def _documents(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    """Tokens of the same document; self-attention only."""
    batch, queries, _ = a.input_dims
    ids = g.input("documents", [batch, queries], "int64", "ids")
    return g.op("Equal", g.unsqueeze(ids, 1, 3), g.unsqueeze(ids, 1, 2))


def _table(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    if term.style == "heads":
        return _cut(g, g.const(_random_table(1, a.heads), "bool"), sizes)
    if term.style == "rank2":
        return _cut(g, g.const(_random_table(), "bool"), sizes)
    return _cut(g, g.const(_random_table(1, 1), "bool"), sizes)


def _dense(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    batch, queries, keys = a.input_dims
    if term.style == "heads":
        return g.input("dense", [batch, a.heads, queries, keys], "bool", "padding")
    if term.style == "rank2":
        return g.input("dense", [queries, keys], "bool", "padding")
    if term.style == "buffer":
        return _cut(g, g.input("dense", [batch, 1, TABLE, TABLE], "bool", "padding"), sizes)
    return g.input("dense", [batch, 1, queries, keys], "bool", "padding")


def _everything(g: Graph, a: Attention, sizes: Sizes, term: Term) -> Value:
    q, k = _positions(g, sizes)
    return g.op("GreaterOrEqual", g.op("Add", q, k), g.const(0, "int64"))


TERMS: dict[str, Callable[[Graph, Attention, Sizes, Term], Value]] = {
    "causal": _causal,
    "window": _window,
    "blocks": _blocks,
    "strided": _strided,
    "global": _global,
    "padding": _padding,
    "documents": _documents,
    "table": _table,
    "dense": _dense,
    "everything": _everything,
}
