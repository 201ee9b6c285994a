"""Read an additive mask: which of its values mask, and which are a bias.

An additive mask is a tree of selections with numbers or loads at its leaves. 0 keeps,
a number below the mask threshold hides, anything else is a bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.ir.expr import Const, Expr, Load, Op, Poly, substitute
from stof_onnx.ir.expr.build import FALSE, TRUE, integer, not_, where
from stof_onnx.ir.mask.program import SCORE_BOUND, UNDERFLOW, conjunction


@dataclass(frozen=True)
class Additive:
    """keep where nothing hides, the bias there (None for 0), and the hiding numbers.

    Attributes:
        keep: where nothing hides.
        bias: what is added there; None for 0.
        fills: the numbers that hide.
        is_joint: whether the bias is added to what hides, too.
    """

    keep: Expr
    bias: Expr | None
    fills: frozenset[float]
    is_joint: bool = False


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
        left = read_additive(knowing(condition, yes), score_dtype)
        right = read_additive(knowing(not_(condition), no), score_dtype)
        return Additive(
            where(condition, left.keep, right.keep),
            _select_bias(condition, left, right),
            left.fills | right.fills,
            left.is_joint or right.is_joint,
        )
    if isinstance(expr, Op) and expr.name == "fadd":
        numbers = [arg for arg in expr.args if isinstance(arg, Const)]
        if len(numbers) == 1 and hides(float(numbers[0].value), score_dtype):
            (bias,) = (arg for arg in expr.args if arg != numbers[0])
            return Additive(FALSE, bias, frozenset({float(numbers[0].value)}), is_joint=True)
    return Additive(TRUE, expr, frozenset())


def knowing(fact: Expr, value: Expr) -> Expr:
    """A value where a fact holds: ``1 - mask[b, k]`` is 0 where ``mask[b, k] == 1``."""
    known: dict[Expr, Expr] = {}
    for term in conjunction(fact):
        if not (isinstance(term, Op) and term.name == "eq0"):
            continue
        poly = Poly.of(term.args[0])
        atoms = [atom for atom in poly.atoms() if isinstance(atom, Load)]
        parts = poly.split(atoms[0]) if len(atoms) == 1 and len(poly.atoms()) == 1 else None
        if parts is None or parts[0].constant not in (1, -1) or parts[1].constant is None:
            continue
        known[atoms[0]] = integer(-parts[1].constant // parts[0].constant)
    return substitute(value, known.get) if known else value


def _select_bias(condition: Expr, left: Additive, right: Additive) -> Expr | None:
    """The bias of a selection; where one side hides, the other side's bias serves both."""
    if left.bias == right.bias:
        return left.bias
    if left.is_joint or right.is_joint:
        zero = Const(0.0)
        return where(condition, left.bias or zero, right.bias or zero)
    if left.keep == FALSE:
        return right.bias
    if right.keep == FALSE:
        return left.bias
    zero = Const(0.0)
    return where(condition, left.bias or zero, right.bias or zero)
