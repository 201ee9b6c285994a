"""What a float mask of ONNX Attention hides, and what it adds.

    attn_mask = bias + Where(keep, 0, lowest)   ->   condition keep, bias

A row that a float mask hides with the lowest finite number throughout is 0 in ONNX Runtime
1.32, like a row that -inf or a boolean mask hides, and the mean of all values by the
specification. Where the graph shows that a term of the mask hides, it is read as the boolean
mask that ONNX Runtime makes of it; a mask of which nothing is known is added as specified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from stof_onnx.ir.expr import Const, Expr, Op, Var
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.graph import Tensor, numpy_type, producer
from stof_onnx.rewriter.lowerings.subgraph import SubGraph, element_type, is_one
from stof_onnx.rewriter.symbolic import Unliftable


@dataclass
class FloatMask:
    """Attributes: booleans, all true where a pair is kept; tensors to add to the scores."""

    conditions: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)


def read_float_mask(g: SubGraph, mask: Tensor) -> FloatMask:
    """Take a mask apart through Add and Where; one that hides nothing visibly is one bias."""
    read = FloatMask()
    frontier = [mask]
    while frontier:
        term = frontier.pop()
        values = _values(g, term)
        if values == {0.0}:
            continue
        if values <= {0.0} | _hiding(term):
            zero = g.number(0.0, element_type(term))
            read.conditions.append(g.common("Equal", term, zero))
        else:
            frontier += _parts(g, term, read)
    return read if read.conditions else FloatMask([], [mask])


def _parts(g: SubGraph, term: Tensor, read: FloatMask) -> list[Tensor]:
    """The terms of a term; a condition of it, or the term itself, goes to ``read``."""
    node = producer(term)
    if node is not None and node.op == "Add":
        return list(node.inputs)
    if node is not None and node.op == "Where":
        condition, yes, no = node.inputs
        if _values(g, no) <= _hiding(term):
            read.conditions.append(condition)
            return [yes]
        if _values(g, yes) <= _hiding(term):
            read.conditions.append(g.common("Not", condition))
            return [no]
    read.biases.append(term)
    return []


def _hiding(term: Tensor) -> set[float | None]:
    """The numbers that hide a pair, in the term's type."""
    dtype = numpy_type(term)
    if dtype is None or not np.issubdtype(dtype, np.floating):
        return set()
    return {float(np.finfo(dtype).min), -math.inf}


def _values(g: SubGraph, term: Tensor) -> set[float | None]:
    """The numbers that a term's elements are; with None if they may be others."""
    try:
        dims = g.sym.shape(term)
    except Unliftable:
        return {None}
    index = tuple(
        integer(0) if is_one(dim) else Var(f"i{axis}", dim) for axis, dim in enumerate(dims)
    )
    return _leaves(g.sym.element(term, index))


def _leaves(expr: Expr) -> set[float | None]:
    """The numbers that a tree of selections ends in; None for anything else."""
    if isinstance(expr, Op) and expr.name == "where":
        return _leaves(expr.args[1]) | _leaves(expr.args[2])
    return {float(expr.value)} if isinstance(expr, Const) else {None}
