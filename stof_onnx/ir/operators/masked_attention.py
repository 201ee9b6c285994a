"""StofMaskedAttention: softmax(scale * Q K^T under a mask) V, in the projections' layouts.

The specification is in docs/operators.md; :meth:`MaskedAttention.expand` is the
definition. STOF paper, section 3 (unified multi-head attention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import onnx

from stof_onnx.ir.block_table import ARRAY_NAMES, BlockTable
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import loads, variables
from stof_onnx.ir.expr.build import TRUE
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import MaskProgram
from stof_onnx.ir.operators.builder import DTYPES, Builder
from stof_onnx.ir.operators.mask_expansion import MaskEmitter
from stof_onnx.ir.operators.mask_table import OUTPUT_NAMES

OP_TYPE = "StofMaskedAttention"
TABLE_ARRAYS = len(ARRAY_NAMES)
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

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

    def input_count(self) -> int:
        """How many inputs the node has."""
        return self.operand_positions()[-1] + (0 if self.table is None else len(OUTPUT_NAMES))

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
        """
        if len(inputs) != self.input_count():
            raise MalformedNodeError(
                f"node {node!r} has {len(inputs)} inputs", f"{self.input_count()}"
            )
        if len(outputs) != 1:
            raise MalformedNodeError(f"node {node!r} has {len(outputs)} outputs", "1")
        query, key, value = inputs[:3]
        queries, keys = (
            self._length(builder, query, self.query),
            self._length(builder, key, self.key),
        )
        groups = self.num_heads // self.kv_num_heads
        q = _heads(builder, query, self.query, self.num_heads, self.head_dim)
        k = _heads(builder, key, self.key, self.kv_num_heads, self.head_dim)
        v = _heads(builder, value, self.value, self.kv_num_heads, self.value_head_dim)
        k, v = _repeat_heads(builder, k, groups), _repeat_heads(builder, v, groups)
        scores = self._scores(builder, q, k)
        sizes = {
            "B": builder.dim(query, 0),
            "H": builder.const([self.num_heads], np.int64),
            "Sq": queries,
            "Sk": keys,
        }
        tensors, tables = self._operands(inputs, constants, node)
        masked = self._mask(builder, scores, MaskEmitter(builder, sizes, tensors, tables))
        weights = builder.op(
            "Softmax", self._cast(builder, masked, self.score_dtype, "float32"), axis=-1
        )
        if self.mask.nan_to_zero:
            zero = builder.const(0.0, np.float32)
            weights = builder.op("Where", builder.op("IsNaN", weights), zero, weights)
        weights = self._cast(builder, weights, "float32", self.dtype)
        if self.output == "BHSD":
            builder.op("MatMul", weights, v, output=outputs[0])
            return
        product = builder.op("MatMul", weights, v)
        if self.output_rank == 4:
            builder.op("Transpose", product, perm=[0, 2, 1, 3], output=outputs[0])
            return
        result = builder.op("Transpose", product, perm=[0, 2, 1, 3])
        builder.reshape(result, 0, 0, self.num_heads * self.value_head_dim, output=outputs[0])

    def _scores(self, builder: Builder, query: str, key: str) -> str:
        """scale * Q K^T, accumulated in float32, as score_dtype.

        The factor meets the smaller side of the product, so that neither large products
        (half precision, scale below 1) nor large factors overflow on the way.
        """
        factor = builder.const(self.scale, np.float32)
        q, k = (self._cast(builder, x, self.dtype, "float32") for x in (query, key))
        if abs(self.scale) <= 1:
            q = builder.op("Mul", q, factor)
        scores = builder.op("MatMul", q, builder.op("Transpose", k, perm=[0, 1, 3, 2]))
        if abs(self.scale) > 1:
            scores = builder.op("Mul", scores, factor)
        return self._cast(builder, scores, "float32", self.score_dtype)

    @staticmethod
    def _cast(builder: Builder, value: str, source: str, target: str) -> str:
        return value if source == target else builder.cast(value, target)

    @staticmethod
    def _length(builder: Builder, tensor: str, layout: TensorLayout) -> str:
        return builder.dim(tensor, 1 if layout.order == "BSHD" else 2)

    def _mask(self, builder: Builder, scores: str, emitter: MaskEmitter) -> str:
        program = self.mask
        if program.bias is not None:
            bias = self._cast(builder, emitter.emit(program.bias), "float32", self.score_dtype)
            scores = builder.op("Add", scores, bias)
        if program.keep == TRUE:
            return scores
        keep = emitter.emit(program.keep)
        fill = builder.scalar_like(program.fill, self.score_dtype)
        if program.fill_mode == "replace":
            return builder.op("Where", keep, scores, fill)
        zero = builder.scalar_like(0.0, self.score_dtype)
        return builder.op("Add", scores, builder.op("Where", keep, zero, fill))

    def _operands(
        self, inputs: Sequence[str], constants: Mapping[str, Array], node: str
    ) -> tuple[dict[str, str], dict[str, Array]]:
        tensors: dict[str, str] = {}
        tables: dict[str, Array] = {}
        for operand, position in zip(self.mask.operands, self.operand_positions(), strict=False):
            if operand.kind == "tensor":
                tensors[operand.name] = inputs[position]
                continue
            names = inputs[position : position + TABLE_ARRAYS]
            missing = [name for name in names if name not in constants]
            if missing:
                raise MalformedNodeError(
                    f"node {node!r}: block table input {missing[0]!r} is not an initializer"
                )
            arrays = {a: constants[n] for a, n in zip(ARRAY_NAMES, names, strict=True)}
            try:
                table = BlockTable.from_arrays(arrays, shape=operand.shape, tile=operand.tile)
            except MalformedNodeError as error:
                raise MalformedNodeError(
                    f"node {node!r}, operand {operand.name!r}: {error}"
                ) from error
            tables[operand.name] = table.to_dense()
        return tensors, tables


def _order(text: Any) -> Layout:
    if text not in ("BSHD", "BHSD"):
        raise MalformedNodeError(f"layout {text!r}", "BSHD or BHSD")
    order: Layout = text
    return order


def _heads(builder: Builder, tensor: str, layout: TensorLayout, heads: int, dim: int) -> str:
    """The tensor as [B, H, S, D]."""
    if layout.order == "BHSD":
        return tensor
    row = builder.reshape(tensor, 0, 0, -1)
    end = layout.offset + (heads - 1) * layout.head_stride + dim
    if layout.head_stride == dim:
        row = builder.slice(row, 2, layout.offset, end)
        split = builder.reshape(row, 0, 0, heads, dim)
    else:
        # Heads that aren't neighbours: gather their elements' positions in the row.
        positions = (
            layout.offset + layout.head_stride * np.arange(heads)[:, None] + np.arange(dim)[None, :]
        )
        split = builder.op("Gather", row, builder.const(positions, np.int64), axis=2)
    return builder.op("Transpose", split, perm=[0, 2, 1, 3])


def _repeat_heads(builder: Builder, tensor: str, groups: int) -> str:
    """[B, Hkv, S, D] to [B, Hkv * groups, S, D], each head `groups` times in a row."""
    if groups == 1:
        return tensor
    wide = builder.op(
        "Expand", builder.unsqueeze(tensor, 2), builder.const([1, 1, groups, 1, 1], np.int64)
    )
    dims = [builder.dim(tensor, axis) for axis in range(4)]
    heads = builder.op("Mul", dims[1], builder.const([groups], np.int64))
    return builder.reshape(wide, dims[0], heads, dims[2], dims[3])


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
