"""What a mask family is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.expr import Expr
from stof_onnx.ir.mask.program import MaskProgram

if TYPE_CHECKING:
    from stof_onnx.ir.block_table import BlockTable

Parameters = dict[str, int | float | str]
Terms = tuple[Expr, ...]


@dataclass(frozen=True)
class MaskFacts:
    """What is known beside the terms.

    Attributes:
        program: whose terms they are.
        tables: constant tables by operand name, as far as they were given.
        end_offset: Sk - Sq where both are constants of the model; else None.
    """

    program: MaskProgram
    tables: Mapping[str, npt.NDArray[np.bool_] | BlockTable] = field(default_factory=dict)
    end_offset: int | None = None

    def names(self, kind: str) -> set[str]:
        """Names of the operands of a kind."""
        return {operand.name for operand in self.program.operands if operand.kind == kind}

    def dense(self, name: str) -> npt.NDArray[np.bool_] | None:
        """A constant table as bool [G, Sq, Sk]; None if it wasn't given."""
        table = self.tables.get(name)
        if table is None or isinstance(table, np.ndarray):
            return table
        return table.to_dense()


@dataclass(frozen=True)
class FamilyMatch:
    """The terms of a conjunction that a family explains.

    Attributes:
        name: of the family, e.g. "causal".
        parameters: for the report.
        terms: the explained terms.
    """

    name: str
    parameters: Parameters
    terms: Terms
