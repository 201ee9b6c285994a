"""How a mask is cut into tiles, and tiles into 64-bit words.

The arithmetic under :mod:`stof_onnx.ir.block_table`, whose docstring defines the layout.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.errors import MalformedNodeError, StofError

SUB_TILE = 8
"""Side of a sub-tile: 8 x 8 pairs fill one 64-bit word."""

INT32_MAX = 2**31 - 1

REBUILD = "the file was altered or is from another version: run `stof-onnx optimize` again"

BoolArray = npt.NDArray[np.bool_]
Int32Array = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]

_STRIP_PAIRS = 1 << 22

# Words of bitmaps that are compared at a time, so that little is copied.
_COMPARED_WORDS = 1 << 18

_ONES_OF_OCTET = np.array([bin(octet).count("1") for octet in range(256)], np.uint8)


class TileGrid(NamedTuple):
    """How a mask of one shape is cut into tiles."""

    shape: tuple[int, int, int]
    tile: tuple[int, int]

    @classmethod
    def checked(cls, shape: Sequence[int], tile: Sequence[int], error: type[StofError]) -> TileGrid:
        """The grid, or ``error`` if shape or tile can't be used."""
        step = REBUILD if error is MalformedNodeError else ""
        try:
            heads, queries, keys = (operator.index(dim) for dim in shape)
        except (TypeError, ValueError):
            raise error(f"block table of shape {shape}", "[G, Sq, Sk]", step) from None
        if not all(1 <= dim <= INT32_MAX for dim in (heads, queries, keys)):
            wanted = f"dimensions from 1 to {INT32_MAX}"
            raise error(f"block table of shape {[heads, queries, keys]}", wanted, step)
        try:
            tile_q, tile_k = (operator.index(side) for side in tile)
        except (TypeError, ValueError):
            raise error(f"tile {tile}", "(tile_q, tile_k)", step) from None
        if not all(0 < side <= INT32_MAX and side % SUB_TILE == 0 for side in (tile_q, tile_k)):
            raise error(f"tile {tile_q}x{tile_k}", "positive multiples of 8", step)
        return cls((heads, queries, keys), (tile_q, tile_k))

    @property
    def rows(self) -> int:
        """Query tiles of one head, Rq."""
        return ceil_div(self.shape[1], self.tile[0])

    @property
    def columns(self) -> int:
        """Key tiles, Rk."""
        return ceil_div(self.shape[2], self.tile[1])

    @property
    def words(self) -> int:
        """64-bit words of one bitmap."""
        return self.tile[0] // SUB_TILE * (self.tile[1] // SUB_TILE)

    @property
    def edge(self) -> tuple[int, int]:
        """Query rows in the last row of tiles, keys in the last column of tiles."""
        _, queries, keys = self.shape
        return queries - (self.rows - 1) * self.tile[0], keys - (self.columns - 1) * self.tile[1]

    def strips(self) -> Iterator[tuple[int, int, int]]:
        """(head, start, stop) of strips of whole tile rows, about _STRIP_PAIRS pairs each."""
        heads, queries, keys = self.shape
        step = max(1, _STRIP_PAIRS // (self.tile[0] * keys)) * self.tile[0]
        for head in range(heads):
            for start in range(0, queries, step):
                yield head, start, min(start + step, queries)

    def full_tile(self, last_row: bool, last_column: bool) -> Words:
        """The bitmap [words] of a tile whose pairs inside the mask are all kept."""
        height = self.edge[0] if last_row else self.tile[0]
        width = self.edge[1] if last_column else self.tile[1]
        bitmap: Words = pack_tiles(np.ones((height, width), np.bool_), self.tile)[0, 0]
        return bitmap

    def full_row(self, last_row: bool) -> Words:
        """The bitmaps [Rk, words] of a row of full tiles."""
        row = np.empty((self.columns, self.words), np.uint64)
        row[:] = self.full_tile(last_row, False)
        row[-1] = self.full_tile(last_row, True)
        return row


def ceil_div(count: int, size: int) -> int:
    """Pieces of ``size`` that cover ``count``."""
    return -(-count // size)


def as_words(bitmaps: Int32Array) -> Words:
    """Bitmaps INT32 [n, 2 * words] as 64-bit words [n, words]; the low half comes first."""
    words: Words = bitmaps.astype("<i4", copy=False).view("<u8")
    return words


def pack_tiles(keep: BoolArray, tile: tuple[int, int]) -> Words:
    """Packs bool [height, width] into words [tile rows, tile columns, words of a tile]."""
    tile_q, tile_k = tile
    height, width = keep.shape
    rows, columns = ceil_div(height, tile_q), ceil_div(width, tile_k)
    if keep.strides[0] == 1 < abs(keep.strides[1]):
        # Packing across strides takes ten times as long.
        turned = pack_tiles(keep.T, (tile_k, tile_q)).reshape(
            columns, rows, tile_k // SUB_TILE, tile_q // SUB_TILE
        )
        return _turned(turned.transpose(1, 0, 3, 2)).reshape(rows, columns, -1)
    octets = np.zeros((rows * tile_q, columns * (tile_k // SUB_TILE)), np.uint8)
    octets[:height, : ceil_div(width, SUB_TILE)] = np.packbits(keep, axis=1, bitorder="little")
    # Octet r of a word is row r of its sub-tile: bit r * 8 + c, little-endian.
    split = octets.reshape(rows, tile_q // SUB_TILE, SUB_TILE, columns, tile_k // SUB_TILE)
    packed = np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2))
    words: Words = packed.reshape(rows, columns, -1).view("<u8")
    return words


def _turned(words: Words) -> Words:
    """Sub-tiles with rows and columns exchanged: bit r * 8 + c goes to c * 8 + r."""
    # Exchanges 1, 2 and 4 wide squares off the diagonal (Warren, Hacker's Delight, 7-3).
    for shift, mask in (
        (7, 0x00AA00AA00AA00AA),
        (14, 0x0000CCCC0000CCCC),
        (28, 0x00000000F0F0F0F0),
    ):
        swapped = (words ^ (words >> np.uint64(shift))) & np.uint64(mask)
        words = words ^ swapped ^ (swapped << np.uint64(shift))
    return words


def unpack_tiles(words: Words, tile: tuple[int, int]) -> BoolArray:
    """The inverse of pack_tiles: bool [tile rows * tile_q, tile columns * tile_k]."""
    rows, columns, _ = words.shape
    tile_q, tile_k = tile
    octets = words.astype("<u8", copy=False).view(np.uint8)
    split = octets.reshape(rows, columns, tile_q // SUB_TILE, tile_k // SUB_TILE, SUB_TILE)
    lines = split.transpose(0, 2, 4, 1, 3).reshape(rows * tile_q, -1)
    return np.unpackbits(lines, axis=1, bitorder="little").view(np.bool_)


def count_bits(words: Words) -> npt.NDArray[np.int64]:
    """Ones in each bitmap of [n, words], as [n]."""
    octets = words.view(np.uint8)
    ones: npt.NDArray[np.int64] = _ONES_OF_OCTET[octets].sum(axis=1, dtype=np.int64)
    return ones


def distinct_bitmaps(words: Words) -> tuple[Words, npt.NDArray[np.int64]]:
    """Drops repeated bitmaps.

    Args:
        words: [partial tiles, words of a tile].

    Returns:
        The distinct bitmaps in order of first use (one of zeros if there is none), and
        for each tile the index of its bitmap.
    """
    count, width = words.shape
    if count == 0:
        return np.zeros((1, width), np.uint64), np.zeros(0, np.int64)
    keys = words[:, 0] if width == 1 else words.view(np.dtype((np.void, 8 * width)))[:, 0]
    # Half the size of numpy's own: tiles are listed in INT32 anyway.
    place = np.int32 if count <= INT32_MAX else np.int64
    order = np.argsort(keys, kind="stable").astype(place)
    starts = np.ones(count, np.bool_)
    step = max(1, _COMPARED_WORDS // width)
    for first in range(1, count, step):
        last = min(first + step, count)
        ordered = words[order[first - 1 : last]]
        starts[first:last] = (ordered[1:] != ordered[:-1]).any(axis=1)
    if starts.all():
        return words, np.arange(count)
    leaders = order[starts]  # The sort is stable: a group's first tile leads it.
    rank = np.empty(len(leaders), place)
    rank[np.argsort(leaders)] = np.arange(len(leaders), dtype=place)
    indices = np.empty(count, np.int64)
    indices[order] = rank[np.cumsum(starts, dtype=place) - 1]
    return words[np.sort(leaders)], indices
