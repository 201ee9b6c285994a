"""Constant masks stored as block tables, by the structure of their contents."""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, Load, Op, Poly, loads
from stof_onnx.ir.expr.build import not_
from stof_onnx.ir.mask.constant_structure import find_structure
from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Terms
from stof_onnx.ir.mask.families.forms import KEY, QUERY_POSITIONS


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take the terms that load a block table."""
    tables = {o.name: o for o in facts.program.operands if o.kind == "block_table"}
    used = tuple(t for t in terms if any(load.source in tables for load in loads(t)))
    if not used:
        return None
    first = next(load.source for t in used for load in loads(t) if load.source in tables)
    groups, queries, keys = tables[first].shape
    shape = f"{queries}x{keys}" if groups == 1 else f"{groups}x{queries}x{keys}"
    found = _structure(used[0], facts) if len(used) == 1 else None
    if found is None:
        return FamilyMatch("arbitrary", {"table": shape}, used)
    return FamilyMatch(found.name, {**found.parameters, "table": shape}, used)


def _structure(term: Expr, facts: MaskFacts) -> FamilyMatch | None:
    """What a term that is a table, or its negation, at (q, k) keeps."""
    is_negated = isinstance(term, Op) and term.name == "not"
    load = not_(term) if is_negated else term
    if not isinstance(load, Load) or len(load.index) != 3:
        return None
    alignments = [a for a, p in QUERY_POSITIONS.items() if Poly.of(load.index[1]) == p]
    if not alignments or Poly.of(load.index[2]) != KEY:
        return None
    keep = facts.dense(load.source)
    if keep is None:
        return None
    found = find_structure(~keep if is_negated else keep, alignments[0])
    return None if found is None else FamilyMatch(found.name, dict(found.parameters), (term,))
