"""Constant masks stored as block tables, with no arithmetic structure found."""

from __future__ import annotations

from stof_onnx.ir.expr import Expr, loads
from stof_onnx.ir.mask.families.family import FamilyMatch
from stof_onnx.ir.mask.program import MaskProgram


def match(terms: tuple[Expr, ...], program: MaskProgram) -> FamilyMatch | None:
    """Take the terms that load a block table."""
    tables = {o.name: o for o in program.operands if o.kind == "block_table"}
    used = tuple(t for t in terms if any(load.source in tables for load in loads(t)))
    if not used:
        return None
    first = next(load.source for t in used for load in loads(t) if load.source in tables)
    groups, queries, keys = tables[first].shape
    shape = f"{queries}x{keys}" if groups == 1 else f"{groups}x{queries}x{keys}"
    return FamilyMatch("arbitrary", {"table": shape}, used)
