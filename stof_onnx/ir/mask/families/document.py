"""Documents: packed sequences whose tokens see their own document only.

    document[b, q] == document[b, k]

The ids come from one run-time vector, or from one for the queries and one for the keys.
"""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, Load, Op, Poly, variables
from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Terms

_INDICES = {"h", "q", "k"}


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take the terms that compare an element at q with one at k."""
    found = {term: pair for term in terms if (pair := _ids(term)) is not None}
    if not found:
        return None
    sources = sorted({name for pair in found.values() for name in pair})
    return FamilyMatch("document", {"document_input": ", ".join(sources)}, tuple(found))


def _ids(term: Expr) -> tuple[str, str] | None:
    """The sources of both ids."""
    if not (isinstance(term, Op) and term.name == "eq0"):
        return None
    difference = Poly.of(term.args[0])
    ids = {frozenset(variables(atom) & _INDICES): atom for atom in difference.atoms()}
    query, key = ids.get(frozenset("q")), ids.get(frozenset("k"))
    if not isinstance(query, Load) or not isinstance(key, Load):
        return None
    wanted = Poly.of(query) - Poly.of(key)
    return (query.source, key.source) if difference in (wanted, -wanted) else None
