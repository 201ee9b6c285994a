"""Expression nodes: the language mask programs are written in.

An expression is a value of one kind ("bool", "int" or "float") for each index
tuple, for instance ``q - k >= 0`` over the query index q and the key index k.
Nodes are immutable and compared by content. Build them with the functions of
:mod:`stof_onnx.ir.expr.build`, which keep them in a normal form, so that two ways
to write one mask usually end up as equal expressions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

Kind = Literal["bool", "int", "float"]


class Expr:
    """Base of all nodes; compared and hashed by content."""

    __slots__ = ("_hash", "_key", "_text", "kind", "size")

    kind: Kind
    size: int

    def __init__(self, kind: Kind, key: tuple[object, ...], parts: tuple[Expr, ...] = ()) -> None:
        self.kind = kind
        self._key = key
        self._hash = hash((type(self).__name__, kind, key))
        self._text = ""
        # Nodes of the tree, shared ones counted each time they occur.
        self.size = 1 + sum(part.size for part in parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Expr) or self._hash != other._hash:
            return False
        return type(self) is type(other) and self.kind == other.kind and self._key == other._key

    def __repr__(self) -> str:
        # The order of commutative arguments follows this text, so it is kept.
        if not self._text:
            self._text = self._write()
        return self._text

    def _write(self) -> str:
        return f"{type(self).__name__}{self._key!r}"


class Const(Expr):
    """A literal. Negative zero is stored as zero; NaN raises FloatingPointError."""

    __slots__ = ("value",)

    def __init__(self, value: bool | int | float) -> None:
        if isinstance(value, float):
            if math.isnan(value):
                raise FloatingPointError("a mask constant is NaN")
            value = value + 0.0  # -0.0 + 0.0 is 0.0
        kind: Kind = (
            "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        )
        self.value = value
        super().__init__(kind, (value,))


class Var(Expr):
    """An integer variable: a dimension (bound is None) or an index.

    Args:
        name: of the variable; unique within one expression.
        bound: for an index, the dimension it runs over: 0 <= index < bound.
        positive: for a dimension, whether it is known to be at least 1; otherwise it
            is at least 0.
    """

    __slots__ = ("bound", "name", "positive")

    def __init__(self, name: str, bound: Expr | None = None, positive: bool = False) -> None:
        self.name = name
        self.bound = bound
        self.positive = positive
        super().__init__("int", (name, bound, positive))

    def _write(self) -> str:
        return self.name


class Load(Expr):
    """One element of a tensor: ``source[index...]``.

    Args:
        source: name of the tensor.
        index: one int expression for each axis of the tensor.
        kind: of the tensor's elements.
    """

    __slots__ = ("index", "source")

    def __init__(self, source: str, index: tuple[Expr, ...], kind: Kind) -> None:
        self.source = source
        self.index = index
        super().__init__(kind, (source, index), index)


class Op(Expr):
    """An operation of :data:`stof_onnx.ir.expr.ops.OPS` on other expressions."""

    __slots__ = ("args", "name")

    def __init__(self, name: str, args: tuple[Expr, ...], kind: Kind) -> None:
        self.name = name
        self.args = args
        super().__init__(kind, (name, args), args)


def children(expr: Expr) -> tuple[Expr, ...]:
    """Direct sub-expressions; the bound of an index is not one of them."""
    if isinstance(expr, Op):
        return expr.args
    if isinstance(expr, Load):
        return expr.index
    return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """Each distinct sub-expression once, parents before children."""
    seen: set[Expr] = set()
    stack = [expr]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(reversed(children(node)))


def variables(expr: Expr) -> set[str]:
    """Names of the variables an expression reads."""
    return {node.name for node in walk(expr) if isinstance(node, Var)}


def loads(expr: Expr) -> list[Load]:
    """The distinct loads of an expression, in order of appearance."""
    return [node for node in walk(expr) if isinstance(node, Load)]
