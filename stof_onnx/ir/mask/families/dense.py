"""Dense run-time masks: a tensor over query and key that arrives with each call."""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, loads, variables
from stof_onnx.ir.mask.families.family import FamilyMatch
from stof_onnx.ir.mask.program import MaskProgram


def match(terms: tuple[Expr, ...], program: MaskProgram) -> FamilyMatch | None:
    """Take the terms with a tensor load that depends on both query and key."""
    tensors = {o.name for o in program.operands if o.kind == "tensor"}
    used = tuple(
        term
        for term in terms
        if any(load.source in tensors and {"q", "k"} <= variables(load) for load in loads(term))
    )
    return FamilyMatch("dense", {}, used) if used else None
