"""StofMaskTable: the block table of a run-time mask, built on the device.

The specification is in docs/operators.md; :meth:`MaskTable.expand` is the definition.
STOF paper, section 3 (two-level storage of sparse masks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import variables
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import MaskProgram
from stof_onnx.ir.operators.builder import Builder
from stof_onnx.ir.operators.mask_expansion import MaskEmitter

OP_TYPE = "StofMaskTable"
OUTPUT_NAMES = ("tile_counts", "tile_columns", "bitmaps")
SHARED_BY_BATCHES = (-1, 0)
"""In place of B's (operand, axis): the mask doesn't depend on the batch, so that B is 1."""
_SIZES = ("B", "H", "Sq", "Sk")


@dataclass(frozen=True)
class MaskTable:
    """The attributes of a StofMaskTable node.

    Attributes:
        mask: the program; its operands, all of kind "tensor", are the inputs.
        num_heads: H of the program; 1 where it doesn't depend on the head.
        size_axes: for each of B, Sq and Sk the (operand, axis) that has this size; for B
            also SHARED_BY_BATCHES.
        tile: queries and keys of a tile, multiples of 8.
    """

    mask: MaskProgram
    num_heads: int
    size_axes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    tile: tuple[int, int]

    def attributes(self) -> dict[str, Any]:
        """The node's attributes, `plan` excepted."""
        return {
            "mask": self.mask.to_json(),
            "num_heads": self.num_heads,
            "size_axes": [n for pair in self.size_axes for n in pair],
            "tile": list(self.tile),
        }

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any], node: str) -> MaskTable:
        """Read a node's attributes.

        Raises:
            MalformedNodeError: naming the node and what is wrong.
        """
        try:
            flat = [int(n) for n in attributes["size_axes"]]
            tile = [int(n) for n in attributes["tile"]]
            record = MaskTable(
                mask=MaskProgram.from_json(attributes["mask"]),
                num_heads=int(attributes["num_heads"]),
                size_axes=((flat[0], flat[1]), (flat[2], flat[3]), (flat[4], flat[5])),
                tile=(tile[0], tile[1]),
            )
            record._validate(len(flat), len(tile))
        except KeyError as error:
            raise MalformedNodeError(f"node {node!r} lacks attribute {error}") from error
        except (TypeError, ValueError, OverflowError, IndexError, MalformedNodeError) as error:
            raise MalformedNodeError(f"node {node!r}: {error}") from error
        return record

    def _validate(self, size_numbers: int, tile_numbers: int) -> None:
        operands = self.mask.operands
        if any(operand.kind != "tensor" for operand in operands):
            raise MalformedNodeError("a constant table among the operands of a run-time table")
        if self.num_heads < 1 or min(self.tile) < 8 or any(n % 8 for n in self.tile):
            raise MalformedNodeError(
                f"{self.num_heads} heads, tile {self.tile}", "tiles of multiples of 8"
            )
        has_batches = self.size_axes[0] != SHARED_BY_BATCHES
        if not has_batches and {"b", "B"} & variables(self.mask.keep):
            raise MalformedNodeError(
                f"size_axes {self.size_axes} for a mask that depends on the batch",
                "an operand with an axis of size B",
            )
        for operand, axis in self.size_axes[0 if has_batches else 1 :]:
            if not 0 <= operand < len(operands) or not 0 <= axis < operands[operand].rank:
                raise MalformedNodeError(f"size_axes {self.size_axes} beyond the operands")
        if (size_numbers, tile_numbers) != (6, 2):
            raise MalformedNodeError(
                f"size_axes of {size_numbers} and a tile of {tile_numbers} numbers", "6 and 2"
            )

    def expand(
        self,
        builder: Builder,
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, Array],
        node: str,
    ) -> None:
        """Write the node as standard operators; arguments as MaskedAttention.expand."""
        if len(inputs) != len(self.mask.operands):
            raise MalformedNodeError(
                f"node {node!r} has {len(inputs)} inputs", str(len(self.mask.operands))
            )
        if len(outputs) != 3:
            raise MalformedNodeError(f"node {node!r} has {len(outputs)} outputs", "3")
        batch, queries, keys = (
            builder.const([1], np.int64)
            if (operand, axis) == SHARED_BY_BATCHES
            else builder.dim(inputs[operand], axis)
            for operand, axis in self.size_axes
        )
        sizes = {
            "B": batch,
            "H": builder.const([self.num_heads], np.int64),
            "Sq": queries,
            "Sk": keys,
        }
        names = [operand.name for operand in self.mask.operands]
        emitter = MaskEmitter(builder, sizes, dict(zip(names, inputs, strict=True)), {})
        keep = builder.op(
            "Expand",
            emitter.emit(self.mask.keep),
            builder.op("Concat", *(sizes[name] for name in _SIZES), axis=0),
        )
        groups = builder.op("Mul", batch, sizes["H"])
        tiles = _Tiling(builder, keep, (groups, queries, keys), self.tile)
        tiles.write_counts_and_columns(outputs[0], outputs[1])
        tiles.write_bitmaps(outputs[2])


