"""Rules by operator: how to read an element or the shape of a node's output.

Supporting an operator costs one decorated function in one of the rule files:

* a *view* rule moves an index from an output to an input (Transpose, Reshape, ...);
* an *element* rule computes an output's element from its inputs' (Add, Range, ...);
* a *shape* rule gives the output shape where no view or element rule implies it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stof_onnx.ir.expr import Expr

if TYPE_CHECKING:
    from stof_onnx.rewriter.symbolic.graph import SymbolicGraph

Index = tuple[Expr, ...]
Shape = tuple[Expr, ...]
# gs.Node and gs.Tensor carry no type information.
Node = Any
Tensor = Any

ViewRule = Callable[["SymbolicGraph", Node, int, Index], tuple[Tensor, Index]]
ElementRule = Callable[["SymbolicGraph", Node, int, Index], Expr]
ShapeRule = Callable[["SymbolicGraph", Node, int], Shape]

VIEW_RULES: dict[str, ViewRule] = {}
ELEMENT_RULES: dict[str, ElementRule] = {}
SHAPE_RULES: dict[str, ShapeRule] = {}


class Unliftable(Exception):  # noqa: N818 - not an error: the tensor becomes a run-time input
    """An element or shape can't be written as index arithmetic; the text says why."""


def view(*op_types: str) -> Callable[[ViewRule], ViewRule]:
    """Register a view rule."""

    def register(rule: ViewRule) -> ViewRule:
        for op_type in op_types:
            VIEW_RULES[op_type] = rule
        return rule

    return register


def element(*op_types: str) -> Callable[[ElementRule], ElementRule]:
    """Register an element rule."""

    def register(rule: ElementRule) -> ElementRule:
        for op_type in op_types:
            ELEMENT_RULES[op_type] = rule
        return rule

    return register


def shape(*op_types: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register a shape rule."""

    def register(rule: ShapeRule) -> ShapeRule:
        for op_type in op_types:
            SHAPE_RULES[op_type] = rule
        return rule

    return register
