"""Name the families a mask program is made of.

Classification describes; nothing depends on it for correctness. A family reads the
terms of the program's conjunction and takes those it knows. Adding a family: one file
in ``families`` and one line in :data:`FAMILIES` (see docs/masks.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stof_onnx.ir.expr import Expr
from stof_onnx.ir.mask.families import band, dense, padding, table
from stof_onnx.ir.mask.families.family import FamilyMatch
from stof_onnx.ir.mask.program import MaskProgram, conjunction

FAMILIES: tuple[Callable[[tuple[Expr, ...], MaskProgram], FamilyMatch | None], ...] = (
    band.match,
    table.match,
    dense.match,
    padding.match,
)


@dataclass(frozen=True)
class MaskKind:
    """Name and parameters of a mask, e.g. "causal+padding"."""

    name: str
    parameters: dict[str, int | float | str]


def classify(program: MaskProgram) -> MaskKind:
    """The families of a program, in the order of :data:`FAMILIES`.

    Terms that no family takes make the mask "arbitrary"; a program without terms is
    "none", with a bias "bias".
    """
    terms = conjunction(program.keep)
    names: list[str] = []
    parameters: dict[str, int | float | str] = {}
    for family in FAMILIES:
        found = family(terms, program)
        if found is None:
            continue
        names.append(found.name)
        parameters.update(found.parameters)
        terms = tuple(term for term in terms if term not in found.terms)
    if terms and "arbitrary" not in names:
        names.insert(0, "arbitrary")
    if program.bias is not None:
        names.append("bias")
    return MaskKind("+".join(names) or "none", parameters)
