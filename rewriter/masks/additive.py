"""Read an additive mask: which of its values mask, and which are a bias.

An additive mask is a tree of selections with numbers or loads at its leaves. 0 keeps,
a number below the mask threshold hides, anything else is a bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.ir.expr import Const, Expr, Op
from stof_onnx.ir.expr.build import FALSE, TRUE, where
from stof_onnx.ir.mask.program import SCORE_BOUND, UNDERFLOW


@dataclass(frozen=True)
class Additive:
    """keep where nothing hides, the bias there (None for 0), and the hiding numbers."""

    keep: Expr
    bias: Expr | None
    fills: frozenset[float]


def hiding_threshold(score_dtype: str) -> float:
    """Score + any number up to this one has probability 0 beside any kept score."""
    return -2.0 * SCORE_BOUND[score_dtype] - UNDERFLOW


def hides(value: float, score_dtype: str) -> bool:
    """Whether a number added to or written over a score hides its pair."""
    return value <= hiding_threshold(score_dtype)


def read_additive(expr: Expr, score_dtype: str) -> Additive:
    """Separate masking from bias in an additive mask."""
    if isinstance(expr, Const):
        value = float(expr.value)
        if value == 0.0:
            return Additive(TRUE, None, frozenset())
        if hides(value, score_dtype):
            return Additive(FALSE, None, frozenset({value}))
        return Additive(TRUE, expr, frozenset())
    if isinstance(expr, Op) and expr.name == "where":
        condition, yes, no = expr.args
        left, right = read_additive(yes, score_dtype), read_additive(no, score_dtype)
        return Additive(
            where(condition, left.keep, right.keep),
            _select_bias(condition, left, right),
            left.fills | right.fills,
        )
    return Additive(TRUE, expr, frozenset())


def _select_bias(condition: Expr, left: Additive, right: Additive) -> Expr | None:
    """The bias of a selection; where one side hides, the other side's bias serves both."""
    if left.bias is None and right.bias is None:
        return None
    if left.keep == FALSE:
        return right.bias
    if right.keep == FALSE:
        return left.bias
    zero = Const(0.0)
    return where(condition, left.bias or zero, right.bias or zero)
