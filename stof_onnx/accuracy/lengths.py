"""Sequence lengths at which the masks of an optimized model change."""

from __future__ import annotations

from onnx import ModelProto

from stof_onnx.ir.expr import Const, walk
from stof_onnx.ir.mask.program import MaskProgram
from stof_onnx.ir.operators.masked_attention import node_attributes
from stof_onnx.ir.operators.registry import DOMAIN

# Longer runs cost more than the check is worth; the masks' own proof goes further.
_LONGEST = 1024
_USUAL = 127
_MOST = 2


def telling_lengths(model: ModelProto) -> tuple[int, ...]:
    """The longest few lengths beyond the usual ones that a mask's constants call for.

    A constant table is run at its full size, a window of w a little beyond w.

    Args:
        model: with stof nodes.
    """
    found: set[int] = set()
    for node in model.graph.node:
        attributes = node_attributes(node) if node.domain == DOMAIN else {}
        if "mask" not in attributes:
            continue
        program = MaskProgram.from_json(attributes["mask"])
        found |= {operand.shape[1] for operand in program.operands if operand.kind == "block_table"}
        for part in walk(program.keep):
            if isinstance(part, Const) and part.kind == "int":
                found.add(abs(int(part.value)) + 3)
    return tuple(sorted(length for length in found if _USUAL < length <= _LONGEST)[-_MOST:])
