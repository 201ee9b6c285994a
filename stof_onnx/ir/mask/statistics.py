"""How much of a mask is kept, by pairs and by tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stof_onnx.ir.expr import Const, Expr, Load, loads
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import H_INDEX, K_INDEX, Q_INDEX, MaskProgram
from stof_onnx.ir.mask.tiles import assume_kept, map_tiles

if TYPE_CHECKING:
    from stof_onnx.ir.block_table import BlockTable

STATISTICS_TILES = ((64, 64), (128, 128))


@dataclass(frozen=True)
class TileStatistics:
    """The tiles of a mask at one size.

    Attributes:
        tile: (tile_q, tile_k), in query and key tokens.
        density: share of the tiles that are not empty: the work that is not skipped.
        full: share of the tiles whose pairs are all kept.
    """

    tile: tuple[int, int]
    density: float
    full: float


@dataclass(frozen=True)
class MaskStatistics:
    """Densities of a mask at one size, averaged over batch and heads.

    Attributes:
        sizes: (B, H, Sq, Sk).
        token_density: kept pairs over all pairs.
        tiles: at each tile size.
        not_counted: operands that weren't given: what they hide counts as kept.
    """

    sizes: tuple[int, int, int, int]
    token_density: float
    tiles: tuple[TileStatistics, ...]
    not_counted: tuple[str, ...] = ()


def measure(
    program: MaskProgram,
    sizes: Mapping[str, int],
    sources: Mapping[str, Array | BlockTable] | None = None,
    tiles: Sequence[tuple[int, int]] = STATISTICS_TILES,
) -> MaskStatistics:
    """Densities of a mask program, without making the dense mask.

    A comparison that loads an operand without an array, such as a padding mask that is known
    at run time only, is taken to keep its pairs: the densities are upper bounds then, and
    ``not_counted`` names the operands.

    Args:
        program: its ``keep`` alone is read.
        sizes: B, H, Sq and Sk.
        sources: what is known of the operands: arrays, block tables also as they are.
        tiles: (tile_q, tile_k) of each tile size, multiples of 8.

    Raises:
        InputError: sizes or a tile that can't be used.
        IndexError: if a load reaches outside its array.
    """
    known = sources or {}
    keep = assume_kept(program.keep, known)
    not_counted = {load.source for load in loads(program.keep)} - set(known)
    table = _whole_table(keep, sizes, known)
    if table is not None:
        token_density = table.token_density
        found = [_of_table(table, tile) for tile in tiles]
    else:
        dense = _dense(keep, known)
        maps = [map_tiles(keep, sizes, tile, dense) for tile in tiles]
        token_density = maps[0].token_density
        found = [TileStatistics(m.tile, m.tile_density, m.full_share) for m in maps]
    return MaskStatistics(
        (sizes["B"], sizes["H"], sizes["Sq"], sizes["Sk"]),
        token_density,
        tuple(found),
        tuple(sorted(not_counted)),
    )


def _whole_table(
    keep: Expr, sizes: Mapping[str, int], sources: Mapping[str, Array | BlockTable]
) -> BlockTable | None:
    """The block table that is the mask, all of it and nothing else."""
    if not isinstance(keep, Load) or keep.index[1:] != (Q_INDEX, K_INDEX):
        return None
    table = sources[keep.source]
    if isinstance(table, np.ndarray) or table.shape[1:] != (sizes["Sq"], sizes["Sk"]):
        return None
    group = keep.index[0]
    is_whole = (isinstance(group, Const) and table.shape[0] == 1) or (
        group == H_INDEX and table.shape[0] == sizes["H"]
    )
    return table if is_whole else None


def _of_table(table: BlockTable, tile: tuple[int, int]) -> TileStatistics:
    at_tile = table if table.tile == tile else table.retile(tile)
    return TileStatistics(
        at_tile.tile, at_tile.tile_density, at_tile.counts.full / sum(at_tile.counts)
    )


def _dense(keep: Expr, sources: Mapping[str, Array | BlockTable]) -> dict[str, Array]:
    """The arrays that an expression loads."""
    used = {load.source for load in loads(keep)}
    return {
        name: source if isinstance(source, np.ndarray) else source.to_dense()
        for name, source in sources.items()
        if name in used
    }
