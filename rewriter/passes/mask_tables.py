"""Build the block table of each dense run-time mask once, for all attention nodes that read it.

    A1 = StofMaskedAttention(Q1, K1, V1, M)            T  = StofMaskTable(M)
    A2 = StofMaskedAttention(Q2, K2, V2, M)     ->     A1 = StofMaskedAttention(Q1, K1, V1, M, *T)
                                                       A2 = StofMaskedAttention(Q2, K2, V2, M, *T)

A mask gets a table if it loads a tensor at two or more indices that differ within a tile. All
other masks the attention kernel decides tile by tile itself: from arithmetic, or by scanning the
stretch of a vector that belongs to the tile.

The operator wants to know B, Sq and Sk from its own inputs (`size_axes`). A mask whose operands
don't show them, as one that is longer than the sequence, gets no table: it is read as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from stof_onnx.ir.expr import Const, Expr, Load, loads, substitute, to_text, variables
from stof_onnx.ir.expr.build import add, floordiv, integer, mul
from stof_onnx.ir.mask.program import B_INDEX, K_INDEX, Q_INDEX, MaskProgram
from stof_onnx.ir.operators.mask_table import OP_TYPE as TABLE
from stof_onnx.ir.operators.mask_table import (
    OUTPUT_NAMES,
    SHARED_BY_BATCHES,
    MaskTable,
    words_per_tile,
)
from stof_onnx.ir.operators.masked_attention import OP_TYPE, MaskedAttention, TableInput
from stof_onnx.ir.operators.registry import DOMAIN, PLUGIN_VERSION
from stof_onnx.ir.operators.tensor_info import ONNX_TYPES, TensorInfo
from stof_onnx.rewriter.graph import ImportedGraph, Node, Tensor, numpy_type, producer
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

TILE = (64, 64)

Axis = tuple[int, int]
Shape = tuple[Expr, ...]


@dataclass(frozen=True)
class AddedTable:
    """A StofMaskTable node of the graph.

    Attributes:
        node: its name.
        attributes: of the node.
        inputs: type and rank of each of its inputs.
    """

    node: str
    attributes: MaskTable
    inputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class _Mask:
    """What an attention node keeps, with the tensors that say so.

    Attributes:
        table: attributes of the table's node.
        tensors: its inputs.
        sizes: B, Sq and Sk as the graph's symbols; B is 1 if all batches share the mask.
    """

    table: MaskTable
    tensors: tuple[Tensor, ...]
    sizes: Shape

    @property
    def key(self) -> Any:
        """Equal for equal masks; the names of operands don't matter."""
        order = {operand.name: str(i) for i, operand in enumerate(self.table.mask.operands)}

        def rename(node: Expr) -> Expr | None:
            return (
                Load(order[node.source], node.index, node.kind) if isinstance(node, Load) else None
            )

        keep = substitute(self.table.mask.keep, rename)
        tensors = tuple(id(tensor) for tensor in self.tensors)
        return keep, tensors, self.table.num_heads, self.table.size_axes


def add_mask_tables(imported: ImportedGraph, sym: SymbolicGraph) -> int:
    """Give every attention node with a dense run-time mask the mask's table.

    Needs: ``sym`` made of the graph before stof nodes were put in, and stof nodes that still
    read the tensors that it knows (so before ``sink_head_transposes``). Ensures: values are
    unchanged, since what an attention computes doesn't depend on its table.

    Returns:
        How many tables were added.
    """
    outputs: dict[Any, list[Tensor]] = {}
    for node in [node for node in imported.graph.nodes if node.op == OP_TYPE]:
        mask = _read(sym, node, MaskedAttention.from_attributes(node.attrs, node.name))
        if mask is None:
            continue
        if mask.key not in outputs:
            outputs[mask.key] = _add_node(imported, mask, len(outputs))
        node.inputs += outputs[mask.key]
        has_batches, has_heads = _dependence(mask.table.mask.keep)
        node.attrs["table"] = TableInput(TILE, has_batches, has_heads).numbers()
    return len(outputs)


def added_tables(imported: ImportedGraph) -> tuple[AddedTable, ...]:
    """The tables that :func:`add_mask_tables` put into a graph."""
    return tuple(
        _added(node, MaskTable.from_attributes(node.attrs, node.name))
        for node in imported.graph.nodes
        if node.op == TABLE
    )


def _added(node: Node, attributes: MaskTable) -> AddedTable:
    inputs = []
    for tensor, operand in zip(node.inputs, attributes.mask.operands, strict=True):
        dtype = numpy_type(tensor)
        assert dtype is not None, f"{tensor.name!r} is loaded, so its type is known"
        number = helper.np_dtype_to_tensor_dtype(dtype)
        inputs.append(TensorInfo(ONNX_TYPES[number], (None,) * operand.rank))
    return AddedTable(node.name, attributes, tuple(inputs))


