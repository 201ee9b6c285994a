"""StofMaskTable on the GPU: bit by bit what docs/operators.md says, and attention that reads it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import Load
from stof_onnx.ir.expr.build import and_, eq, ge0, integer
from stof_onnx.ir.mask.program import B_INDEX, H_INDEX, K_INDEX, Q_INDEX, MaskProgram
from stof_onnx.ir.operators.mask_table import OP_TYPE, SHARED_BY_BATCHES, MaskTable
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TableInput, TensorLayout
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import DataType, Plan
from stof_onnx.templates.attention_node import AttentionNode
from stof_onnx.templates.table_node import TableNode
from tests.ir.attention_cases import START, Array, tensor
from tests.reference.attention import causal_keep

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.gpu

HEADS, HEAD_DIM = 2, 32
SIZES = ((1, 1, 1), (2, 65, 130), (3, 64, 64), (1, 300, 7), (2, 1, 1000), (1, 257, 513))
"""Batch, Sq, Sk."""
TILES = ((64, 64), (16, 32))


@dataclass(frozen=True)
class Dense:
    """A mask at some size: operands as plugins take them, and the same mask from numpy.

    Attributes:
        operands: values of the node's inputs.
        keep: [B or 1, H or 1, Sq, Sk].
    """

    operands: tuple[Array, ...]
    keep: Array


@dataclass(frozen=True)
class Source:
    """A run-time mask: its program, where sizes are found, and how to draw one."""

    program: MaskProgram
    types: tuple[DataType, ...]
    size_axes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    by_head: bool
    draw: Callable[[np.random.Generator, int, int, int], Dense]

    @property
    def by_batch(self) -> bool:
        """Whether each batch has a group of its own."""
        return self.size_axes[0] != SHARED_BY_BATCHES


def _states(rng: np.random.Generator, *shape: int) -> Array:
    """A mask with empty, full and mixed areas of 16 x 48."""
    *leading, queries, keys = shape
    rows, columns = -(-queries // 16), -(-keys // 48)
    areas = rng.integers(0, 3, (*leading, rows, columns))
    areas = areas.repeat(16, axis=-2).repeat(48, axis=-1)[..., :queries, :keys]
    return (areas == 2) | ((areas == 1) & (rng.random(shape) < 0.5))


def _draw_dense(rng: np.random.Generator, batch: int, queries: int, keys: int) -> Dense:
    keep = _states(rng, batch, 1, queries, keys)
    return Dense((keep.astype(np.int8),), keep)


def _draw_by_head(rng: np.random.Generator, batch: int, queries: int, keys: int) -> Dense:
    keep = _states(rng, batch, HEADS, queries, keys)
    return Dense((keep.astype(np.int8),), keep)


def _draw_shared(rng: np.random.Generator, batch: int, queries: int, keys: int) -> Dense:
    keep = _states(rng, queries, keys) & causal_keep(queries, keys)
    return Dense((keep.astype(np.int8) * 3,), keep[None, None])  # anything but 0 is true


def _draw_padded(rng: np.random.Generator, batch: int, queries: int, keys: int) -> Dense:
    dense, padding = _states(rng, batch, 1, queries, keys), rng.random((batch, keys)) < 0.8
    padding[-1] = False  # a batch that keeps nothing
    return Dense((dense.astype(np.int8), padding.astype(np.int8)), dense & padding[:, None, None])


def _draw_documents(rng: np.random.Generator, batch: int, queries: int, keys: int) -> Dense:
    ids = [
        np.sort(rng.integers(0, 4, (batch, n)), axis=1).astype(np.int32) for n in (queries, keys)
    ]
    return Dense((ids[0], ids[1]), (ids[0][:, None, :, None] == ids[1][:, None, None, :]))


def _sources() -> dict[str, Source]:
    zero = integer(0)
    dense = Load("dense", (B_INDEX, zero, Q_INDEX, K_INDEX), "bool")
    by_head = Load("dense", (B_INDEX, H_INDEX, Q_INDEX, K_INDEX), "bool")
    shared = and_(Load("dense", (Q_INDEX, K_INDEX), "bool"), ge0(START))
    padding = Load("padding", (B_INDEX, K_INDEX), "bool")
    same = eq(Load("queries", (B_INDEX, Q_INDEX), "int"), Load("keys", (B_INDEX, K_INDEX), "int"))
    rank4, rank2 = (tensor("dense", rank) for rank in (4, 2))
    int8, int32 = DataType.INT8, DataType.INT32
    axes4 = ((0, 0), (0, 2), (0, 3))
    return {
        "dense": Source(MaskProgram(dense, operands=(rank4,)), (int8,), axes4, False, _draw_dense),
        "by head": Source(
            MaskProgram(by_head, operands=(rank4,)), (int8,), axes4, True, _draw_by_head
        ),
        "shared": Source(
            MaskProgram(shared, operands=(rank2,)),
            (int8,),
            (SHARED_BY_BATCHES, (0, 0), (0, 1)),
            False,
            _draw_shared,
        ),
        "padded": Source(
            MaskProgram(and_(dense, padding), operands=(rank4, tensor("padding", 2))),
            (int8, int8),
            ((1, 0), (0, 2), (1, 1)),
            False,
            _draw_padded,
        ),
        "documents": Source(
            MaskProgram(same, operands=(tensor("queries", 2), tensor("keys", 2))),
            (int32, int32),
            ((0, 0), (0, 1), (1, 1)),
            False,
            _draw_documents,
        ),
    }


SOURCES = _sources()


def _table_node(source: Source, tile: tuple[int, int]) -> TableNode:
    heads = HEADS if source.by_head else 1
    record = MaskTable(source.program, heads, source.size_axes, tile)
    return TableNode(record, _infos(source))


def _infos(source: Source) -> tuple[TensorInfo, ...]:
    pairs = zip(source.program.operands, source.types, strict=True)
    return tuple(TensorInfo(dtype, (None,) * operand.rank) for operand, dtype in pairs)


def _attention_node(source: Source, tile: tuple[int, int] | None) -> AttentionNode:
    layout = TensorLayout("BSHD", 0, HEAD_DIM)
    table = None if tile is None else TableInput(tile, source.by_batch, source.by_head)
    record = MaskedAttention(
        num_heads=HEADS,
        kv_num_heads=HEADS,
        head_dim=HEAD_DIM,
        value_head_dim=HEAD_DIM,
        scale=0.25,
        query=layout,
        key=layout,
        value=layout,
        output="BSHD",
        output_rank=3,
        mask=replace(source.program, nan_to_zero=True),
        dtype="float16",
        table=table,
    )
    record.validate()
    inputs = [TensorInfo(DataType.HALF, (None, None, HEADS * HEAD_DIM))] * 3 + [*_infos(source)]
    if table is not None:
        ranks = (3, 3, 4)
        inputs += [TensorInfo(DataType.INT32, (None,) * rank) for rank in ranks]
    return AttentionNode(record, tuple(inputs))


@functools.cache
def _plans() -> dict[str, Plan]:
    """Everything this module runs, compiled at once."""
    from stof_onnx.planning import make_plans
    from tests.gpu.harness import device_target, make_cache

    nodes: dict[str, TableNode | AttentionNode] = {}
    for name, source in SOURCES.items():
        nodes[f"{name} attention None"] = _attention_node(source, None)
        for tile in TILES:
            nodes[f"{name} table {tile}"] = _table_node(source, tile)
            nodes[f"{name} attention {tile}"] = _attention_node(source, tile)
    return make_plans(nodes, [device_target()], producer="tests", cache=make_cache())


def _specified(keep: Array, tile: tuple[int, int]) -> tuple[Array, Array, Array]:
    """The three outputs by the words of docs/operators.md. keep: [G, Sq, Sk]."""
    groups, queries, keys = keep.shape
    rows, columns = -(-queries // tile[0]), -(-keys // tile[1])
    counts = np.zeros((groups, rows, 2), np.int32)
    listed = np.full((groups, rows, columns), -1, np.int32)
    bits = np.zeros((groups, rows * tile[0], columns * tile[1]), np.bool_)
    bits[:, :queries, :keys] = keep
    for g, row in np.ndindex(groups, rows):
        tiles = [
            keep[g, row * tile[0] : (row + 1) * tile[0], c * tile[1] : (c + 1) * tile[1]]
            for c in range(columns)
        ]
        full = [c for c, pairs in enumerate(tiles) if pairs.all()]
        partial = [c for c, pairs in enumerate(tiles) if pairs.any() and not pairs.all()]
        counts[g, row] = len(full), len(partial)
        listed[g, row, : len(full) + len(partial)] = full + partial
    # [G, row, i, r, column, j, c] of pair (8 i + r, 8 j + c): r and c last, c fastest.
    cut = bits.reshape(groups, rows, tile[0] // 8, 8, columns, tile[1] // 8, 8)
    words = np.packbits(cut.transpose(0, 1, 4, 2, 5, 3, 6), axis=-1, bitorder="little")
    return counts, listed, words.reshape(groups, rows, columns, -1).view("<i4").astype(np.int32)


def _run_table(source: Source, name: str, tile: tuple[int, int], mask: Dense) -> list[torch.Tensor]:
    from tests.gpu.harness import Engine, node_attributes, to_device

    attributes = _table_node(source, tile).record.attributes()
    plan = _plans()[f"{name} table {tile}"]
    return Engine(OP_TYPE, node_attributes(attributes, plan)).run(
        [to_device(x) for x in mask.operands]
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_tables_are_right_bit_by_bit(
    name: str, tile: tuple[int, int], size: tuple[int, int, int]
) -> None:
    source = SOURCES[name]
    mask = source.draw(np.random.default_rng(11), *size)
    wanted = _specified(mask.keep.reshape(-1, *mask.keep.shape[2:]), tile)
    got = [x.cpu().numpy() for x in _run_table(source, name, tile, mask)]
    for what, one, other in zip(("counts", "columns", "bitmaps"), got, wanted, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=what)
    constant = BlockTable.from_dense(mask.keep.reshape(-1, *mask.keep.shape[2:]), tile)
    np.testing.assert_array_equal(got[0][..., 0].ravel(), constant.full_counts)
    lengths = np.diff(constant.row_offsets)
    np.testing.assert_array_equal(got[0].sum(axis=2).ravel(), lengths)
    if lengths.sum():
        np.testing.assert_array_equal(got[1][got[1] >= 0], constant.tile_columns)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_attention_is_the_same_with_a_table(
    name: str, tile: tuple[int, int], size: tuple[int, int, int]
) -> None:
    from tests.gpu.harness import Engine, to_device
    from tests.reference.attention import attention

    source, (batch, queries, keys) = SOURCES[name], size
    rng = np.random.default_rng(11)
    mask = source.draw(rng, *size)
    rows = [rng.standard_normal((batch, n, HEADS * HEAD_DIM)) for n in (queries, keys, keys)]
    halves = [x.astype(np.float16) for x in rows]
    inputs = [to_device(x) for x in (*halves, *mask.operands)]
    table = _run_table(source, name, tile, mask)
    results = []
    for used, tail in ((None, []), (tile, table)):
        node = _attention_node(source, used)
        engine = Engine.of(node.record, _plans()[f"{name} attention {used}"])
        results += [x.double().cpu().numpy() for x in engine.run([*inputs, *tail])]
    parts = [x.reshape(batch, -1, HEADS, HEAD_DIM).swapaxes(1, 2) for x in halves]
    wanted = attention(*parts, mask.keep, scale=0.25, empty_row="zero")
    for result in results:
        heads = result.reshape(batch, queries, HEADS, HEAD_DIM).swapaxes(1, 2)
        np.testing.assert_allclose(heads, wanted, atol=4e-3, rtol=4e-3)
    # Keys are summed in tiles of other sizes where the table's own are smaller.
    difference = np.abs(results[0] - results[1]).max(initial=0.0)
    assert difference == 0 if tile == (64, 64) else difference < 4e-3
