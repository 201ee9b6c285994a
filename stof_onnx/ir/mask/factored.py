"""A mask's terms with what its alternatives share taken out.

Exporters write one mask in several ways: ``(a and b) or (a and c)`` for ``a and (b or c)``,
``(a or c) and (b or c)`` for ``(a and b) or c``. Families read the forms with the fewest parts.
"""

from __future__ import annotations

from itertools import combinations, permutations

from stof_onnx.ir.expr import Expr, Op, Poly
from stof_onnx.ir.expr.bounds import is_nonnegative
from stof_onnx.ir.expr.build import and_, not_, or_
from stof_onnx.ir.mask.program import conjunction

_ROUNDS = 8


def factored_terms(keep: Expr) -> tuple[Expr, ...]:
    """The terms of a conjunction of the same value as ``keep``."""
    terms = conjunction(keep)
    for _ in range(_ROUNDS):
        simpler = conjunction(and_(*_merged([part for t in terms for part in _split(t)])))
        if simpler == terms:
            break
        terms = simpler
    return terms


def _alternatives(term: Expr) -> tuple[Expr, ...]:
    return term.args if isinstance(term, Op) and term.name == "or" else (term,)


def _implies(part: Expr, bound: Expr) -> bool:
    """Whether a comparison holds wherever another one does."""
    comparisons = all(isinstance(e, Op) and e.name == "ge0" for e in (part, bound))
    if not comparisons or part == bound:
        return False
    assert isinstance(part, Op)
    assert isinstance(bound, Op)
    return is_nonnegative(Poly.of(bound.args[0]) - Poly.of(part.args[0]))


def _split(term: Expr) -> tuple[Expr, ...]:
    """``(a and b) or (a and c)`` as a, b or c."""
    alternatives = _absorbed(_alternatives(term))
    shared = set(conjunction(alternatives[0])).intersection(*map(conjunction, alternatives[1:]))
    if len(alternatives) == 1 or not shared:
        return (or_(*alternatives),)
    rests = (and_(*(t for t in conjunction(a) if t not in shared)) for a in alternatives)
    return (*shared, or_(*rests))


def _absorbed(alternatives: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """``a or (not a and b)`` as a or b, ``a or (a and b)`` as a."""
    single = {a for a in alternatives if len(conjunction(a)) == 1}
    kept = []
    for alternative in alternatives:
        terms = conjunction(alternative)
        if len(terms) > 1 and single.intersection(terms):
            continue
        kept.append(and_(*(t for t in terms if len(terms) == 1 or not_(t) not in single)))
    return tuple(kept)


def _merged(terms: list[Expr]) -> list[Expr]:
    """``(a or c) and (b or c)`` as (a and b) or c; ``c and (not c or b)`` as c and b.

    ``a and (b or c)`` where c implies a is (a and b) or c too.
    """
    single = {t for t in terms if len(_alternatives(t)) == 1}
    found = []
    for term in terms:
        parts = _alternatives(term)
        if len(parts) > 1 and single.intersection(parts):
            continue
        found.append(or_(*(p for p in parts if len(parts) == 1 or not_(p) not in single)))
    for bound, union in permutations(found, 2):
        implying = {p for p in _alternatives(union) if _implies(p, bound)}
        rest = [p for p in _alternatives(union) if p not in implying]
        if implying and rest:
            joined = or_(*implying, and_(bound, or_(*rest)))
            return [t for t in found if t not in (bound, union)] + [joined]
    for left, right in combinations(found, 2):
        shared = set(_alternatives(left)).intersection(_alternatives(right))
        if shared and left != right and min(len(_alternatives(t)) for t in (left, right)) > 1:
            rests = [or_(*(p for p in _alternatives(t) if p not in shared)) for t in (left, right)]
            joined = or_(*shared, and_(*rests))
            return [t for t in found if t not in (left, right)] + [joined]
    return found
