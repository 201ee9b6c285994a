"""StofMaskedAttention as standard operators: what `expand` writes, and with it the definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stof_onnx.ir.block_table import ARRAY_NAMES, BlockTable
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr.build import FALSE, TRUE
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.operators.builder import Builder
from stof_onnx.ir.operators.mask_expansion import MaskEmitter

if TYPE_CHECKING:
    from stof_onnx.ir.operators.masked_attention import MaskedAttention, TensorLayout


def expand_attention(  # noqa: PLR0917
    record: MaskedAttention,
    builder: Builder,
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: Mapping[str, Array],
    node: str,
) -> None:
    """Write a node as standard operators; see :meth:`MaskedAttention.expand`."""
    if len(inputs) != record.input_count():
        raise MalformedNodeError(
            f"node {node!r} has {len(inputs)} inputs", f"{record.input_count()}"
        )
    if len(outputs) != 1:
        raise MalformedNodeError(f"node {node!r} has {len(outputs)} outputs", "1")
    query, key, value = inputs[:3]
    groups = record.num_heads // record.kv_num_heads
    sizes = {
        "B": builder.dim(query, 0),
        "H": builder.const([record.num_heads], np.int64),
        "Sq": _length(builder, query, record.query),
        "Sk": _length(builder, key, record.key),
    }
    q = _heads(builder, query, record.query, record.num_heads, record.head_dim)
    k = _heads(builder, key, record.key, record.kv_num_heads, record.head_dim)
    v = _heads(builder, value, record.value, record.kv_num_heads, record.value_head_dim)
    k, v = _repeat_heads(builder, k, groups), _repeat_heads(builder, v, groups)
    scores = _softcapped(record, builder, _scores(record, builder, q, k))
    tensors, tables = _operands(record, inputs, constants, node)
    masked = _mask(record, builder, scores, MaskEmitter(builder, sizes, tensors, tables))
    logits = _cast(builder, masked, record.score_dtype, "float32")
    position = record.sinks_position()
    if position is None:
        weights = builder.op("Softmax", logits, axis=-1)
    else:
        weights = _softmax_with_sinks(builder, logits, inputs[position], sizes)
    if record.mask.nan_to_zero:
        zero = builder.const(0.0, np.float32)
        weights = builder.op("Where", builder.op("IsNaN", weights), zero, weights)
    _output(record, builder, _cast(builder, weights, "float32", record.dtype), v, outputs[0])


def _output(
    record: MaskedAttention, builder: Builder, weights: str, values: str, output: str
) -> None:
    if record.output == "BHSD":
        builder.op("MatMul", weights, values, output=output)
        return
    product = builder.op("MatMul", weights, values)
    if record.output_rank == 4:
        builder.op("Transpose", product, perm=[0, 2, 1, 3], output=output)
        return
    result = builder.op("Transpose", product, perm=[0, 2, 1, 3])
    builder.reshape(result, 0, 0, record.num_heads * record.value_head_dim, output=output)


def _scores(record: MaskedAttention, builder: Builder, query: str, key: str) -> str:
    """scale * Q K^T, accumulated in float32, as score_dtype.

    The factor meets the smaller side of the product, so that neither large products
    (half precision, scale below 1) nor large factors overflow on the way.
    """
    factor = builder.const(record.scale, np.float32)
    q, k = (_cast(builder, x, record.dtype, "float32") for x in (query, key))
    if abs(record.scale) <= 1:
        q = builder.op("Mul", q, factor)
    scores = builder.op("MatMul", q, builder.op("Transpose", k, perm=[0, 1, 3, 2]))
    if abs(record.scale) > 1:
        scores = builder.op("Mul", scores, factor)
    return _cast(builder, scores, "float32", record.score_dtype)


def _softcapped(record: MaskedAttention, builder: Builder, scores: str) -> str:
    """softcap * tanh(scores / softcap), all of it in score_dtype."""
    if not record.softcap:
        return scores
    cap = builder.scalar_like(record.softcap, record.score_dtype)
    return builder.op("Mul", builder.op("Tanh", builder.op("Div", scores, cap)), cap)


def _softmax_with_sinks(builder: Builder, logits: str, sinks: str, sizes: Mapping[str, str]) -> str:
    """The weights of the keys in a softmax over keys and sink: a column more, cut off again."""
    one = builder.const([1], np.int64)
    shape = builder.op("Concat", sizes["B"], sizes["H"], sizes["Sq"], one, axis=0)
    column = builder.op("Expand", builder.unsqueeze(sinks, 0, 2, 3), shape)
    weights = builder.op("Softmax", builder.op("Concat", logits, column, axis=3), axis=-1)
    return builder.slice(weights, 3, 0, -1)


def _mask(record: MaskedAttention, builder: Builder, scores: str, emitter: MaskEmitter) -> str:
    program = record.mask
    if program.bias is not None:
        bias = _cast(builder, emitter.emit(program.bias), "float32", record.score_dtype)
        scores = builder.op("Add", scores, bias)
    if program.keep == TRUE:
        return scores
    keep = emitter.emit(program.keep)
    fill = builder.scalar_like(program.fill, record.score_dtype)
    zero = builder.scalar_like(0.0, record.score_dtype)
    if program.fill_mode == "replace":
        masked = builder.op("Where", keep, scores, fill)
    else:
        masked = builder.op("Add", scores, builder.op("Where", keep, zero, fill))
    if program.again == FALSE:
        return masked
    more = builder.op("Where", emitter.emit(program.again), fill, zero)
    return builder.op("Where", keep, masked, builder.op("Add", masked, more))


def _operands(
    record: MaskedAttention, inputs: Sequence[str], constants: Mapping[str, Array], node: str
) -> tuple[dict[str, str], dict[str, Array]]:
    tensors: dict[str, str] = {}
    tables: dict[str, Array] = {}
    for operand, position in zip(record.mask.operands, record.operand_positions(), strict=False):
        if operand.kind == "tensor":
            tensors[operand.name] = inputs[position]
            continue
        names = inputs[position : position + len(ARRAY_NAMES)]
        missing = [name for name in names if name not in constants]
        if missing:
            raise MalformedNodeError(
                f"node {node!r}: block table input {missing[0]!r} is not an initializer"
            )
        arrays = {a: constants[n] for a, n in zip(ARRAY_NAMES, names, strict=True)}
        try:
            table = BlockTable.from_arrays(arrays, shape=operand.shape, tile=operand.tile)
        except MalformedNodeError as error:
            raise MalformedNodeError(f"node {node!r}, operand {operand.name!r}: {error}") from error
        tables[operand.name] = table.to_dense()
    return tensors, tables


def _cast(builder: Builder, value: str, source: str, target: str) -> str:
    return value if source == target else builder.cast(value, target)


def _length(builder: Builder, tensor: str, layout: TensorLayout) -> str:
    return builder.dim(tensor, 1 if layout.order == "BSHD" else 2)


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
