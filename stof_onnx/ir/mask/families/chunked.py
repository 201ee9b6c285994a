"""Chunked masks: a query sees the keys of its own chunk, or of chunks near it.

With D = q // chunk - k // chunk, a chunked mask keeps D == 0, or
``-chunks_right <= D <= chunks_left``, both inclusive; a side without a bound lacks its
parameter. Alignment "end" counts the chunk of a query at q + Sk - Sq. With a causal mask it is
"causal+chunked" (Llama 4).
"""

from __future__ import annotations

import dataclasses

from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Terms
from stof_onnx.ir.mask.families.forms import Bound, bounds
from stof_onnx.ir.mask.program import conjunction


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take every bound on the distance in chunks that has one chunk size and alignment."""
    whole: Bound | None = None
    used = []
    for term in terms:
        for bound in bounds(term):
            both = bound if whole is None else whole.and_(bound)
            if bound.chunk > 1 and both is not None:
                whole = both
                used.append(term)
    if whole is None:
        return None
    if whole.right is None and _is_causal(facts, whole.alignment):
        whole = dataclasses.replace(whole, right=0)
    return FamilyMatch("chunked", whole.parameters, tuple(used))


def _is_causal(facts: MaskFacts, alignment: str) -> bool:
    """Whether the whole mask hides later keys, and so later chunks."""
    found = (bound for term in conjunction(facts.program.keep) for bound in bounds(term))
    return any(bound.is_causal and bound.alignment == alignment for bound in found)
