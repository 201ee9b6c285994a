"""What hidden pairs hold in the end, when several stages mask the scores.

It matters in rows without a key only, where the hidden pairs share the weight: a pair to which
the number was added twice weighs nothing beside one to which it was added once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stof_onnx.ir.expr import Expr
from stof_onnx.ir.expr.build import FALSE, and_, not_, or_
from stof_onnx.ir.mask.program import SCORE_BOUND, FillMode, overflows, swallows_scores
from stof_onnx.rewriter.attention.block import MaskStage


class NotLiftable(Exception):  # noqa: N818 - leads to the dense mask, not to a failure
    """The stages don't make a program; the text says why."""


class UnknownDimension(NotLiftable):
    """The mask depends on a dimension that the scores don't have.

    Attributes:
        name: of the dimension.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"the mask depends on dimension {name!r}, not of the scores")
        self.name = name


@dataclass(frozen=True)
class StageRead:
    """What one stage does.

    Attributes:
        stage: as matched.
        keep: the pairs that it doesn't hide.
        bias: added to those; None for nothing.
        fills: numbers that the others get.
        is_joint: whether the others get the bias too.
        assumptions: what the reading relies on.
    """

    stage: MaskStage
    keep: Expr
    bias: Expr | None
    fills: frozenset[float]
    is_joint: bool = False
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filled:
    """``fill``, ``fill_mode`` and ``again`` of the program."""

    fill: float
    mode: FillMode
    again: Expr = FALSE


def combine_fills(read: Sequence[StageRead], score_dtype: str) -> Filled:
    """The one number that hidden pairs get, how, and which get it twice.

    Raises:
        NotLiftable: if no program gives a row without keys what the stages give it.
    """
    fills = {fill for stage in read for fill in stage.fills}
    if not fills:
        return Filled(-math.inf, "replace")
    floor = _floor(read)
    if floor is not None and floor >= max(fills):
        _require_flat(read, floor, score_dtype)
        return Filled(floor, "replace")
    finite = {fill for fill in fills if not overflows(fill, score_dtype)}
    if not finite:
        return Filled(-math.inf, "replace")
    (fill, *others) = finite
    if others or (fills != finite and not overflows(2 * fill, score_dtype)):
        raise NotLiftable(f"hidden pairs get different numbers: {sorted(fills)}")
    _require_order(read)
    _require_exact_sums(read, fill, score_dtype)
    masking = [stage for stage in read if stage.fills]
    swallows = swallows_scores(fill, score_dtype)
    has_bias = any(stage.bias is not None for stage in read)
    if all(stage.stage.mode == "add" for stage in masking):
        if all(stage.bias is None or stage.is_joint for stage in masking):
            # Everything is added, in the graph and in the program.
            return Filled(fill, "add", _again(masking, fill, score_dtype))
        if len(masking) > 1 or sum(stage.bias is not None for stage in read) > 1:
            raise NotLiftable("a bias beside the mask and another in it")
    if not swallows and (has_bias or len(masking) > 1):
        raise NotLiftable("a bias or a second mask beside a fill that does not swallow the score")
    if has_bias and len(masking) > 1 and any(s.stage.mode == "add" for s in masking):
        raise NotLiftable("a bias, an added mask and a written one")
    if len(masking) == 1 and masking[0].stage.mode == "add" and not swallows:
        return Filled(fill, "add")
    # Written; or added where the number swallows the score.
    return Filled(fill, "replace", _again(masking, fill, score_dtype))


def _floor(read: Sequence[StageRead]) -> float | None:
    """The number that limits all scores from below, after everything else.

    Raises:
        NotLiftable: something is masked or added behind it, or a bias before it.
    """
    at = [i for i, stage in enumerate(read) if stage.stage.mode == "floor"]
    if not at:
        return None
    behind = [stage for stage in read[at[-1] + 1 :] if stage.fills]
    if behind or len(at) > 1 or any(stage.bias is not None for stage in read):
        name = read[at[-1]].stage.node.name
        raise NotLiftable(f"{name!r} limits scores from below between masks, or with a bias")
    return read[at[-1]].stage.written


def _require_flat(read: Sequence[StageRead], floor: float, score_dtype: str) -> None:
    """Below the floor must be every score that a number was added to, however large."""
    for stage in read:
        if stage.stage.mode != "add":
            continue
        for fill in stage.fills:
            is_flat = math.isinf(fill) or swallows_scores(fill, score_dtype)
            if not is_flat and fill + SCORE_BOUND[score_dtype] > floor:
                raise NotLiftable("scores show through a number that is limited from below")


def _require_exact_sums(read: Sequence[StageRead], fill: float, score_dtype: str) -> None:
    """A sum that is rounded and then scaled is another one than the scaled numbers' sum."""
    if swallows_scores(fill, score_dtype):
        return
    for stage in read:
        mantissa = math.frexp(abs(stage.stage.factor))[0]
        if stage.fills and stage.stage.mode == "add" and mantissa != 0.5:
            raise NotLiftable(
                "scores are scaled after a number that doesn't swallow them was added"
            )
        if stage.fills and stage.stage.is_shifted:
            raise NotLiftable("a number that doesn't swallow scores is added to shifted ones")


def _require_order(read: Sequence[StageRead]) -> None:
    written = [i for i, s in enumerate(read) if s.fills and s.stage.mode != "add"]
    if written and any(stage.bias is not None for stage in read[written[-1] + 1 :]):
        raise NotLiftable("a bias is added after the scores were overwritten")


def _again(masking: Sequence[StageRead], fill: float, score_dtype: str) -> Expr:
    """The pairs that end up with twice the number, or with minus infinity where that is the same.

    What is written last counts; what is added since then adds up.
    """
    hidden: Expr = FALSE
    again: Expr = FALSE
    for stage in masking:
        drop = not_(stage.keep)
        if len(stage.fills) > 1:
            raise NotLiftable(f"{stage.stage.node.name!r} hides by {sorted(stage.fills)}")
        is_infinite = stage.fills != {fill}
        if stage.stage.mode != "add":
            again = or_(again, drop) if is_infinite else and_(again, stage.keep)
        elif is_infinite:
            again = or_(again, drop)
        else:
            if and_(again, drop) != FALSE and not overflows(2 * fill, score_dtype):
                raise NotLiftable("three masks are added one after the other")
            again = or_(again, and_(hidden, drop))
        hidden = or_(hidden, drop)
    return again
