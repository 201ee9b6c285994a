"""Padding: a run-time vector over the keys, or their number, for each sequence of the batch.

A key is kept where the vector is not zero, or before the sequence's length; what is loaded is
indexed by b and k only, so a padded key is hidden from every query and head. Padded queries may
be hidden as well (``padding_queries``).
"""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, loads, variables
from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Parameters, Terms


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take the terms that load something and depend on the key but not on the query.

    Beside such a term also those of the query alone.
    """
    keys = tuple(term for term in terms if _is_of(term, "k", "q"))
    if not keys:
        return None
    parameters: Parameters = {"padding_input": _sources(keys)}
    queries = tuple(term for term in terms if _is_of(term, "q", "k"))
    if queries:
        parameters["padding_queries"] = _sources(queries)
    return FamilyMatch("padding", parameters, keys + queries)


def _is_of(term: Expr, index: str, other: str) -> bool:
    used = variables(term)
    return bool(loads(term)) and index in used and not {other, "h"} & used


def _sources(terms: Terms) -> str:
    return ", ".join(sorted({load.source for term in terms for load in loads(term)}))
