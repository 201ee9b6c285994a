"""StofMaskedAttention: softmax(scale * Q K^T under a mask) V, in the projections' layouts.

The specification is in docs/operators.md; :meth:`MaskedAttention.expand` is the
definition. STOF paper, section 3 (unified multi-head attention). Softcap: Gemma 2, arXiv
2408.00118, section 2; sinks: gpt-oss model card, arXiv 2508.10925, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import onnx

from stof_onnx.ir.block_table import ARRAY_NAMES
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import loads, variables
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import EmptyRow, MaskProgram
from stof_onnx.ir.operators.attention_expansion import expand_attention
from stof_onnx.ir.operators.builder import DTYPES, Builder
from stof_onnx.ir.operators.mask_table import OUTPUT_NAMES

OP_TYPE = "StofMaskedAttention"
TABLE_ARRAYS = len(ARRAY_NAMES)
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# The smallest normal and the largest number of each type.
_NORMAL_RANGE = {
    "float32": (2.0**-126, _LARGEST_FLOAT32),
    "bfloat16": (2.0**-126, 2.0**127 * (2 - 2.0**-7)),
    "float16": (2.0**-14, 65504.0),
}

Layout = Literal["BSHD", "BHSD"]


@dataclass(frozen=True)
class TensorLayout:
    """Where element (b, s, h, d) of a query, key or value lies in its tensor.

    "BSHD": the tensor has rank 3 or more, axes 0 and 1 are batch and sequence and the
    rest, flattened, is a row; the element is at ``offset + h * head_stride + d`` of
    that row. This covers [B, S, H*D], [B, S, H, D], packed [B, S, 3*H*D] and
    [B, S, 3, H, D]. "BHSD": the tensor is [B, H, S, D]; offset and stride are 0.
    """

    order: Layout = "BSHD"
    offset: int = 0
    head_stride: int = 0


@dataclass(frozen=True)
class TableInput:
    """A run-time table of `keep`: the last three inputs, outputs of a StofMaskTable node.

    Attributes:
        tile: the table's tile (queries, keys).
        by_batch: whether it has a group for each batch; else all batches share one.
        by_head: whether it has a group for each head.
    """

    tile: tuple[int, int]
    by_batch: bool
    by_head: bool

    def numbers(self) -> list[int]:
        """The value of the node's `table` attribute."""
        return [*self.tile, int(self.by_batch), int(self.by_head)]

    @staticmethod
    def from_numbers(numbers: Sequence[int]) -> TableInput | None:
        """Read a `table` attribute; none for an empty one.

        Raises:
            MalformedNodeError: not four numbers, or not a tile and two of 0 and 1.
        """
        values = [int(n) for n in numbers]
        if not values:
            return None
        tile, flags = values[:2], values[2:]
        is_tile = len(tile) == 2 and all(size >= 8 and size % 8 == 0 for size in tile)
        if not is_tile or len(flags) != 2 or not {0, 1}.issuperset(flags):
            raise MalformedNodeError(
                f"table {values}", "[tile_q, tile_k, 0 or 1, 0 or 1] with tiles of multiples of 8"
            )
        return TableInput((tile[0], tile[1]), bool(flags[0]), bool(flags[1]))

    def validate(self, mask: MaskProgram) -> None:
        """Check that a table of this form can hold what the program keeps.

        Raises:
            MalformedNodeError: naming the first contradiction.
        """
        names = variables(mask.keep)
        for what, indices, has in (
            ("batch", {"b", "B"}, self.by_batch),
            ("head", {"h", "H"}, self.by_head),
        ):
            if indices & names and not has:
                raise MalformedNodeError(
                    f"table {self.numbers()} for a mask that depends on the {what}",
                    f"a table with a group for each {what}",
                )
        used = {load.source for load in loads(mask.keep)}
        if any(o.kind == "block_table" for o in mask.operands if o.name in used):
            raise MalformedNodeError("a run-time table of a mask that loads a constant table")