def _read(sym: SymbolicGraph, node: Node, record: MaskedAttention) -> _Mask | None:
    """The mask of a node that is to have a table; None for any other."""
    keep = record.mask.keep
    found = loads(keep)
    used = {load.source for load in found}
    entries = [
        (operand, node.inputs[position])
        for operand, position in zip(record.mask.operands, record.operand_positions(), strict=False)
        if operand.name in used
    ]
    if record.table is not None or not any(_is_dense(load) for load in found):
        return None
    if any(operand.kind != "tensor" for operand, _ in entries):
        return None
    operands = tuple(operand for operand, _ in entries)
    has_batches, has_heads = _dependence(keep)
    try:
        sizes = _sizes(sym, node, record)
        shapes = {operand.name: _shape(sym, tensor) for operand, tensor in entries}
    except Unliftable:
        return None
    batch, queries, keys = (
        _axis_of_size(found, index, size, shapes)
        for index, size in zip((B_INDEX, Q_INDEX, K_INDEX), sizes, strict=True)
    )
    if not has_batches:
        batch, sizes = SHARED_BY_BATCHES, (integer(1), *sizes[1:])
    if batch is None or queries is None or keys is None:
        return None
    heads = record.num_heads if has_heads else 1
    table = MaskTable(MaskProgram(keep, operands=operands), heads, (batch, queries, keys), TILE)
    return _Mask(table, tuple(tensor for _, tensor in entries), sizes)


def _dependence(keep: Expr) -> tuple[bool, bool]:
    """Whether a mask depends on the batch, and on the head."""
    names = variables(keep)
    return bool({"b", "B"} & names), bool({"h", "H"} & names)


def _is_dense(load: Load) -> bool:
    """Whether two or more indices differ within a tile: no stretch of a vector holds it then."""
    return sum(not {"q", "k"}.isdisjoint(variables(index)) for index in load.index) > 1


def _sizes(sym: SymbolicGraph, node: Node, record: MaskedAttention) -> Shape:
    """B, Sq and Sk, read where the kernels read them."""
    query, key = (sym.shape(tensor) for tensor in node.inputs[:2])
    return (
        query[0],
        query[1 if record.query.order == "BSHD" else 2],
        key[1 if record.key.order == "BSHD" else 2],
    )


def _shape(sym: SymbolicGraph, tensor: Tensor) -> Shape:
    """A mask operand's shape; the rewriter put casts before it, which ``sym`` doesn't know."""
    node = producer(tensor)
    while node is not None and node.op == "Cast" and tensor.name not in sym.tensors:
        tensor = node.inputs[0]
        node = producer(tensor)
    return sym.shape(tensor)


def _axis_of_size(
    found: list[Load], index: Expr, size: Expr, shapes: dict[str, Shape]
) -> Axis | None:
    """(operand, axis) of an axis that is read at exactly this index and has exactly this size."""
    names = list(shapes)
    for load in found:
        for axis, at in enumerate(load.index):
            if at == index and shapes[load.source][axis] == size:
                return names.index(load.source), axis
    return None


def _add_node(imported: ImportedGraph, mask: _Mask, number: int) -> list[Tensor]:
    """Append the table's node; its outputs are typed, as ONNX's shape inference ends there."""
    name = imported.fresh(f"stof/mask_table_{number}")
    batch, queries, keys = mask.sizes
    groups = mul(batch, integer(mask.table.num_heads))
    rows, columns = (
        floordiv(add(size, integer(tile - 1)), integer(tile))
        for size, tile in zip((queries, keys), TILE, strict=True)
    )
    shapes = (
        (groups, rows, integer(2)),
        (groups, rows, columns),
        (groups, rows, columns, integer(words_per_tile(TILE))),
    )
    outputs = [
        gs.Variable(imported.fresh(f"{name}/{output}"), np.int32, [_declared(dim) for dim in shape])
        for output, shape in zip(OUTPUT_NAMES, shapes, strict=True)
    ]
    node = gs.Node(
        op=TABLE,
        name=name,
        attrs={
            **mask.table.attributes(),
            "plugin_version": PLUGIN_VERSION,
            "plugin_namespace": DOMAIN,
        },
        inputs=list(mask.tensors),
        outputs=outputs,
        domain=DOMAIN,
    )
    imported.graph.nodes.append(node)
    return outputs


def _declared(dim: Expr) -> int | str:
    return int(dim.value) if isinstance(dim, Const) else to_text(dim)
