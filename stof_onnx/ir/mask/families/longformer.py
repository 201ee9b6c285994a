"""Longformer and BigBird: a window, and global tokens that see and are seen beyond it.

    longformer   d in a window, or k < global_keys, or q < global_queries
    bigbird      the same, or pairs of a constant table

Equal numbers of keys and queries are ``global_tokens``. A run-time vector that marks them is the
``global_input``. The causal mask around either is reported as "causal+...". (Beltagy et al., 2020;
Zaheer et al., 2020.)
"""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, Load
from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Parameters, Terms
from stof_onnx.ir.mask.families.forms import (
    QUERY_POSITIONS,
    Window,
    flag_of,
    key_limit,
    query_limit,
    union_with_window,
)
from stof_onnx.ir.mask.program import K_INDEX


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take the first union of a window with global tokens."""
    for term in terms:
        union = union_with_window(term)
        # A window without an end on the left is causal: prefixes are another family.
        if union is None or union[0].bound.left is None:
            continue
        found = _with_globals(*union, facts)
        if found is not None:
            return FamilyMatch(found[0], found[1], (term,))
    return None


def _with_globals(near: Window, others: Terms, facts: MaskFacts) -> tuple[str, Parameters] | None:
    parameters: Parameters = dict(near.parameters)
    flags: set[str] = set()
    name = "longformer"
    alignment = near.bound.alignment
    position = QUERY_POSITIONS[alignment].expr()
    for other in others:
        keys, queries = key_limit(other), query_limit(other, alignment)
        flag = flag_of(other, K_INDEX) or flag_of(other, position)
        table = _table(other, facts)
        if keys is not None:
            parameters["global_keys"] = keys
        elif queries is not None:
            parameters["global_queries"] = queries
        elif flag is not None:
            flags.add(flag)
        elif table is not None:
            name = "bigbird"
            parameters["table"] = table
        else:
            return None
    if flags:
        parameters["global_input"] = ", ".join(sorted(flags))
    return name, name_globals(parameters)


def name_globals(parameters: Parameters) -> Parameters:
    """The parameters with equal numbers of global keys and queries as global tokens."""
    keys, queries = parameters.get("global_keys"), parameters.get("global_queries")
    if keys is None or keys != queries:
        return parameters
    rest = {k: v for k, v in parameters.items() if k not in ("global_keys", "global_queries")}
    return {**rest, "global_tokens": keys}


def _table(term: Expr, facts: MaskFacts) -> str | None:
    """The size of a table that the term loads and does nothing else with."""
    if not isinstance(term, Load) or term.source not in facts.names("block_table"):
        return None
    shape = next(o.shape for o in facts.program.operands if o.name == term.source)
    return f"{shape[1]}x{shape[2]}"
