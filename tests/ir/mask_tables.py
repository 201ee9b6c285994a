"""What the outputs of StofMaskTable have to be, from the block table of the dense mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.operators.mask_table import words_per_tile

Array = npt.NDArray[Any]


def expected(keep: Array, tile: tuple[int, int]) -> tuple[Array, ...]:
    """The outputs from the block table of a mask [B, H, Sq, Sk], tile by tile."""
    groups, queries, keys = (-1, *keep.shape[2:])
    keep = keep.reshape(groups, queries, keys)
    table = BlockTable.from_dense(keep, tile)
    rows, columns = -(-queries // tile[0]), -(-keys // tile[1])
    shape = (len(keep), rows)
    counts = np.zeros((*shape, 2), np.int32)
    listed = np.full((*shape, columns), -1, np.int32)
    bitmaps = np.zeros((*shape, columns, words_per_tile(tile)), np.int32)
    full_bitmap = BlockTable.from_dense(np.eye(tile[0], tile[1], dtype=np.bool_), tile)
    assert full_bitmap.bitmaps.shape == (1, words_per_tile(tile))
    for place in np.ndindex(shape):
        row = place[0] * rows + place[1]
        entries = slice(*table.row_offsets[row : row + 2])
        full = int(table.full_counts[row])
        found = table.tile_columns[entries]
        counts[place] = full, len(found) - full
        listed[place][: len(found)] = found
        for column, index in zip(found, table.tile_bitmaps[entries], strict=True):
            bitmaps[place][column] = (
                table.bitmaps[index] if index >= 0 else whole(keep.shape, tile, place[1], column)
            )
    return counts, listed, bitmaps


def whole(shape: tuple[int, ...], tile: tuple[int, int], row: int, column: int) -> Array:
    """The bitmap of a full tile: the pairs inside the mask are set."""
    inside = np.zeros(tile, np.bool_)
    inside[: shape[1] - row * tile[0], : shape[2] - column * tile[1]] = True
    words = inside.reshape(tile[0] // 8, 8, tile[1] // 8, 8).transpose(0, 2, 1, 3).reshape(-1, 64)
    return np.packbits(words, axis=1, bitorder="little").view("<i4").reshape(-1)


def blocky(rng: np.random.Generator, shape: tuple[int, ...], grain: int) -> Array:
    """A mask with empty, full and mixed regions, so that every kind of tile occurs."""
    batch, heads, queries, keys = shape
    coarse = rng.integers(0, 3, (batch, heads, -(-queries // grain), -(-keys // grain)))
    kinds = coarse.repeat(grain, axis=2).repeat(grain, axis=3)[:, :, :queries, :keys]
    return np.where(kinds == 2, rng.random(shape) < 0.5, kinds == 1)
