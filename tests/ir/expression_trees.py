"""Random expression trees and what they mean, written without the simplifier's help."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from stof_onnx.ir.expr import (
    Const,
    Expr,
    Load,
    Var,
    build,
    evaluate,
)
from stof_onnx.ir.expr.build import (
    FALSE,
    TRUE,
    integer,
    mod,
)

Array = npt.NDArray[Any]
Tree = Any
"""A leaf (an Expr) or (name of a function of ``build``, sub-trees...): not normalised."""

B, H, Sq, Sk = (Var(name, positive=True) for name in ("B", "H", "Sq", "Sk"))
Sp = Var("Sp")  # may be 0, as the length of a KV cache before the first token
b, h, q, k, p = (Var(i, dim) for i, dim in (("b", B), ("h", H), ("q", Sq), ("k", Sk), ("p", Sp)))
DIMENSIONS, INDICES = (B, H, Sq, Sk, Sp), (b, h, q, k, p)
POSITIVE = (B, H, Sq, Sk)
VARIABLES = {var.name: var for var in (*DIMENSIONS, *INDICES)}

POSITION = Load("position", (b, k), "int")
IS_REAL = Load("is_real", (b, k), "bool")
SLOPE = Load("slope", (h,), "float")


def tiny(expr: Expr, bound: int = 4) -> Expr:
    """The expression modulo a number, for masks that are simple to write down."""
    return mod(expr, integer(bound))


# What each constructor has to mean, written without the simplifier's help.
MEANING: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "floordiv": lambda x, y: np.floor(np.divide(x, y)).astype(np.int64),
    "mod": lambda x, y: x - y * np.floor(np.divide(x, y)).astype(np.int64),
    "absolute": lambda x: np.where(x < 0, -x, x),
    "minimum": lambda x, y: np.where(x < y, x, y),
    "maximum": lambda x, y: np.where(x < y, y, x),
    "ge0": lambda x: x >= 0,
    "eq0": lambda x: x == 0,
    "ge": lambda x, y: x >= y,
    "gt": lambda x, y: x > y,
    "eq": lambda x, y: x == y,
    "not_": lambda x: ~x,
    "and_": lambda x, y: x & y,
    "or_": lambda x, y: x | y,
    "where": np.where,
    "to_bool": lambda x: x != 0,
    "to_int": lambda x: x.astype(np.int64),
    "to_float": lambda x: x.astype(np.float32),
    "fadd": np.add,
    "fsub": np.subtract,
    "fmul": np.multiply,
}


def construct(tree: Tree) -> Expr:
    """The tree through the simplifying constructors."""
    if isinstance(tree, Expr):
        return tree
    name, *parts = tree
    expr: Expr = getattr(build, name)(*(construct(part) for part in parts))
    return expr


def naive(tree: Tree, values: dict[str, Array], sources: dict[str, Array]) -> Array:
    """The tree's value, node by node."""
    if isinstance(tree, Const):
        types = {"bool": np.bool_, "int": np.int64, "float": np.float32}
        return np.asarray(tree.value, types[tree.kind])
    if isinstance(tree, Var):
        return values[tree.name]
    if isinstance(tree, Load):
        return sources[tree.source][tuple(values[i.name] for i in tree.index)]  # type: ignore[attr-defined]
    name, *parts = tree
    return np.asarray(MEANING[name](*(naive(part, values, sources) for part in parts)))


def grid(sizes: tuple[int, ...]) -> dict[str, Array]:
    """Dimensions as numbers, indices along one axis each."""
    values = {v.name: np.asarray(size) for v, size in zip(DIMENSIONS, sizes, strict=True)}
    for axis, (index, size) in enumerate(zip(INDICES, sizes, strict=True)):
        shape = [1, 1, 1, 1, 1]
        shape[axis] = size
        values[index.name] = np.arange(size).reshape(shape)
    return values


def run_time(sizes: tuple[int, ...], seed: int = 3) -> dict[str, Array]:
    """Tensors for the loads."""
    rng = np.random.default_rng(seed)
    batch, heads, _, keys, _ = sizes
    return {
        "position": rng.integers(-3, 8, (batch, keys)),
        "is_real": rng.random((batch, keys)) < 0.6,
        "slope": rng.integers(-4, 5, heads).astype(np.float32) / 4,
    }


