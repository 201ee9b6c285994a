"""What a mask family answers."""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.ir.expr import Expr


@dataclass(frozen=True)
class FamilyMatch:
    """The terms of a conjunction that a family explains.

    Attributes:
        name: of the family, e.g. "causal".
        parameters: for the report.
        terms: the explained terms.
    """

    name: str
    parameters: dict[str, int | float | str]
    terms: tuple[Expr, ...]
