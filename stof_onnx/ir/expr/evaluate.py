"""Evaluate expressions with numpy, substitute in them, and write them as text or JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import build
from stof_onnx.ir.expr.node import Const, Expr, Kind, Load, Op, Var
from stof_onnx.ir.expr.ops import OPS, Array

Json = Any

_LOAD_TYPES: dict[Kind, type[np.generic]] = {
    "bool": np.bool_,
    "int": np.int64,
    "float": np.float32,
}


def evaluate(
    expr: Expr, variables: Mapping[str, Array | int], sources: Mapping[str, Array]
) -> Array:
    """The value of an expression.

    Args:
        expr: to evaluate.
        variables: value of each variable; arrays broadcast against each other, as
            the index q of shape [Sq, 1] and k of shape [1, Sk] do.
        sources: array for each load source.

    Raises:
        IndexError: if a load reaches outside its source.
    """
    memo: dict[Expr, Array] = {}

    def value(node: Expr) -> Array:
        if node not in memo:
            memo[node] = compute(node)
        return memo[node]

    def compute(node: Expr) -> Array:
        if isinstance(node, Const):
            return np.asarray(node.value, np.float32 if node.kind == "float" else None)
        if isinstance(node, Var):
            return np.asarray(variables[node.name])
        if isinstance(node, Load):
            at = tuple(value(i) for i in node.index)
            source = sources[node.source]
            if isinstance(source, np.ndarray) and any(i.size and i.min() < 0 for i in at):
                # numpy would count from the end, which no kernel does.
                raise IndexError(f"{node.source!r} is read at a negative index")
            result = source[at]
            return np.asarray(result).astype(_LOAD_TYPES[node.kind])
        assert isinstance(node, Op)
        with np.errstate(over="ignore", invalid="ignore"):
            return OPS[node.name].numpy(*(value(arg) for arg in node.args))

    result = value(expr)
    # The closures form a cycle that would keep every intermediate array alive.
    memo.clear()
    return result


_REBUILD: dict[str, Callable[..., Expr]] = {
    "floordiv": build.floordiv,
    "mod": build.mod,
    "abs": build.absolute,
    "min": build.minimum,
    "max": build.maximum,
    "ge0": build.ge0,
    "eq0": build.eq0,
    "and": build.and_,
    "or": build.or_,
    "not": build.not_,
    "where": build.where,
    "fadd": build.fadd,
    "fmul": build.fmul,
    "float": build.to_float,
}


def rebuild(name: str, args: tuple[Expr, ...]) -> Expr:
    """The operation ``name`` on ``args``, in normal form.

    Raises:
        MalformedNodeError: for an unknown operation or a wrong number of arguments.
    """
    if name in ("add", "mul"):
        if not args:
            raise MalformedNodeError(f"mask operation {name!r} with 0 arguments")
        return functools.reduce(build.add if name == "add" else build.mul, args)
    if name not in _REBUILD:
        raise MalformedNodeError(f"unknown mask operation {name!r}", f"one of {sorted(OPS)}")
    try:
        return _REBUILD[name](*args)
    except (TypeError, NotImplementedError) as error:
        raise MalformedNodeError(f"mask operation {name!r} with {len(args)} arguments") from error


def substitute(expr: Expr, replace: Callable[[Expr], Expr | None]) -> Expr:
    """Replace variables and loads, bottom up, keeping the normal form.

    Args:
        expr: to rewrite.
        replace: returns the new expression of a Var or Load, or None to keep it.
            A load is offered with its index already rewritten.
    """
    memo: dict[Expr, Expr] = {}

    def visit(node: Expr) -> Expr:
        if node in memo:
            return memo[node]
        result: Expr
        if isinstance(node, Op):
            result = rebuild(node.name, tuple(visit(arg) for arg in node.args))
        elif isinstance(node, Load):
            moved = Load(node.source, tuple(visit(i) for i in node.index), node.kind)
            result = replace(moved) or moved
        elif isinstance(node, Var):
            result = replace(node) or node
        else:
            result = node
        memo[node] = result
        return result

    return visit(expr)


def to_text(expr: Expr) -> str:
    """The expression as a person writes it: "q - k >= 0 and attention_mask[b, k]"."""
    if isinstance(expr, Const):
        return f"{expr.value:g}" if expr.kind == "float" else str(expr.value)
    if isinstance(expr, Var):
        return expr.name
    if isinstance(expr, Load):
        return f"{expr.source}[{', '.join(to_text(i) for i in expr.index)}]"
    assert isinstance(expr, Op)
    info = OPS[expr.name]
    if expr.name in ("floordiv", "mod"):
        return info.text.format(*(_parenthesised(arg, expr.name) for arg in expr.args))
    if info.infix:
        parts = [_parenthesised(arg, expr.name) for arg in expr.args]
        return info.infix.join(parts).replace("+ -", "- ")
    if expr.name == "not" and isinstance(expr.args[0], Op) and expr.args[0].name == "eq0":
        return f"{to_text(expr.args[0].args[0])} != 0"
    return info.text.format(*(to_text(arg) for arg in expr.args))


def _parenthesised(arg: Expr, outer: str) -> str:
    is_negated = isinstance(arg, Op) and arg.name == "mul" and arg.args[0] == Const(-1)
    if isinstance(arg, Op) and is_negated and outer == "add":
        return "-" + " * ".join(to_text(factor) for factor in arg.args[1:])
    loose = {
        "mul": ("add",),
        "floordiv": ("add", "mul"),
        "mod": ("add", "mul"),
        "and": ("or",),
        "or": ("and",),
    }.get(outer, ())
    text = to_text(arg)
    return f"({text})" if isinstance(arg, Op) and arg.name in loose else text


def to_json(expr: Expr) -> Json:
    """Nested lists: ["ge0", ["add", "q", ...]]; a string is a variable.

    The bound of an index is not written: the reader knows its variables.
    """
    if isinstance(expr, Const):
        if expr.kind == "float":
            return ["float_const", repr(expr.value)]
        return expr.value
    if isinstance(expr, Var):
        return expr.name
    if isinstance(expr, Load):
        return ["load", expr.source, expr.kind, [to_json(i) for i in expr.index]]
    assert isinstance(expr, Op)
    return [expr.name, *(to_json(arg) for arg in expr.args)]


_KINDS: dict[str, Kind] = {"bool": "bool", "int": "int", "float": "float"}


def from_json(data: Json, variables: Mapping[str, Var]) -> Expr:
    """Read what :func:`to_json` wrote.

    Raises:
        MalformedNodeError: if the data is not such an expression.
    """
    try:
        return _read(data, variables)
    except RecursionError as error:
        raise MalformedNodeError("a mask expression nested too deeply") from error


def _read(data: Json, variables: Mapping[str, Var]) -> Expr:
    try:
        if isinstance(data, bool | int):
            return Const(data)
        if isinstance(data, str):
            return variables[data]
        head, *rest = data
        if head == "float_const":
            return Const(float(rest[0]))
        if head == "load":
            source, kind, index = rest
            return _read_load(str(source), _KINDS[kind], [_read(i, variables) for i in index])
        return _read_operation(str(head), [_read(arg, variables) for arg in rest])
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise MalformedNodeError(f"{data!r:.80} is not a mask expression") from error


def _read_load(source: str, kind: Kind, index: Sequence[Expr]) -> Expr:
    for i in index:
        if i.kind != "int":
            raise MalformedNodeError(f"load of {source!r} with an index of kind {i.kind}")
    return Load(source, tuple(index), kind)


def _read_operation(name: str, args: Sequence[Expr]) -> Expr:
    """An operation whose arguments come from a file, so that nothing is known of them."""
    kinds = [arg.kind for arg in args]
    if name in OPS and args:
        takes = OPS[name].takes
        fits = (
            set(kinds) == {takes}
            if takes is not None
            else kinds[0] == "bool" and len(set(kinds[1:])) < 2
        )
        if not fits:
            raise MalformedNodeError(f"mask operation {name!r} on {', '.join(kinds)}")
        if name in ("floordiv", "mod") and args[-1] == Const(0):
            raise MalformedNodeError(f"mask operation {name!r} divides by 0")
    return rebuild(name, tuple(args))
