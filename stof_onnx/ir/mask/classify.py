"""Name the families a mask program is made of.

Classification describes; nothing depends on it for correctness. A family reads the
terms of the program's conjunction and takes those it knows. Adding a family: one file
in ``families`` and one line in :data:`FAMILIES` (see docs/masks.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.mask.factored import factored_terms
from stof_onnx.ir.mask.families import (
    alibi,
    band,
    chunked,
    dense,
    document,
    longformer,
    padding,
    prefix,
    strided,
    table,
)
from stof_onnx.ir.mask.families.family import FamilyMatch, MaskFacts, Parameters, Terms
from stof_onnx.ir.mask.program import MaskProgram

if TYPE_CHECKING:
    from stof_onnx.ir.block_table import BlockTable

FAMILIES: tuple[Callable[[Terms, MaskFacts], FamilyMatch | None], ...] = (
    band.match,
    prefix.match,
    chunked.match,
    strided.match,
    longformer.match,
    table.match,
    dense.match,
    document.match,
    padding.match,
)


@dataclass(frozen=True)
class MaskKind:
    """Name and parameters of a mask, e.g. "causal+padding"."""

    name: str
    parameters: Parameters


def classify(
    program: MaskProgram,
    tables: Mapping[str, npt.NDArray[np.bool_] | BlockTable] | None = None,
    lengths: tuple[int, int] | None = None,
) -> MaskKind:
    """The families of a program, in the order of :data:`FAMILIES`.

    Terms that no family takes make the mask "arbitrary"; a program without terms is
    "none"; a bias adds "alibi" or "bias".

    Args:
        program: to name.
        tables: the constant tables it loads, by operand name: bool [G, Sq, Sk] or block
            tables. Structure is found in those that are given; others are "arbitrary".
        lengths: (Sq, Sk) where both are constants of the model, so that a number in the
            program may stand for their difference.
    """
    facts = MaskFacts(program, tables or {}, None if lengths is None else lengths[1] - lengths[0])
    terms = factored_terms(program.keep)
    names: list[str] = []
    parameters: Parameters = {}
    for family in FAMILIES:
        found = family(terms, facts)
        if found is None:
            continue
        names.append(found.name)
        parameters.update(found.parameters)
        terms = tuple(term for term in terms if term not in found.terms)
    if terms and "arbitrary" not in names:
        names.insert(0, "arbitrary")
    if program.bias is not None:
        names.append("alibi" if alibi.is_alibi(program.bias) else "bias")
    return MaskKind("+".join(_merged(names)) or "none", parameters)


def _merged(names: list[str]) -> list[str]:
    """Each name once; bands that two terms give, one a table and one arithmetic, as one."""
    distinct = list(dict.fromkeys(names))
    if "causal_sliding_window" in distinct or {"causal", "sliding_window"} <= set(distinct):
        bands = ("causal", "sliding_window", "causal_sliding_window")
        first = next(i for i, name in enumerate(distinct) if name in bands)
        distinct[first] = "causal_sliding_window"
        distinct = [n for i, n in enumerate(distinct) if n not in bands or i == first]
    return distinct
