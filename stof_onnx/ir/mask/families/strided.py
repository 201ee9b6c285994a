"""Strided masks: a window or the own chunk, and beyond it every stride-th key.

    strided   d in a window, or d % stride == 0
    fixed     d in a window or the own chunk, or k % stride >= stride - stride_keys

These are the two patterns of Child et al., "Generating Long Sequences with Sparse Transformers";
both are named "strided", the second has the parameter ``stride_keys``. The causal mask around
them is reported as "causal+strided".
"""

from __future__ import annotations

from stof_onnx.ir.expr import Const, Expr, Op, Poly
from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Parameters, Terms
from stof_onnx.ir.mask.families.forms import KEY, congruence, dilation_of, union_with_window


def match(terms: Terms, facts: MaskFacts) -> FamilyMatch | None:
    """Take the first union of a window and a stride."""
    for term in terms:
        union = union_with_window(term)
        if union is None or len(union[1]) != 1 or union[0].dilation > 1:
            continue
        near, (far,) = union
        step = dilation_of(far, near.bound.alignment)
        stride: Parameters | None = _stride_of_keys(far) if step is None else {"stride": step}
        if stride is not None:
            return FamilyMatch("strided", {**near.parameters, **stride}, (term,))
    return None


def _stride_of_keys(term: Expr) -> Parameters | None:
    """``k % c == c - 1`` or ``k % c >= c - n``: the last n keys of every c."""
    found = congruence(term)
    if found is not None:
        is_last = found.of_key() == found.modulus - 1
        return {"stride": found.modulus, "stride_keys": 1} if is_last else None
    if not (isinstance(term, Op) and term.name == "ge0"):
        return None
    poly = Poly.of(term.args[0])
    for atom in poly.atoms():
        if isinstance(atom, Op) and atom.name == "mod" and Poly.of(atom.args[0]) == KEY:
            first = (Poly.of(atom) - poly).constant
            if first is not None and isinstance(atom.args[1], Const):
                stride = int(atom.args[1].value)
                return {"stride": stride, "stride_keys": stride - first}
    return None
