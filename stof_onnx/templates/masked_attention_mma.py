"""The template plugins/kernels/masked_attention_mma.cuh: attention with mma.sync, from sm_80 on.

STOF paper, section 4 (block-wise kernel); the loop is that of FlashAttention-2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from stof_onnx.ir.operators.masked_attention import MaskedAttention
from stof_onnx.ir.plan import Cover, DataType, Launch, Quantity, Symbol, Tactic
from stof_onnx.ir.plan.records import Kernel
from stof_onnx.ir.target import Target
from stof_onnx.templates.attention_node import ELEMENT_TYPES, FIRST_OPERAND, AttentionNode
from stof_onnx.templates.mask_source import MaskSource, float_literal, mask_source
from stof_onnx.templates.signature import C_TYPES, SIZES, Parameter, declare, int32

NAME = "masked_attention_mma"
ENTRY = "stof_masked_attention_mma"
HEADERS: tuple[str, ...] = (
    "numbers.cuh",
    "mask_algebra.cuh",
    "mask_operands.cuh",
    "tensor_core.cuh",
    "tile_products.cuh",
    "masked_attention_mma.cuh",
)
LARGEST_HEAD_DIM = 256

# Shared memory that one block can have, by compute capability (CUDA programming guide, table of
# technical specifications): portable PTX has to do with the smallest.
_SHARED_BYTES = {
    "portable": 99 * 1024,
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_103": 227 * 1024,
    "sm_120": 99 * 1024,
}
_EMPTY_ROWS = {"nan": "kNan", "zero": "kZero", "mean": "kMean", "softmax": "kSoftmax"}


@dataclass(frozen=True)
class Parameters:
    """The template's compile-time parameters.

    Attributes:
        tile_q: queries of a block; 16 a warp.
        tile_k: keys of a step.
    """

    tile_q: int = 64
    tile_k: int = 64

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 2 * self.tile_q

    def tactic(self) -> Tactic:
        """The parameters as the plan shows them."""
        return Tactic({"template": NAME, **asdict(self)})


def refusal(record: MaskedAttention) -> str | None:
    """Why no setting of the template can run a node; None if some can."""
    largest = max(record.head_dim, record.value_head_dim)
    if largest > LARGEST_HEAD_DIM:
        return f"head dim {largest} is above {LARGEST_HEAD_DIM}"
    for operand in record.mask.operands:
        if operand.kind == "block_table" and any(size % 16 for size in operand.tile):
            return (
                f"block table {operand.name!r} has tiles of {operand.tile}, wanted multiples of 16"
            )
    if record.table is not None and any(size % 16 for size in record.table.tile):
        return f"the run-time table has tiles of {record.table.tile}, wanted multiples of 16"
    return None


def candidates(node: AttentionNode, target: Target) -> Iterator[tuple[Parameters, str | None]]:
    """Every setting, each with the reason why it can't be used, or None. The best guess first."""
    wide = max(node.record.head_dim, node.record.value_head_dim) > 128
    sizes = [(64, 64), (64, 32), (32, 32), (32, 16), (16, 16)]
    if wide or node.element_type == DataType.FLOAT:  # registers and shared memory run short
        sizes = [(64, 32), (64, 64), *sizes[2:]]
    for tile_q, tile_k in sizes:
        parameters = Parameters(tile_q, tile_k)
        yield parameters, _reject(node, target, parameters)


def _reject(node: AttentionNode, target: Target, parameters: Parameters) -> str | None:
    need, limit = shared_bytes(node, parameters), _SHARED_BYTES[target.name]
    if need > limit:
        return f"{need} bytes of shared memory, {target.name} has {limit}"
    for tile in _table_tiles(node.record):
        if tile[0] % parameters.tile_q or tile[1] % parameters.tile_k:
            own = f"{parameters.tile_q}x{parameters.tile_k}"
            return f"a tile of {own} spans several of the mask table's {tile}"
    return None


def _table_tiles(record: MaskedAttention) -> list[tuple[int, ...]]:
    """Tiles of the tables that the kernel reads."""
    if record.table is not None:
        return [record.table.tile]
    return [operand.tile for operand in record.mask.operands if operand.kind == "block_table"]