@dataclass(frozen=True)
class MaskedAttention:
    """The attributes of a StofMaskedAttention node.

    Attributes:
        num_heads: query heads H.
        kv_num_heads: key and value heads; H is a multiple of it.
        head_dim: of query and key.
        value_head_dim: of value and output.
        scale: factor of the scores.
        query, key, value: layouts of inputs 0, 1 and 2.
        output: layout of the output: "BHSD" is [B, H, Sq, Dv], "BSHD" [B, Sq, H*Dv].
        output_rank: 4 where a BSHD output is [B, Sq, H, Dv] instead; always 4 for BHSD.
        mask: the mask program; its operands are the inputs from 3 on. It alone defines what is
            kept: a table is derived from it.
        score_dtype: float type in which bias and fill meet the scores.
        dtype: float type of query, key, value and output.
        table: the run-time table of the mask that the last inputs hold, if they do.
        softcap: c of c * tanh(score / c), which a score becomes before the bias; 0 for none.
        sinks: whether an input behind the mask's operands, FLOAT [num_heads], holds a logit for
            each query head that joins the softmax without a key or value.
    """

    num_heads: int
    kv_num_heads: int
    head_dim: int
    value_head_dim: int
    scale: float
    query: TensorLayout
    key: TensorLayout
    value: TensorLayout
    output: Layout
    output_rank: int
    mask: MaskProgram
    score_dtype: str = "float32"
    dtype: str = "float32"
    table: TableInput | None = None
    softcap: float = 0.0
    sinks: bool = False

    def attributes(self) -> dict[str, Any]:
        """The node's attributes, `plan` excepted."""
        result: dict[str, Any] = {
            "num_heads": self.num_heads,
            "kv_num_heads": self.kv_num_heads,
            "head_dim": self.head_dim,
            "value_head_dim": self.value_head_dim,
            "scale": float(self.scale),
            "output_layout": self.output,
            "output_rank": self.output_rank,
            "mask": self.mask.to_json(),
            "score_dtype": self.score_dtype,
            "dtype": self.dtype,
        }
        for name in ("query", "key", "value"):
            layout: TensorLayout = getattr(self, name)
            result[f"{name}_layout"] = layout.order
            result[f"{name}_offset"] = layout.offset
            result[f"{name}_head_stride"] = layout.head_stride
        if self.table is not None:
            result["table"] = self.table.numbers()
        if self.softcap:
            result["softcap"] = float(self.softcap)
        if self.sinks:
            result["sinks"] = 1
        return result

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any], node: str) -> MaskedAttention:
        """Read a node's attributes (strings as str, not bytes).

        Raises:
            MalformedNodeError: naming the node and what is wrong.
        """
        try:
            layouts = {
                name: TensorLayout(
                    _order(attributes[f"{name}_layout"]),
                    int(attributes[f"{name}_offset"]),
                    int(attributes[f"{name}_head_stride"]),
                )
                for name in ("query", "key", "value")
            }
            record = MaskedAttention(
                num_heads=int(attributes["num_heads"]),
                kv_num_heads=int(attributes["kv_num_heads"]),
                head_dim=int(attributes["head_dim"]),
                value_head_dim=int(attributes["value_head_dim"]),
                scale=float(attributes["scale"]),
                output=_order(attributes["output_layout"]),
                output_rank=int(attributes["output_rank"]),
                mask=MaskProgram.from_json(attributes["mask"]),
                score_dtype=str(attributes["score_dtype"]),
                dtype=str(attributes["dtype"]),
                table=TableInput.from_numbers(attributes.get("table", ())),
                softcap=float(attributes.get("softcap", 0.0)),
                sinks=_flag("sinks", attributes.get("sinks", 0)),
                **layouts,
            )
            record.validate()
        except KeyError as error:
            raise MalformedNodeError(f"node {node!r} lacks attribute {error}") from error
        except (TypeError, ValueError, OverflowError, MalformedNodeError) as error:
            raise MalformedNodeError(f"node {node!r}: {error}") from error
        return record

    def validate(self) -> None:
        """Check the attributes against each other.

        Raises:
            MalformedNodeError: naming the first contradiction.
        """
        positive = (self.num_heads, self.kv_num_heads, self.head_dim, self.value_head_dim)
        if min(positive) < 1 or self.num_heads % self.kv_num_heads:
            raise MalformedNodeError(
                f"{self.num_heads} query heads, {self.kv_num_heads} key heads, head dims "
                f"{self.head_dim} and {self.value_head_dim}",
                "positive numbers, query heads a multiple of key heads",
            )
        if not abs(self.scale) <= _LARGEST_FLOAT32:
            raise MalformedNodeError(f"scale {self.scale}", "a finite float32 number")
        for name, dtype in (("score_dtype", self.score_dtype), ("dtype", self.dtype)):
            if dtype not in DTYPES:
                raise MalformedNodeError(f"{name} {dtype!r}", f"one of {list(DTYPES)}")
        smallest, largest = _NORMAL_RANGE[self.score_dtype]
        if self.softcap != 0 and not smallest <= self.softcap <= largest:
            raise MalformedNodeError(
                f"softcap {self.softcap}", f"0 for none, or a positive {self.score_dtype} number"
            )
        if self.output_rank not in ((4,) if self.output == "BHSD" else (3, 4)):
            raise MalformedNodeError(f"output {self.output} of rank {self.output_rank}")
        for layout in (self.query, self.key, self.value):
            if layout.offset < 0 or (layout.order == "BSHD" and layout.head_stride < 1):
                raise MalformedNodeError(f"layout {layout}", "offset >= 0 and head_stride >= 1")
            if layout.order == "BHSD" and (layout.offset or layout.head_stride):
                raise MalformedNodeError(f"layout {layout}", "offset and head_stride 0")
        if self.table is not None:
            self.table.validate(self.mask)

    def operand_positions(self) -> tuple[int, ...]:
        """Number of the first input of each mask operand, and of the input behind the last."""
        sizes = [TABLE_ARRAYS if o.kind == "block_table" else 1 for o in self.mask.operands]
        return tuple(accumulate(sizes, initial=3))

    def sinks_position(self) -> int | None:
        """Number of the input that holds the sinks, if there are any."""
        return self.operand_positions()[-1] if self.sinks else None

    def table_position(self) -> int | None:
        """Number of the first of the run-time table's inputs, if there is one."""
        return None if self.table is None else self.operand_positions()[-1] + int(self.sinks)

    def input_count(self) -> int:
        """How many inputs the node has."""
        table = 0 if self.table is None else len(OUTPUT_NAMES)
        return self.operand_positions()[-1] + int(self.sinks) + table

    def empty_row(self) -> EmptyRow:
        """What a row without any key yields.

        As :meth:`MaskProgram.empty_row` says; with sinks "zero", since the sink takes all the
        weight unless it is as low as the fill (docs/operators.md).
        """
        return "zero" if self.sinks else self.mask.empty_row(self.score_dtype)

    def expand(
        self,
        builder: Builder,
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, Array],
        node: str,
    ) -> None:
        """Write the node as standard operators.

        Args:
            builder: receives the operators.
            inputs: names of the node's inputs.
            outputs: names of the node's outputs.
            constants: value of each input that is an initializer; block tables must be.
            node: name, for errors.

        Raises:
            MalformedNodeError: another number of inputs or outputs, or a damaged block table.
        """
        expand_attention(self, builder, inputs, outputs, constants, node)


def _order(text: Any) -> Layout:
    if text not in ("BSHD", "BHSD"):
        raise MalformedNodeError(f"layout {text!r}", "BSHD or BHSD")
    order: Layout = text
    return order


def _flag(name: str, value: Any) -> bool:
    if int(value) not in (0, 1):
        raise MalformedNodeError(f"{name} {value}", "0 or 1")
    return bool(value)


def node_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values, strings decoded.

    Raises:
        MalformedNodeError: for a string that isn't UTF-8 text.
    """
    result: dict[str, Any] = {}
    for attribute in node.attribute:
        try:
            value = onnx.helper.get_attribute_value(attribute)
            result[attribute.name] = value.decode() if isinstance(value, bytes) else value
        except ValueError as error:
            raise MalformedNodeError(
                f"node {node.name!r}: attribute {attribute.name!r} can't be read: {error}"
            ) from error
    return result
