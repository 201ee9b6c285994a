"""Random masks: boolean programs over queries, keys, batch, heads and run-time vectors; biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.rewriter.graphs import Attention, Graph, Sizes, Value
from tests.rewriter.mask_terms import TABLE, TERMS, Bias, Term, lowest
from tests.rewriter.random_layouts import Choices

# None: the lowest number of the type.
FILLS: tuple[float | None, ...] = (None, -math.inf, -1e9, -1e4, -100.0)
_TERMS = (
    *(
        Term("causal", 0, style)
        for style in ("", "geq", "end", "tril", "triu", "is_causal", "buffer")
    ),
    Term("window", 2),
    Term("window", 3, "past"),
    Term("blocks", 3),
    Term("strided", 2),
    Term("global", 1),
    *(
        Term("padding", 0, style)
        for style in (
            "",
            ":bool",
            ":float32",
            ":int32",
            "gather_nd",
            "flat",
            "buffer:bool",
        )
    ),
    Term("table"),
    Term("table", 0, "heads"),
    Term("dense"),
    Term("dense", 0, "rank2"),
    Term("dense", 0, "heads"),
    Term("everything"),
)


_BIASES: tuple[Literal["input", "keys", "table", "numbers", "heads", "slopes"], ...] = (
    "slopes",
    "input",
    "keys",
    "numbers",
    "heads",
    "table",
)


@dataclass
class MaskWriter:
    """Writes masks into a graph; each is [B or 1, H or 1, Sq or 1, Sk or 1], or of lower rank.

    Attributes:
        g: the graph.
        c: decisions.
        a: sizes and type of the attention; only those fields are read.
        sizes: the run-time sizes.
    """

    g: Graph
    c: Choices
    a: Attention
    sizes: Sizes

    # ------------------------------------------------------------------------------- booleans

    def keep(self) -> Value:
        """Which pairs see each other."""
        form = self.c.pick("mask", ["term", "program", "joined"])
        if form == "term":
            return self._term()
        if form == "program":
            return self._bool(3)
        op = self.c.pick("join", ["And", "Or", "Xor"])
        return self.g.op(op, self._term(), self._bool(2) if self.c.chance("", 2) else self._term())

    def _term(self) -> Value:
        term = self.c.pick("term", _TERMS)
        return TERMS[term.kind](self.g, self.a, self.sizes, term)

    def _bool(self, depth: int) -> Value:
        """A random boolean program."""
        g, c = self.g, self.c
        kinds = ["compare", "term"] if depth == 0 else ["compare", "join", "not", "cast"]
        kind = c.pick("", kinds)
        if kind == "term":
            return self._term()
        if kind == "join":
            op = c.pick("join", ["And", "Or", "Xor"])
            return g.op(op, self._bool(depth - 1), self._bool(depth - 1))
        if kind == "not":
            return g.op("Not", self._bool(depth - 1))
        if kind == "cast":
            return g.cast(self._number(depth - 1), "bool")
        op = c.pick("compare", ["LessOrEqual", "Less", "Greater", "GreaterOrEqual", "Equal"])
        return g.op(op, self._number(depth), self._number(depth))

    def _number(self, depth: int) -> Value:
        """A random INT64 program."""
        g, c = self.g, self.c
        if depth <= 0:
            return self._leaf()
        op = c.pick("", ["leaf", "Sub", "Add", "Abs", "Mod", "Div", "Mul", "Min", "Neg", "Where"])
        if op == "leaf":
            return self._leaf()
        if op in ("Abs", "Neg"):
            return g.op(op, self._number(depth - 1))
        if op in ("Mod", "Div", "Mul"):
            number = g.const(c.pick("", [2, 3, 4]), "int64")
            return g.op(op, self._number(depth - 1), number)
        if op == "Where":
            return g.op("Where", self._bool(0), self._number(depth - 1), self._number(depth - 1))
        return g.op(op, self._number(depth - 1), self._number(depth - 1))

    def _leaf(self) -> Value:
        g, c = self.g, self.c
        batch, queries, keys = self.a.input_dims
        leaves: dict[str, Callable[[], Value]] = {
            "k": lambda: g.unsqueeze(self._range(self.sizes.keys), 0, 1, 2),
            "q": lambda: g.unsqueeze(self._range(self.sizes.queries), 0, 1, 3),
            "number": lambda: g.const(c.pick("", [2, 0, 1, -1, 5]), "int64"),
            "lengths": lambda: self._lifted("lengths", [batch], (1, 2, 3)),
            "key ids": lambda: self._lifted("key_ids", [batch, keys], (1, 2)),
            "query ids": lambda: self._lifted("query_ids", [batch, queries], (1, 3)),
            "b": lambda: g.unsqueeze(self._range(self.sizes.batch), 1, 2, 3),
            "h": lambda: g.const(np.arange(self.a.heads).reshape(1, -1, 1, 1), "int64"),
            "past": lambda: g.op("Sub", self.sizes.keys, self.sizes.queries),
            "sums": self._sums,
        }
        return leaves[c.pick("leaf", list(leaves))]()

    def _range(self, length: Value) -> Value:
        zero, one = self.g.const(0, "int64"), self.g.const(1, "int64")
        return self.g.op("Range", zero, self.g.op("Squeeze", length, self.g.ints(0)), one)

    def _lifted(self, name: str, dims: list[int | str], axes: tuple[int, ...]) -> Value:
        return self.g.unsqueeze(self.g.input(name, dims, "int64", "ids"), *axes)

    def _sums(self) -> Value:
        """Positions counted along a padding mask."""
        batch, _, keys = self.a.input_dims
        mask = self.g.input("padding", [batch, keys], "int64", "padding")
        return self.g.unsqueeze(self.g.op("CumSum", mask, self.g.const(1, "int64")), 1, 2)

    # -------------------------------------------------------------------------------- numbers

    def fill(self) -> tuple[Value, float]:
        """What hides: a scalar and its value."""
        chosen = self.c.pick("fill", FILLS)
        value = lowest(self.a.dtype) if chosen is None else chosen
        shape = self.c.pick("fill shape", [(), (1,), (1, 1, 1)])
        return self.g.const(np.full(shape, value), self.a.dtype), value

    def additive(self) -> Value:
        """A mask or bias to add to the scores."""
        kind = self.c.pick("additive", ["where", "product", "bias", "both", "float table"])
        if kind == "bias":
            return self._bias()
        if kind == "float table":
            return self._scaled_table()
        keep, (fill, number) = self.keep(), self.fill()
        if kind == "product" and math.isfinite(number):  # 0 * -inf is NaN for every kept pair
            inverted = self.g.op(
                "Sub", self.g.const(1.0, self.a.dtype), self.g.cast(keep, self.a.dtype)
            )
            return self.g.op("Mul", inverted, fill)
        kept = self._bias() if kind == "both" else self.g.const(0.0, self.a.dtype)
        if self.c.chance("drop", 3):
            return self.g.op("Where", self.g.op("Not", keep), fill, kept)
        return self.g.op("Where", keep, kept, fill)

    def _scaled_table(self) -> Value:
        value = lowest(self.a.dtype)
        numbers = np.where(np.tri(TABLE, dtype=bool), 0.0, value)[None, None]
        table = self.g.const(numbers, self.a.dtype)
        rows = self.g.slice(table, 2, 0, self.sizes.queries)
        return self.g.slice(rows, 3, 0, self.sizes.keys)

    def _bias(self) -> Value:
        g, a = self.g, self.a
        if self.c.chance("", 2):
            return Bias(self.c.pick("bias", _BIASES))._value(g, a, self.sizes)
        kind = self.c.pick("bias", ["distance", "buckets", "rows"])
        if kind == "buckets":
            return self._buckets()
        if kind == "rows":
            return g.input("row_bias", [a.input_dims[0], 1, a.input_dims[1], 1], a.dtype)
        apart = g.op("Abs", g.op("Sub", *self._places()))
        return g.op("Mul", g.cast(apart, a.dtype), g.const(-0.25, a.dtype))

    def _places(self) -> tuple[Value, Value]:
        return (
            self.g.unsqueeze(self._range(self.sizes.keys), 0, 1, 2),
            self.g.unsqueeze(self._range(self.sizes.queries), 0, 1, 3),
        )

    def _buckets(self) -> Value:
        """T5: a learned number for each head and bucket of distances."""
        g = self.g
        k = g.unsqueeze(self._range(self.sizes.keys), 0)
        q = g.unsqueeze(self._range(self.sizes.queries), 1)
        apart = g.op("Min", g.op("Abs", g.op("Sub", k, q)), g.const(4, "int64"))
        later = g.cast(g.op("Greater", k, q), "int64")
        bucket = g.op("Add", apart, g.op("Mul", later, g.const(5, "int64")))
        learned = g.op("Gather", g.weight(10, self.a.heads, dtype=self.a.dtype), bucket, axis=0)
        return g.unsqueeze(g.transpose(learned, 2, 0, 1), 0)