@cache
def ints(depth: int) -> st.SearchStrategy[Tree]:
    """Trees of kind int."""
    leaves = st.one_of(
        st.sampled_from([b, h, q, k, *INDICES, *DIMENSIONS, POSITION]),
        st.integers(-4, 9).map(integer),
    )
    if depth == 0:
        return leaves
    below = ints(depth - 1)
    return st.one_of(
        leaves,
        st.tuples(st.sampled_from(["add", "sub", "mul", "minimum", "maximum"]), below, below),
        st.tuples(st.sampled_from(["neg", "absolute"]), below),
        st.tuples(st.sampled_from(["floordiv", "mod"]), below, divisors()),
        st.tuples(st.sampled_from(["floordiv", "mod"]), positions(), divisors()),
        st.tuples(st.just("to_int"), bools(depth - 1)),
        st.tuples(st.just("where"), bools(depth - 1), below, below),
    )


@cache
def divisors() -> st.SearchStrategy[Tree]:
    """Trees of kind int that are never 0."""
    return st.one_of(
        st.sampled_from([1, 2, 3, 4, 5, -1, -2, -3]).map(integer),
        st.sampled_from(POSITIVE),
        st.tuples(st.just("mul"), st.sampled_from(POSITIVE), st.sampled_from(POSITIVE)),
        st.tuples(st.just("mul"), st.sampled_from(POSITIVE), st.integers(1, 3).map(integer)),
        st.tuples(st.just("neg"), st.sampled_from(POSITIVE)),
        st.sampled_from([("add", k, integer(1)), ("sub", Sk, k), ("add", Sp, integer(1))]),
    )


@cache
def positions() -> st.SearchStrategy[Tree]:
    """Flattened positions such as (b * Sq + q) * Sk + k, and near-misses of them."""
    index, dim = st.sampled_from(INDICES), st.sampled_from([*DIMENSIONS, integer(2), integer(3)])
    row = st.tuples(st.just("add"), st.tuples(st.just("mul"), index, dim), index)
    deep = st.tuples(st.just("add"), st.tuples(st.just("mul"), row, dim), index)
    return st.one_of(
        row, deep, st.tuples(st.just("add"), st.one_of(row, deep), st.integers(-3, 3).map(integer))
    )


@cache
def bools(depth: int) -> st.SearchStrategy[Tree]:
    """Trees of kind bool."""
    if depth == 0:
        return st.sampled_from([IS_REAL, TRUE, FALSE, ("ge", q, k), ("ge", k, q), ("eq0", k)])
    number, below = ints(depth - 1), bools(depth - 1)
    return st.one_of(
        below,
        st.tuples(st.sampled_from(["ge0", "eq0", "to_bool"]), number),
        st.tuples(st.sampled_from(["ge", "gt", "eq"]), number, number),
        st.tuples(st.just("not_"), below),
        st.tuples(st.sampled_from(["and_", "or_", "eq"]), below, below),
        st.tuples(st.just("where"), below, below, below),
    )


@cache
def floats(depth: int) -> st.SearchStrategy[Tree]:
    """Trees of kind float."""
    leaves = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, -1e4, 3.0]).map(Const), st.just(SLOPE)
    )
    if depth == 0:
        return leaves
    below = floats(depth - 1)
    return st.one_of(
        leaves,
        st.tuples(st.sampled_from(["fadd", "fsub", "fmul"]), below, below),
        st.tuples(st.just("to_float"), st.one_of(ints(depth - 1), bools(depth - 1))),
        st.tuples(st.just("where"), bools(depth - 1), below, below),
    )


@cache
def nested_choices(depth: int) -> st.SearchStrategy[Tree]:
    """Sums and products of trees of where, up to more leaves than are distributed."""
    below = nested_choices(depth - 1) if depth else st.sampled_from([Const(2.0), SLOPE])
    condition = st.sampled_from([IS_REAL, ("ge", q, k), ("eq0", h), ("not_", ("eq0", h))])
    choice = st.tuples(st.just("where"), condition, below, below)
    return st.one_of(choice, st.tuples(st.sampled_from(["fadd", "fmul"]), choice, choice))


SIZES = st.tuples(*[st.integers(1, 4)] * 4, st.integers(0, 3))


def check_value(tree: Tree, sizes: tuple[int, ...]) -> None:
    """Compare both readings of a tree at one size."""
    values, sources = grid(sizes), run_time(sizes)
    expr = construct(tree)
    wanted = naive(tree, values, sources)
    got = evaluate(expr, values, sources)
    full = np.broadcast_shapes(wanted.shape, got.shape, sizes)
    np.testing.assert_array_equal(
        np.broadcast_to(got, full), np.broadcast_to(wanted, full), err_msg=repr(expr)
    )
    assert {"b": "bool", "i": "int", "f": "float"}[wanted.dtype.kind] == expr.kind
    if expr.kind == "float":
        assert got.dtype == np.float32
