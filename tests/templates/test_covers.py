"""Which axes of mask operands must broadcast or be as long as the mask is: those read in order."""

from __future__ import annotations

import pytest

from stof_onnx.ir.expr import Expr, Load
from stof_onnx.ir.expr.build import add, and_, ge, ge0, integer, sub
from stof_onnx.ir.mask.program import (
    B_INDEX,
    H_INDEX,
    K_INDEX,
    KEYS,
    Q_INDEX,
    QUERIES,
    MaskProgram,
    Operand,
)
from stof_onnx.ir.operators.mask_table import SHARED_BY_BATCHES, MaskTable
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import DataType
from stof_onnx.templates import mask_table, masked_attention_mma
from stof_onnx.templates.mask_source import MaskSource, mask_source
from stof_onnx.templates.table_node import TableNode
from tests.templates.attention_nodes import attention_node

b, h, q, k = B_INDEX, H_INDEX, Q_INDEX, K_INDEX
ZERO = integer(0)


def load(*index: Expr, name: str = "x") -> Expr:
    return Load(name, index, "bool")


def number(*index: Expr, name: str = "x") -> Expr:
    return Load(name, index, "int")


def source_of(keep: Expr, ranks: dict[str, int], kind: DataType = DataType.INT8) -> MaskSource:
    operands = tuple(Operand(name, "tensor", rank) for name, rank in ranks.items())
    types = (DataType.HALF,) * 3 + (kind,) * len(operands)
    return mask_source(MaskProgram(keep, operands=operands), types, 3)


@pytest.mark.parametrize(
    ("keep", "rank", "reads"),
    [
        (load(k), 1, [("operand0_size0", "Sk")]),
        (load(q), 1, [("operand0_size0", "Sq")]),
        (load(b), 1, [("operand0_size0", "B")]),
        (load(h), 1, [("operand0_size0", "H")]),
        (
            load(b, h, q, k),
            4,
            [
                ("operand0_size0", "B"),
                ("operand0_size1", "H"),
                ("operand0_size2", "Sq"),
                ("operand0_size3", "Sk"),
            ],
        ),
        # Shifted or computed: the original graph compares no sizes there.
        (load(add(q, integer(1))), 1, []),
        (load(sub(KEYS, k)), 1, []),
        (load(add(q, sub(KEYS, QUERIES))), 1, []),
        (load(KEYS), 1, []),
        (load(ZERO), 1, []),
        (load(ZERO, k), 2, [("operand0_size1", "Sk")]),
        # Both of document ids' axes; the batch once.
        (
            ge(number(b, q), number(b, k)),
            2,
            [("operand0_size0", "B"), ("operand0_size1", "Sk"), ("operand0_size1", "Sq")],
        ),
        (and_(load(k), load(add(k, integer(1)))), 1, [("operand0_size0", "Sk")]),
        # What is gathered at a loaded position has any size, the positions have their own.
        (load(b, number(k, name="y")), 2, [("operand0_size0", "B"), ("operand1_size0", "Sk")]),
    ],
    ids=str,
)
def test_axes_that_are_read_in_order_are_covered(
    keep: Expr, rank: int, reads: list[tuple[str, str]]
) -> None:
    source = source_of(keep, {"x": rank, "y": 1})
    assert sorted(source.reads) == reads
    names = {symbol.name for symbol in source.symbols}
    assert {symbol for symbol, _ in reads} <= names


def test_a_bias_that_is_left_out_covers_nothing() -> None:
    bias = Load("x", (k,), "float")
    program = MaskProgram(ge0(sub(q, k)), bias, operands=(Operand("x", "tensor", 1),))
    types = (DataType.HALF,) * 4
    assert mask_source(program, types, 3).reads == (("operand0_size0", "Sk"),)
    without = mask_source(program, types, 3, use_bias=False)
    assert (without.reads, without.symbols) == ((), ())


@pytest.mark.parametrize(
    ("mask", "covers"),
    [
        ("none", []),
        ("causal", []),
        ("alibi", []),
        ("table", []),
        (
            "padding",
            ["operand0_size0 is 1 or at least B", "operand0_size1 is 1 or at least Sk"],
        ),
        (
            "bias",
            [
                "operand0_size0 is 1 or at least B",
                "operand0_size1 is 1 or at least 4",
                "operand0_size2 is 1 or at least Sq",
                "operand0_size3 is 1 or at least Sk",
            ],
        ),
        # The kernel reads the table in place of the mask; the mask is the node's input still.
        (
            "run-time table",
            ["operand0_size0 is 1 or at least B", "operand0_size1 is 1 or at least Sk"],
        ),
        # What says which pairs are hidden twice is read beside it.
        (
            "hidden twice, bias, sinks, run-time table",
            [
                "operand0_size0 is 1 or at least B",
                "operand0_size1 is 1 or at least Sk",
                "operand1_size0 is 1 or at least B",
                "operand1_size1 is 1 or at least 4",
                "operand1_size2 is 1 or at least Sq",
                "operand1_size3 is 1 or at least Sk",
            ],
        ),
        # Of the operands, only the tensor is.
        (
            "two tables",
            ["operand1_size0 is 1 or at least B", "operand1_size1 is 1 or at least Sk"],
        ),
    ],
)
def test_covers_of_attention(mask: str, covers: list[str]) -> None:
    node = attention_node(mask)
    assert [str(cover) for cover in masked_attention_mma.covers(node)] == covers
    places = {symbol.name: symbol.tensor for symbol in masked_attention_mma.symbols(node)}
    inputs = {8} if mask == "two tables" else {3, 4}
    assert {places[cover.symbol] for cover in masked_attention_mma.covers(node)} <= inputs


def test_the_symbols_of_unread_operands_are_no_parameters() -> None:
    record = attention_node("run-time table").record
    types = attention_node("run-time table").input_types
    source = mask_source(record.mask, types, 3, table=record.table)
    assert {symbol.name for symbol in source.symbols} > {"operand0_size0", "operand0_size1"}
    assert not [one for one in source.parameters if one.name.startswith("operand0")]


@pytest.mark.parametrize(
    ("keep", "batch", "heads", "covers"),
    [
        (load(b, h, q, k), (0, 0), 6, ["0 is 1 or at least B", "1 is 1 or at least 6"]),
        (load(ZERO, ZERO, q, k), SHARED_BY_BATCHES, 1, []),
    ],
    ids=str,
)
def test_covers_of_a_table(
    keep: Expr, batch: tuple[int, int], heads: int, covers: list[str]
) -> None:
    mask = MaskProgram(keep, operands=(Operand("x", "tensor", 4),))
    record = MaskTable(mask, heads, (batch, (0, 2), (0, 3)), (64, 64))
    node = TableNode(record, (TensorInfo(DataType.INT8, (None,) * 4),))
    wanted = [*covers, "2 is 1 or at least Sq", "3 is 1 or at least Sk"]
    assert [str(cover) for cover in mask_table.covers(node)] == [
        f"operand0_size{one}" for one in wanted
    ]
