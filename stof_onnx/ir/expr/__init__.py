"""Expressions over indices, dimensions and tensors: what masks are made of."""

from stof_onnx.ir.expr.evaluate import (
    evaluate,
    from_json,
    substitute,
    to_json,
    to_text,
)
from stof_onnx.ir.expr.node import Const, Expr, Kind, Load, Op, Var, loads, variables, walk
from stof_onnx.ir.expr.poly import Poly

__all__ = [
    "Const",
    "Expr",
    "Kind",
    "Load",
    "Op",
    "Poly",
    "Var",
    "evaluate",
    "from_json",
    "loads",
    "substitute",
    "to_json",
    "to_text",
    "variables",
    "walk",
]
