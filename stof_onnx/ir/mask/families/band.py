"""Causal masks, sliding and dilated windows: bounds on the distance from query to key.

With d = q - k (aligned at the start) or d = q + Sk - Sq - k (aligned at the end, as
with a KV cache), a band keeps ``-window_right <= d <= window_left``, both inclusive.

    causal                  d >= 0
    causal_sliding_window   0 <= d <= window_left
    sliding_window          -window_right <= d <= window_left
    dilated                 any of them, or every pair, and d % dilation == 0
"""

from __future__ import annotations

from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Parameters, Terms
from stof_onnx.ir.mask.families.forms import DISTANCES, Bound, bounds, dilation_of


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take every bound on the distance, and a dilation, that has one alignment."""
    for alignment in DISTANCES:
        bound = Bound(None, None, alignment)
        used = []
        for term in terms:
            for narrower in bounds(term):
                both = bound.and_(narrower)
                if both is not None:
                    bound = both
                    used.append(term)
        steps = [(t, step) for t in terms if (step := dilation_of(t, alignment)) is not None]
        if steps:
            term, step = steps[0]
            return FamilyMatch("dilated", {**bound.parameters, "dilation": step}, (*used, term))
        if used:
            return FamilyMatch(*_describe(_at_end(bound, facts)), tuple(used))
    return None


def _at_end(bound: Bound, facts: MaskFacts) -> Bound:
    """The bound aligned at the end, where lengths are constants and that is what was meant."""
    offset = facts.end_offset
    if not offset or bound.alignment == "end" or bound.right is None:
        return bound
    left = None if bound.left is None else bound.left + offset
    moved = Bound(left, bound.right - offset, "end")
    return moved if moved.right in (0, left) else bound


def _describe(bound: Bound) -> tuple[str, Parameters]:
    if bound.is_causal:
        return "causal", {"alignment": bound.alignment}
    name = "causal_sliding_window" if bound.right == 0 else "sliding_window"
    return name, bound.parameters
