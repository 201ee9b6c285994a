"""The attention template on nodes with a run-time table: settings, launch, code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stof_onnx.ir.expr import Expr
from stof_onnx.ir.mask.program import (
    B_INDEX,
    H_INDEX,
    K_INDEX,
    Q_INDEX,
    MaskProgram,
    Operand,
)
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TableInput, TensorLayout
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import Bucket, DataType, Kernel, Plan, Variant, encode, launches
from stof_onnx.ir.target import Target
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.jit.job import CompileJob
from stof_onnx.templates import masked_attention_mma
from stof_onnx.templates.attention_node import AttentionNode
from tests.templates.mask_cases import load

HEADS, DIM = 4, 64
BY_BATCH = TableInput((64, 64), by_batch=True, by_head=False)
DENSE = load("m", B_INDEX, Q_INDEX, K_INDEX)
SLOPE = load("s", H_INDEX, kind="float")


def node_of(table: TableInput | None, bias: Expr | None = None) -> AttentionNode:
    """Half precision, a dense mask [B, Sq, Sk] and perhaps a bias [H]."""
    layout = TensorLayout("BSHD", 0, DIM)
    operands = [Operand("m", "tensor", 3), Operand("s", "tensor", 1)][: 1 if bias is None else 2]
    record = MaskedAttention(
        num_heads=HEADS,
        kv_num_heads=HEADS,
        head_dim=DIM,
        value_head_dim=DIM,
        scale=0.125,
        query=layout,
        key=layout,
        value=layout,
        output="BSHD",
        output_rank=3,
        mask=MaskProgram(DENSE, bias, operands=tuple(operands)),
        dtype="float16",
        table=table,
    )
    record.validate()
    inputs = [TensorInfo(DataType.HALF, (None, None, HEADS * DIM))] * 3
    inputs.append(TensorInfo(DataType.INT8, (None,) * 3))
    if bias is not None:
        inputs.append(TensorInfo(DataType.FLOAT, (None,)))
    if table is not None:
        inputs += [TensorInfo(DataType.INT32, (None,) * rank) for rank in (3, 3, 4)]
    assert len(inputs) == record.input_count()
    return AttentionNode(record, tuple(inputs))


def usable(node: AttentionNode, target: str = "sm_90") -> list[tuple[int, int]]:
    found = masked_attention_mma.candidates(node, Target.parse(target))
    return [(setting.tile_q, setting.tile_k) for setting, reason in found if reason is None]


@pytest.mark.parametrize(
    ("tile", "wanted"),
    [
        ((64, 64), [(64, 64), (64, 32), (32, 32), (32, 16), (16, 16)]),
        ((32, 64), [(32, 32), (32, 16), (16, 16)]),
        ((64, 16), [(16, 16), (32, 16)]),
        ((48, 48), [(16, 16)]),
    ],
)
def test_tiles_divide_those_of_the_table(
    tile: tuple[int, int], wanted: list[tuple[int, int]]
) -> None:
    node = node_of(replace(BY_BATCH, tile=tile))
    assert masked_attention_mma.refusal(node.record) is None
    assert sorted(usable(node)) == sorted(wanted)


def test_small_tiles_are_refused() -> None:
    reason = masked_attention_mma.refusal(node_of(replace(BY_BATCH, tile=(64, 8))).record)
    assert reason == "the run-time table has tiles of (64, 8), wanted multiples of 16"


def test_the_table_s_sizes_are_arguments() -> None:
    node = node_of(BY_BATCH, SLOPE)
    setting, _ = next(masked_attention_mma.candidates(node, Target.parse("sm_80")))
    shared = masked_attention_mma.max_dynamic_shared(node, setting)
    kernel = Kernel(masked_attention_mma.NAME, "entry", "cubin", b"code", 32, 0, shared)
    launch = masked_attention_mma.launch(node, setting, kernel)
    workspace = masked_attention_mma.workspace(node, setting)
    bucket = Bucket((), setting.tactic(), workspace, (launch,))
    plan = Plan(
        node.operator,
        "test",
        node.input_types,
        node.output_types,
        masked_attention_mma.symbols(node),
        node.checks,
        (Variant.of(Target.parse("sm_80"), (bucket,)),),
    )
    encode(plan)
    rows = [(2, 100, 256), (2, 300, 256), (2, 300, 256)]
    table = [(2, 2, 2), (2, 2, 5), (2, 2, 5, 128)]
    (found,) = launches(plan, (8, 0), [*rows, (2, 100, 300), (HEADS,), *table], [(2, 100, 256)])
    tail = [(one.kind, one.tensor, one.value) for one in found.arguments[-8:]]
    # The bias and its size; the table's arrays; its groups, tiles of queries and of keys. The
    # mask's own tensor isn't read.
    assert tail == [
        ("input", 4, 0),
        ("i32", 0, HEADS),
        ("input", 5, 0),
        ("input", 6, 0),
        ("input", 7, 0),
        ("i32", 0, 2),
        ("i32", 0, 2),
        ("i32", 0, 5),
    ]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_the_template_compiles_with_a_table(target: str) -> None:
    folder = Path(masked_attention_mma.__file__).parents[1] / "kernels"
    headers = tuple((name, (folder / name).read_text()) for name in masked_attention_mma.HEADERS)
    jobs = []
    for node in (node_of(BY_BATCH), node_of(replace(BY_BATCH, by_head=True), SLOPE)):
        setting, _ = next(masked_attention_mma.candidates(node, Target.parse(target)))
        source = masked_attention_mma.source(node, setting)
        entry, architecture = masked_attention_mma.ENTRY, Target.parse(target).architecture
        jobs.append(CompileJob(source, entry, architecture, headers))
    for kernel in compile_kernels(jobs, cache=None):
        assert not kernel.warnings
        assert kernel.resources is not None
        # A handful of spilled registers beside a bias; more would be felt.
        assert kernel.resources.spill_loads_bytes <= 64
