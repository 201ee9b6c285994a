"""What a kernel template knows of one StofMaskTable node: its attributes and its tensors."""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.ir.operators.mask_table import OP_TYPE, OUTPUT_NAMES, SHARED_BY_BATCHES, MaskTable
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import DataType, Quantity, Range, Symbol
from stof_onnx.templates.integer_range import LARGEST_DIMENSION

LARGEST_KEY_TILES = 48 * 1024
"""Tiles of a row, whose states a block keeps in shared memory: a byte each, and this much every
GPU gives without being asked."""
_LARGEST_TILES = 2**31 - 1


@dataclass(frozen=True)
class TableNode:
    """A node as kernels see it.

    Attributes:
        record: the node's attributes.
        inputs: type and shape of each input.
    """

    record: MaskTable
    inputs: tuple[TensorInfo, ...]

    @property
    def operator(self) -> str:
        """The node's operator."""
        return OP_TYPE

    @property
    def input_types(self) -> tuple[DataType, ...]:
        """Element types of the inputs."""
        return tuple(tensor.dtype for tensor in self.inputs)

    @property
    def output_types(self) -> tuple[DataType, ...]:
        """Element types of the outputs."""
        return (DataType.INT32,) * len(OUTPUT_NAMES)

    @property
    def batches(self) -> Quantity:
        """B of the program."""
        return Quantity.of("B" if self._has_batches else 1)

    @property
    def sizes(self) -> dict[str, Quantity]:
        """What the program's indices run to: B, H, Sq and Sk."""
        heads = Quantity.of(self.record.num_heads)
        return {"B": self.batches, "H": heads, "Sq": Quantity.of("Sq"), "Sk": Quantity.of("Sk")}

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """B unless it is 1, Sq, Sk, and the number of tiles."""
        sizes = zip(("B", "Sq", "Sk"), self.record.size_axes, strict=True)
        symbols = [
            Symbol(name, "input", operand, (axis,))
            for name, (operand, axis) in sizes
            if name != "B" or self._has_batches
        ]
        return (*symbols, Symbol("tiles", "output", OUTPUT_NAMES.index("bitmaps"), (0, 1, 2)))

    @property
    def checks(self) -> tuple[Range, ...]:
        """What the kernels rely on: no overflow of index arithmetic, states in shared memory.

        Readers of the table number its tiles in 32 bits.
        """
        largest_keys = min(LARGEST_DIMENSION, LARGEST_KEY_TILES * self.record.tile[1])
        largest = {
            "B": LARGEST_DIMENSION,
            "Sq": LARGEST_DIMENSION,
            "Sk": largest_keys,
            "tiles": _LARGEST_TILES,
        }
        return tuple(Range(symbol.name, 0, largest[symbol.name]) for symbol in self.symbols)

    @property
    def _has_batches(self) -> bool:
        return self.record.size_axes[0] != SHARED_BY_BATCHES
