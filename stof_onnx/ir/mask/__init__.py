"""Masks: programs, their families and their proof-ready evaluation."""

from stof_onnx.ir.mask.classify import MaskKind, classify
from stof_onnx.ir.mask.program import MaskProgram, Operand

__all__ = ["MaskKind", "MaskProgram", "Operand", "classify"]
