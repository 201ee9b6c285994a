"""Prefix masks: causal, but the first keys are seen by every query.

    k <= q or k < prefix

The prefix is a number, or one at run time for each entry of the batch (``prefix_input``).
"""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, Op
from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Parameters, Terms
from stof_onnx.ir.mask.families.forms import (
    bounds,
    key_limit,
    query_limit,
    run_time_key_limit,
)
from stof_onnx.ir.mask.program import conjunction


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take a term that is causal or a prefix of the keys."""
    for term in terms:
        if not (isinstance(term, Op) and term.name == "or" and len(term.args) == 2):
            continue
        for causal, prefix in (term.args, term.args[::-1]):
            bound = next((b for b in bounds(causal) if b.is_causal), None)
            found = None if bound is None else _prefix(prefix, bound.alignment)
            if bound is not None and found is not None:
                parameters = {**found, "alignment": bound.alignment}
                return FamilyMatch("prefix", parameters, (term,))
    return None


def _prefix(expr: Expr, alignment: str) -> Parameters | None:
    """``k < p``, or ``k < p and q < p``: later queries see those keys anyway."""
    keys, *others = sorted(conjunction(expr), key=lambda term: key_limit(term) is None)
    limit = key_limit(keys)
    if limit is not None:
        is_both = all(query_limit(t, alignment) == limit for t in others)
        return {"prefix": limit} if is_both else None
    name = run_time_key_limit(keys)
    return None if name is None or others else {"prefix_input": name}