def shared_bytes(node: AttentionNode, parameters: Parameters) -> int:
    """Dynamic shared memory: sizeof(SharedStorage), which the kernel asserts."""
    size = SIZES[node.element_type]
    key_padding, value_padding = (8, 4) if size == 4 else (8, 8)
    key_pitch = _padded(node.record.head_dim) + key_padding
    value_pitch = _padded(node.record.value_head_dim) + value_padding
    elements = (
        parameters.tile_q * max(key_pitch, value_pitch)
        + parameters.tile_k * key_pitch
        + parameters.tile_k * value_pitch
    )
    cursors = max(_source(node).tables, 1)
    tail = parameters.threads * 4 * (1 + cursors) + parameters.tile_q // 16 * 4
    return -(-(elements * size + tail) // 16) * 16


def _padded(dim: int) -> int:
    return -(-dim // 16) * 16


def _source(node: AttentionNode) -> MaskSource:
    record = node.record
    return mask_source(
        record.mask,
        node.input_types,
        FIRST_OPERAND,
        use_again=record.mask.empty_row(record.score_dtype) == "softmax",
        table=record.table,
        table_input=record.table_position(),
    )


def _config(node: AttentionNode, parameters: Parameters) -> dict[str, str | int]:
    """The members of the kernel's Config: type and name, value."""
    record, mask = node.record, node.record.mask
    copies = {tensor.name: tensor.copy_bytes for tensor in node.strided()}
    empty_row = mask.empty_row(record.score_dtype)
    constants: dict[str, str | int] = {
        "int kHeadDim": record.head_dim,
        "int kValueDim": record.value_head_dim,
        "int kTileQ": parameters.tile_q,
        "int kTileK": parameters.tile_k,
        "int kGroup": record.num_heads // record.kv_num_heads,
        **{f"int k{name.capitalize()}CopyBytes": size for name, size in copies.items()},
        "float kScale": float_literal(record.scale),
        "float kSoftcap": float_literal(record.softcap),
        "bool kHasSinks": _boolean(record.sinks),
        "bool kNanToZero": _boolean(mask.nan_to_zero),
        "stof::EmptyRow kEmptyRow": f"stof::EmptyRow::{_EMPTY_ROWS[empty_row]}",
    }
    is_beside = empty_row in ("mean", "softmax") and (record.sinks or mask.bias is not None)
    if empty_row == "softmax" or is_beside:
        constants["float kFill"] = float_literal(mask.fill)
        constants["bool kFillIsAdded"] = _boolean(mask.fill_mode == "add")
    if is_beside:  # a fill has other scores beside it that aren't those of keys it leaves visible
        constants["float kEmptyBelow"] = float_literal(mask.empty_below(record.score_dtype))
    return constants


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def source(node: AttentionNode, parameters: Parameters) -> str:
    """The translation unit."""
    mask = _source(node)
    element = C_TYPES[node.element_type]
    score = C_TYPES[ELEMENT_TYPES[node.record.score_dtype]]
    constants = _config(node, parameters)
    config = "\n".join(f"  static constexpr {name} = {value};" for name, value in constants.items())
    sinks = node.sinks()
    tensors = ",\n      ".join(tensor.value for tensor in node.strided())
    return f"""\
// Generated by stof-onnx from the template {NAME}.
#include "mask_operands.cuh"
#include "masked_attention_mma.cuh"

namespace {{

struct Config {{
  using Element = {element};
  using ScoreElement = {score};
{config}
}};

{mask.text}

}}  // namespace

extern "C" __global__ void __launch_bounds__({parameters.threads}) {ENTRY}(
    {declare(_parameters(node))}) {{
  using Layout = stof::AttentionLayout<Config, Mask::kTables>;
  static_assert(sizeof(Layout::SharedStorage) == {shared_bytes(node, parameters)},
                "the launch asks for another amount of shared memory");
  const stof::AttentionTensors<Config::Element> tensors{{
      {tensors},
      {"nullptr" if sinks is None else sinks.name}, B, H, Sq, Sk}};
  stof::masked_attention<Config>(tensors, {mask.value});
}}
"""


def _parameters(node: AttentionNode) -> tuple[Parameter, ...]:
    tensors = (parameter for tensor in node.strided() for parameter in tensor.parameters)
    sizes = (
        int32("B", "B"),
        int32("H", node.record.num_heads),
        int32("Sq", "Sq"),
        int32("Sk", "Sk"),
    )
    sinks = node.sinks()
    return (*tensors, *(() if sinks is None else (sinks,)), *sizes, *_source(node).parameters)


def launch(node: AttentionNode, parameters: Parameters, kernel: Kernel) -> Launch:
    """The launch record: a block for each tile of queries of each head."""
    blocks = Quantity.of("Sq").ceil(parameters.tile_q) * node.record.num_heads * Quantity.of("B")
    return Launch(
        kernel=kernel,
        grid=(blocks, Quantity.of(1), Quantity.of(1)),
        block=(parameters.threads, 1, 1),
        shared=Quantity.of(shared_bytes(node, parameters)),
        arguments=tuple(parameter.argument for parameter in _parameters(node)),
    )


def symbols(node: AttentionNode) -> tuple[Symbol, ...]:
    """What the launch's quantities use."""
    return (*node.symbols, *_source(node).symbols)


def workspace(node: AttentionNode, parameters: Parameters) -> Quantity:
    """None is needed."""
    del node, parameters
    return Quantity()


def max_dynamic_shared(node: AttentionNode, parameters: Parameters) -> int:
    """The most bytes of dynamic shared memory that a launch asks for."""
    return shared_bytes(node, parameters)


def covers(node: AttentionNode) -> tuple[Cover, ...]:
    """Which axes of the mask's operands are broadcast or read to a known length."""
    return _source(node).covers(node.sizes)
