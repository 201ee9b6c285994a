"""Dense run-time masks: a tensor over query and key that arrives with each call."""

from __future__ import annotations

from stof_onnx.ir.expr import loads, variables
from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Terms


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take the terms with a tensor load that depends on both query and key."""
    tensors = facts.names("tensor")
    used = tuple(
        term
        for term in terms
        if any(load.source in tensors and {"q", "k"} <= variables(load) for load in loads(term))
    )
    return FamilyMatch("dense", {}, used) if used else None
