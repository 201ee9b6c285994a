"""Padding: a run-time vector over the keys, one row a sequence of the batch.

A key is kept where the vector is not zero; the vector is indexed by b and k only, so
a padded key is hidden from every query and head.
"""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, loads, variables
from stof_onnx.ir.mask.families.family import FamilyMatch
from stof_onnx.ir.mask.program import MaskProgram


def match(terms: tuple[Expr, ...], program: MaskProgram) -> FamilyMatch | None:
    """Take the terms that load something and depend on the key but not on the query."""
    used = tuple(
        term
        for term in terms
        if loads(term) and "k" in variables(term) and not {"q", "h"} & variables(term)
    )
    if not used:
        return None
    names = sorted({load.source for term in used for load in loads(term)})
    return FamilyMatch("padding", {"padding_input": ", ".join(names)}, used)
