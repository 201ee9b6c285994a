"""Masks: programs, their families, tiles and statistics."""

from stof_onnx.ir.mask.classify import MaskKind, classify
from stof_onnx.ir.mask.program import MaskProgram, Operand
from stof_onnx.ir.mask.statistics import MaskStatistics, TileStatistics, measure
from stof_onnx.ir.mask.tiles import TileMap, TileState, map_tiles

__all__ = [
    "MaskKind",
    "MaskProgram",
    "MaskStatistics",
    "Operand",
    "TileMap",
    "TileState",
    "TileStatistics",
    "classify",
    "map_tiles",
    "measure",
]