class _Tiling:
    """keep, [B, H, Sq, Sk] as BOOL, cut into tiles."""

    def __init__(
        self, builder: Builder, keep: str, sizes: tuple[str, str, str], tile: tuple[int, int]
    ) -> None:
        groups, queries, keys = sizes
        self._builder, self._groups, self._tile = builder, groups, tile
        self._rows = self._ceil_div(queries, tile[0])
        self._columns = self._ceil_div(keys, tile[1])
        bits = builder.op("Cast", keep, to=TensorProto.INT32)
        flat = builder.reshape(bits, groups, queries, keys)
        self._in_range_full = self._tiles(flat, queries, keys, 1)
        self._bits = self._tiles(flat, queries, keys, 0)

    def _ceil_div(self, size: str, tile: int) -> str:
        build = self._builder
        raised = build.op("Add", size, build.const([tile - 1], np.int64))
        return build.op("Div", raised, build.const([tile], np.int64))

    def _tiles(self, flat: str, queries: str, keys: str, padding: int) -> str:
        """[G, Rq, tile_q, Rk, tile_k] with pairs beyond the edge set to ``padding``."""
        build = self._builder
        ends = []
        for size, count, tile in (
            (queries, self._rows, self._tile[0]),
            (keys, self._columns, self._tile[1]),
        ):
            whole = build.op("Mul", count, build.const([tile], np.int64))
            ends.append(build.op("Sub", whole, size))
        zero = build.const([0], np.int64)
        pads = build.op("Concat", zero, zero, zero, zero, *ends, axis=0)
        padded = build.op("Pad", flat, pads, build.const(padding, np.int32), mode="constant")
        return build.reshape(
            padded, self._groups, self._rows, self._tile[0], self._columns, self._tile[1]
        )

    def _reduce(self, op_type: str, value: str) -> str:
        """Reduce each tile to one number; axes are an attribute before opset 18."""
        build = self._builder
        order = build.op("Transpose", value, perm=[0, 1, 3, 2, 4])
        flat = build.reshape(
            order, self._groups, self._rows, self._columns, self._tile[0] * self._tile[1]
        )
        # TopK works alike in every opset: the largest (or smallest) of each tile.
        largest = int(op_type == "max")
        one = build.const([1], np.int64)
        values = build.ops("TopK", flat, one, outputs=["", ""], largest=largest)[0]
        return build.op("Squeeze", values, build.const([3], np.int64))

    def write_counts_and_columns(self, counts: str, columns: str) -> None:
        """Full and partial tiles of each row, and their columns, full ones first."""
        build = self._builder
        full = self._reduce("min", self._in_range_full)
        some = self._reduce("max", self._bits)
        partial = build.op("Sub", some, full)
        summed = [
            build.op("ReduceSum", x, build.const([2], np.int64), keepdims=1)
            for x in (full, partial)
        ]
        build.op("Concat", *summed, axis=2, output=counts)
        # Sort by (2 - state, column): state 2 is full, 1 partial, 0 empty.
        state = build.op("Cast", build.op("Add", some, full), to=TensorProto.INT64)
        rank = build.op("Sub", build.const(2, np.int64), state)
        count = build.op("Squeeze", self._columns, build.const([0], np.int64))
        column = build.op("Range", build.const(0, np.int64), count, build.const(1, np.int64))
        key = build.op("Add", build.op("Mul", rank, self._columns), column)
        ordered = build.ops("TopK", key, self._columns, outputs=["", ""], largest=0)[0]
        listed = build.op("Mod", ordered, self._columns)
        is_empty = build.op(
            "GreaterOrEqual",
            ordered,
            build.op("Mul", self._columns, build.const([2], np.int64)),
        )
        result = build.op("Where", is_empty, build.const(-1, np.int64), listed)
        build.op("Cast", result, to=TensorProto.INT32, output=columns)

    def write_bitmaps(self, bitmaps: str) -> None:
        """[G, Rq, Rk, words * 2]: 8x8 sub-tiles as 64-bit words, low half first."""
        build = self._builder
        sub_q, sub_k = self._tile[0] // 8, self._tile[1] // 8
        wide = build.op("Cast", self._bits, to=TensorProto.INT64)
        cut = build.reshape(wide, self._groups, self._rows, sub_q, 8, self._columns, sub_k, 8)
        order = build.op("Transpose", cut, perm=[0, 1, 4, 2, 5, 3, 6])
        halves = build.reshape(
            order, self._groups, self._rows, self._columns, sub_q * sub_k * 2, 32
        )
        weights = build.const([1 << bit for bit in range(32)], np.int64)
        word = build.op(
            "ReduceSum",
            build.op("Mul", halves, weights),
            build.const([4], np.int64),
            keepdims=0,
        )
        # INT32 holds the upper half of the unsigned range as negative numbers.
        negative = build.op("Sub", word, build.const(1 << 32, np.int64))
        is_high = build.op("GreaterOrEqual", word, build.const(1 << 31, np.int64))
        signed = build.op("Where", is_high, negative, word)
        build.op("Cast", signed, to=TensorProto.INT32, output=bitmaps)


def words_per_tile(tile: tuple[int, int]) -> int:
    """INT32 numbers of one tile's bitmap."""
    return math.prod(tile) // 32
