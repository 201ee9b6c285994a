"""The nodes that every rule is tested on: both operators, all types, layouts and kinds of masks.

Shapes are formulas written out here, which share nothing with the plugins or `expand`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from stof_onnx.ir.expr import Load
from stof_onnx.ir.expr.build import and_, ge, gt, integer
from stof_onnx.ir.mask.program import (
    B_INDEX,
    H_INDEX,
    K_INDEX,
    Q_INDEX,
    MaskProgram,
    Operand,
)
from stof_onnx.ir.operators import mask_table, masked_attention
from stof_onnx.ir.operators.mask_table import SHARED_BY_BATCHES, MaskTable
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TableInput, TensorLayout
from stof_onnx.ir.plan import DataType, Plan, Symbol, as_array, encode
from stof_onnx.plugin_host import Plugin, TensorDesc
from tests.conformance.synthetic_plans import two_bucket_plan

ATTENTION, TABLE = masked_attention.OP_TYPE, mask_table.OP_TYPE
INT8, INT32 = DataType.INT8, DataType.INT32
TYPES = {"float32": DataType.FLOAT, "float16": DataType.HALF, "bfloat16": DataType.BF16}

Shape = tuple[int, ...]


class Sizes(NamedTuple):
    """Batch, queries and keys."""

    B: int
    Sq: int
    Sk: int


SIZES = (Sizes(2, 100, 77), Sizes(1, 1, 1), Sizes(3, 64, 256), Sizes(1, 65, 1000))


@dataclass(frozen=True)
class NodeCase:
    """One node.

    Attributes:
        name: of the case.
        record: the node's attributes.
        input_types: element types of the inputs.
        inputs: shapes of the inputs.
        outputs: shapes of the outputs.
        symbols: of the plan.
    """

    name: str
    record: MaskedAttention | MaskTable
    input_types: tuple[DataType, ...]
    inputs: Callable[[Sizes], tuple[Shape, ...]]
    outputs: Callable[[Sizes], tuple[Shape, ...]]
    symbols: tuple[Symbol, ...] = field(repr=False)

    @property
    def operator(self) -> str:
        return ATTENTION if isinstance(self.record, MaskedAttention) else TABLE

    @property
    def output_types(self) -> tuple[DataType, ...]:
        if isinstance(self.record, MaskedAttention):
            return (TYPES[self.record.dtype],)
        return (INT32, INT32, INT32)

    @cached_property
    def plan(self) -> Plan:
        return two_bucket_plan(self.operator, self.input_types, self.output_types, self.symbols)

    def attributes(self, plan: Plan | None = None) -> dict[str, Any]:
        """What the ONNX file holds; the order is that of the importer, unspecified."""
        data = as_array(encode(self.plan if plan is None else plan))
        names = {"plugin_version": "1", "plugin_namespace": "stof"}
        return {**self.record.attributes(), "plan": data, **names}

    def create(self, plan: Plan | None = None) -> Plugin:
        return Plugin.from_attributes(self.operator, self.attributes(plan))

    def input_descs(self, sizes: Sizes) -> list[TensorDesc]:
        shapes = self.inputs(sizes)
        return [TensorDesc(t, s) for t, s in zip(self.input_types, shapes, strict=True)]

    def output_descs(self, sizes: Sizes) -> list[TensorDesc]:
        shapes = self.outputs(sizes)
        return [TensorDesc(t, s) for t, s in zip(self.output_types, shapes, strict=True)]

    def descs(self, sizes: Sizes) -> tuple[list[TensorDesc], list[TensorDesc]]:
        return self.input_descs(sizes), self.output_descs(sizes)

    @property
    def sinks(self) -> int | None:
        """Number of the input that holds the sinks."""
        if not isinstance(self.record, MaskedAttention) or not self.record.sinks:
            return None
        return self.input_types.index(DataType.FLOAT, 3)

    def __str__(self) -> str:
        return self.name


H, HKV, D, DV = 4, 2, 8, 16


def _attention(
    name: str,
    inputs: Callable[[Sizes], tuple[Shape, ...]],
    output: str = "BSHD",
    output_rank: int = 3,
    *,
    dtype: str = "float16",
    layouts: Mapping[str, TensorLayout] | None = None,
    mask: MaskProgram | None = None,
    mask_types: tuple[DataType, ...] = (),
    table: TableInput | None = None,
    softcap: float = 0.0,
    sinks: bool = False,
) -> NodeCase:
    rows = {
        "query": TensorLayout("BSHD", 0, D),
        "key": TensorLayout("BSHD", 0, D),
        "value": TensorLayout("BSHD", 0, DV),
    }
    record = MaskedAttention(
        num_heads=H,
        kv_num_heads=HKV,
        head_dim=D,
        value_head_dim=DV,
        scale=0.35355339,
        output=output,  # type: ignore[arg-type]
        output_rank=output_rank,
        mask=mask or MaskProgram(),
        score_dtype="float32",
        dtype=dtype,
        table=table,
        softcap=softcap,
        sinks=sinks,
        **{**rows, **(layouts or {})},
    )
    record.validate()

    def outputs(s: Sizes) -> tuple[Shape, ...]:
        if output == "BHSD":
            return ((s.B, H, s.Sq, DV),)
        return ((s.B, s.Sq, H * DV),) if output_rank == 3 else ((s.B, s.Sq, H, DV),)

    axes = [2 if getattr(record, one).order == "BHSD" else 1 for one in ("query", "key")]
    symbols = (
        Symbol("B", "input", 0, (0,)),
        Symbol("Sq", "input", 0, (axes[0],)),
        Symbol("Sk", "input", 1, (axes[1],)),
        Symbol("elements", "output", 0, tuple(range(output_rank))),
    )
    types = (TYPES[dtype],) * 3 + mask_types
    return NodeCase(name, record, types, inputs, outputs, symbols)


def _rows(s: Sizes) -> tuple[Shape, Shape, Shape]:
    return (s.B, s.Sq, H * D), (s.B, s.Sk, HKV * D), (s.B, s.Sk, HKV * DV)


_BHSD = TensorLayout("BHSD")
_PADDING = and_(
    Load("padding", (B_INDEX, K_INDEX), "bool"),
    gt(Load("lengths", (B_INDEX,), "int"), K_INDEX),
)
_DENSE = Load("dense", (B_INDEX, integer(0), Q_INDEX, K_INDEX), "bool")
_CONSTANT = Load("window", (integer(0), Q_INDEX, K_INDEX), "bool")
_BLOCK_TABLE = Operand("window", "block_table", 3, shape=(1, 2048, 2048), tile=(64, 64))

ATTENTIONS = (
    _attention("rows_half", _rows),
    _attention(
        "heads_float",
        lambda s: ((s.B, H, s.Sq, D), (s.B, HKV, s.Sk, D), (s.B, HKV, s.Sk, DV)),
        "BHSD",
        4,
        dtype="float32",
        layouts={"query": _BHSD, "key": _BHSD, "value": _BHSD},
    ),
    _attention(
        "split_rows_bfloat16",
        lambda s: ((s.B, s.Sq, H, D), (s.B, s.Sk, HKV, D), (s.B, s.Sk, HKV, DV)),
        "BSHD",
        4,
        dtype="bfloat16",
    ),
    _attention(
        "packed_causal",
        lambda s: ((s.B, s.Sq, H * D + HKV * (D + DV)),) * 3,
        layouts={
            "query": TensorLayout("BSHD", 0, D),
            "key": TensorLayout("BSHD", H * D, D),
            "value": TensorLayout("BSHD", H * D + HKV * D, DV),
        },
        mask=MaskProgram(keep=ge(Q_INDEX, K_INDEX)),
    ),
    _attention(
        "mixed_layouts",
        lambda s: ((s.B, H, s.Sq, D), (s.B, s.Sk, HKV * D), (s.B, s.Sk, HKV, 3, DV)),
        "BHSD",
        4,
        layouts={"query": _BHSD, "value": TensorLayout("BSHD", DV, 3 * DV)},
    ),
    _attention(
        "padding_and_lengths",
        lambda s: (*_rows(s), (s.B, s.Sk), (s.B,)),
        mask=MaskProgram(
            keep=_PADDING,
            operands=(Operand("padding", "tensor", 2), Operand("lengths", "tensor", 1)),
        ),
        mask_types=(INT8, INT32),
    ),
    _attention(
        "bias",
        lambda s: (*_rows(s), (H, s.Sq, s.Sk)),
        dtype="float32",
        mask=MaskProgram(
            bias=Load("bias", (H_INDEX, Q_INDEX, K_INDEX), "float"),
            operands=(Operand("bias", "tensor", 3),),
        ),
        mask_types=(DataType.FLOAT,),
    ),
    _attention(
        "constant_table",
        lambda s: (*_rows(s), (33,), (32,), (63,), (63,), (3, 128)),
        mask=MaskProgram(keep=_CONSTANT, operands=(_BLOCK_TABLE,)),
        mask_types=(INT32,) * 5,
    ),
    _attention(
        "run_time_table",
        lambda s: (*_rows(s), (s.B, 1, s.Sq, s.Sk), *_table_outputs(s.B, s.Sq, s.Sk, 64, 32)),
        mask=MaskProgram(keep=_DENSE, operands=(Operand("dense", "tensor", 4),)),
        mask_types=(INT8, INT32, INT32, INT32),
        table=TableInput((64, 32), by_batch=True, by_head=False),
    ),
    _attention(
        "hidden_twice",
        lambda s: (
            *(*_rows(s), (s.B, 1, s.Sq, s.Sk), (s.B, s.Sk)),
            *_table_outputs(s.B, s.Sq, s.Sk, 64, 32),
        ),
        mask=MaskProgram(
            keep=_DENSE,
            fill=-10000.0,
            operands=(Operand("dense", "tensor", 4), Operand("padding", "tensor", 2)),
            again=Load("padding", (B_INDEX, K_INDEX), "bool"),
        ),
        mask_types=(INT8, INT8, INT32, INT32, INT32),
        table=TableInput((64, 32), by_batch=True, by_head=False),
    ),
    _attention("softcap", _rows, softcap=50.0),
    _attention(
        "sinks",
        lambda s: (*_rows(s), (s.B, s.Sk), (H,)),
        mask=MaskProgram(
            keep=Load("padding", (B_INDEX, K_INDEX), "bool"),
            operands=(Operand("padding", "tensor", 2),),
        ),
        mask_types=(INT8, DataType.FLOAT),
        sinks=True,
    ),
    _attention(
        "sinks_before_a_table",
        lambda s: (*_rows(s), (s.B, 1, s.Sq, s.Sk), (H,), *_table_outputs(s.B, s.Sq, s.Sk, 64, 32)),
        dtype="float32",
        mask=MaskProgram(keep=_DENSE, operands=(Operand("dense", "tensor", 4),)),
        mask_types=(INT8, DataType.FLOAT, INT32, INT32, INT32),
        table=TableInput((64, 32), by_batch=True, by_head=False),
        softcap=30.0,
        sinks=True,
    ),
)


def _table_outputs(
    groups: int, queries: int, keys: int, tile_q: int, tile_k: int
) -> tuple[Shape, Shape, Shape]:
    rows, columns = -(-queries // tile_q), -(-keys // tile_k)
    words = tile_q * tile_k // 32
    return (groups, rows, 2), (groups, rows, columns), (groups, rows, columns, words)


def _table(  # noqa: PLR0917
    name: str,
    mask: MaskProgram,
    heads: int,
    size_axes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    tile: tuple[int, int],
    input_types: tuple[DataType, ...],
    inputs: Callable[[Sizes], tuple[Shape, ...]],
) -> NodeCase:
    record = MaskTable(mask, heads, size_axes, tile)
    has_batch = size_axes[0] != SHARED_BY_BATCHES
    symbols = tuple(
        Symbol(symbol, "input", operand, (axis,))
        for symbol, (operand, axis) in zip(("B", "Sq", "Sk"), size_axes, strict=True)
        if operand >= 0
    )
    tiles = Symbol("elements", "output", 2, (0, 1, 2))

    def outputs(s: Sizes) -> tuple[Shape, ...]:
        return _table_outputs((s.B if has_batch else 1) * heads, s.Sq, s.Sk, *tile)

    return NodeCase(name, record, input_types, inputs, outputs, (*symbols, tiles))


def _dense_mask(*index: Any) -> MaskProgram:
    load = Load("dense", index, "bool")
    return MaskProgram(keep=load, operands=(Operand("dense", "tensor", len(index)),))


TABLES = (
    _table(
        "dense_table",
        _dense_mask(B_INDEX, integer(0), Q_INDEX, K_INDEX),
        1,
        ((0, 0), (0, 2), (0, 3)),
        (64, 64),
        (INT8,),
        lambda s: ((s.B, 1, s.Sq, s.Sk),),
    ),
    _table(
        "table_by_head",
        _dense_mask(B_INDEX, H_INDEX, Q_INDEX, K_INDEX),
        H,
        ((0, 0), (0, 2), (0, 3)),
        (16, 128),
        (INT8,),
        lambda s: ((s.B, H, s.Sq, s.Sk),),
    ),
    _table(
        "table_of_all_batches",
        _dense_mask(Q_INDEX, K_INDEX),
        1,
        (SHARED_BY_BATCHES, (0, 0), (0, 1)),
        (32, 8),
        (INT8,),
        lambda s: ((s.Sq, s.Sk),),
    ),
    _table(
        "table_of_ids",
        MaskProgram(
            keep=ge(
                Load("row_ids", (B_INDEX, Q_INDEX), "int"),
                Load("column_ids", (B_INDEX, K_INDEX), "int"),
            ),
            operands=(Operand("row_ids", "tensor", 2), Operand("column_ids", "tensor", 2)),
        ),
        1,
        ((1, 0), (0, 1), (1, 1)),
        (128, 64),
        (INT32, INT32),
        lambda s: ((s.B, s.Sq), (s.B, s.Sk)),
    ),
)

NODES = ATTENTIONS + TABLES


def case(name: str) -> NodeCase:
    """The case of this name."""
    return next(one for one in NODES if one.name == name)
