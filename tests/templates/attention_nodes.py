"""Representative StofMaskedAttention nodes: every mask form, element type and head dim."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from stof_onnx.ir.expr import Const, Expr, Load
from stof_onnx.ir.expr.build import (
    TRUE,
    add,
    and_,
    eq,
    fmul,
    ge,
    gt,
    integer,
    not_,
    or_,
    sub,
    to_float,
)
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
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TableInput, TensorLayout
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import DataType
from stof_onnx.ir.target import Target
from stof_onnx.jit.job import CompileJob
from stof_onnx.templates import masked_attention_mma as template
from stof_onnx.templates.attention_node import ELEMENT_TYPES, AttentionNode

KERNELS = Path(__file__).parents[2] / "plugins" / "kernels"
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "portable")
HEAD_DIMS = (32, 64, 80, 128, 256, 33, 12)
FLOAT32_MIN = -3.4028234663852886e38

b, h, q, k = B_INDEX, H_INDEX, Q_INDEX, K_INDEX
CAUSAL = ge(add(q, sub(KEYS, QUERIES)), k)
PADDING = Load("padding", (b, k), "bool")


@dataclass(frozen=True)
class MaskForm:
    """A mask and the types of its operands; softcap and sinks that are beside it.

    Attributes:
        operands: what the inputs behind query, key and value are, sinks and table included.
    """

    program: MaskProgram
    operands: tuple[TensorInfo, ...] = ()
    table: TableInput | None = None
    softcap: float = 0.0
    sinks: bool = False


def vector(name: str, rank: int = 2) -> Operand:
    """A run-time tensor."""
    return Operand(name, "tensor", rank)


def block_table(name: str, tile: tuple[int, int] = (64, 64), groups: int = 1) -> Operand:
    """A constant table of 4096 x 4096 pairs."""
    return Operand(name, "block_table", 3, (groups, 4096, 4096), tile)


def _document(position: Expr) -> Expr:
    return Load("document", (b, position), "int")


_INT8 = TensorInfo(DataType.INT8, (None, None))
_INT64 = TensorInfo(DataType.INT64, (None, None))
_HALF = TensorInfo(DataType.HALF, (None, None, None, None))
_ARRAYS = (TensorInfo(DataType.INT32, (None,)),) * 5
_SINKS = TensorInfo(DataType.FLOAT, (4,))
_RUN_TIME = (TensorInfo(DataType.INT32, (None, None, None)),) * 3

MASKS: dict[str, MaskForm] = {
    "none": MaskForm(MaskProgram()),
    "causal": MaskForm(MaskProgram(keep=CAUSAL)),
    "window": MaskForm(
        MaskProgram(keep=and_(ge(q, k), gt(integer(512), sub(q, k))), nan_to_zero=True)
    ),
    "padding": MaskForm(
        MaskProgram(and_(CAUSAL, PADDING), fill=FLOAT32_MIN, operands=(vector("padding"),)),
        (_INT8,),
    ),
    "documents": MaskForm(
        MaskProgram(
            and_(ge(q, k), eq(_document(q), _document(k))), operands=(vector("document"),)
        ),
        (_INT64,),
    ),
    "table": MaskForm(
        MaskProgram(
            Load("table", (integer(0), q, k), "bool"), operands=(block_table("table"),)
        ),
        _ARRAYS,
    ),
    "two tables": MaskForm(
        MaskProgram(
            or_(
                and_(Load("table", (h, q, k), "bool"), PADDING),
                Load("table", (integer(0), q, k), "bool"),
            ),
            operands=(block_table("table", groups=4), vector("padding")),
            fill=FLOAT32_MIN,
        ),
        (*_ARRAYS, _INT8),
    ),
    "run-time table": MaskForm(
        MaskProgram(PADDING, operands=(vector("padding"),), nan_to_zero=True),
        (_INT8, *_RUN_TIME),
        TableInput((64, 64), True, False),
    ),
    "bias": MaskForm(
        MaskProgram(
            TRUE, bias=Load("bias", (b, h, q, k), "float"), operands=(vector("bias", 4),)
        ),
        (_HALF,),
    ),
    "alibi": MaskForm(
        MaskProgram(CAUSAL, bias=fmul(Const(-0.125), to_float(sub(q, k)))),
    ),
    "fill that doesn't hide": MaskForm(
        MaskProgram(
            and_(CAUSAL, PADDING), fill=-10000.0, fill_mode="add", operands=(vector("padding"),)
        ),
        (_INT8,),
    ),
    "hidden twice": MaskForm(
        MaskProgram(
            and_(CAUSAL, PADDING),
            fill=-10000.0,
            fill_mode="add",
            operands=(vector("padding"),),
            again=and_(not_(CAUSAL), not_(PADDING)),
        ),
        (_INT8,),
    ),
    "hidden twice, bias, sinks, run-time table": MaskForm(
        MaskProgram(
            PADDING,
            bias=Load("bias", (b, h, q, k), "float"),
            fill=-10000.0,
            operands=(vector("padding"), vector("bias", 4), block_table("table")),
            again=and_(not_(PADDING), not_(Load("table", (integer(0), q, k), "bool"))),
        ),
        (_INT8, _HALF, *_ARRAYS, _SINKS, *_RUN_TIME),
        TableInput((64, 64), True, False),
        sinks=True,
    ),
    "softcap": MaskForm(MaskProgram(CAUSAL), softcap=50.0),
    "sinks": MaskForm(
        MaskProgram(and_(CAUSAL, PADDING), fill=FLOAT32_MIN, operands=(vector("padding"),)),
        (_INT8, _SINKS),
        sinks=True,
    ),
    "softcap, sinks, run-time table": MaskForm(
        MaskProgram(PADDING, operands=(vector("padding"),), nan_to_zero=True),
        (_INT8, _SINKS, *_RUN_TIME),
        TableInput((64, 64), True, False),
        softcap=1000.0,
        sinks=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """What is compiled: a representative node for a target."""

    mask: str
    dtype: str
    head_dim: int
    target: str

    def __str__(self) -> str:
        return f"{self.mask}, {self.dtype}, {self.head_dim}, {self.target}"

    @property
    def node(self) -> AttentionNode:
        """The node."""
        return attention_node(self.mask, self.dtype, self.head_dim)

    @property
    def parameters(self) -> template.Parameters:
        """The first setting that can be used, which is what `optimize` takes."""
        some = template.candidates(self.node, Target.parse(self.target))
        return next(parameters for parameters, reason in some if reason is None)

    @property
    def job(self) -> CompileJob:
        """What compiles it."""
        return compile_job(template.source(self.node, self.parameters), self.target)


def attention_node(
    mask: str = "causal",
    dtype: str = "float16",
    head_dim: int = 64,
    *,
    value_dim: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
) -> AttentionNode:
    """A node with dense [B, S, H * D] tensors."""
    form, value_dim = MASKS[mask], value_dim or head_dim
    record = MaskedAttention(
        num_heads=heads,
        kv_num_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=value_dim,
        scale=head_dim**-0.5,
        query=TensorLayout("BSHD", 0, head_dim),
        key=TensorLayout("BSHD", 0, head_dim),
        value=TensorLayout("BSHD", 0, value_dim),
        output="BSHD",
        output_rank=3,
        mask=form.program,
        score_dtype=dtype,
        dtype=dtype,
        table=form.table,
        softcap=form.softcap,
        sinks=form.sinks,
    )
    widths = (heads * head_dim, kv_heads * head_dim, kv_heads * value_dim)
    reads = (TensorInfo(ELEMENT_TYPES[dtype], (None, None, width)) for width in widths)
    return AttentionNode(record, (*reads, *form.operands))


def compile_job(source: str, target: str) -> CompileJob:
    """A job for a translation unit of the template."""
    return CompileJob(source, template.ENTRY, Target.parse(target).architecture, _headers())


@cache
def _headers() -> tuple[tuple[str, str], ...]:
    return tuple((name, (KERNELS / name).read_text("utf-8")) for name in template.HEADERS)


def all_kernels() -> list[Kernel]:
    """The whole product."""
    return [Kernel(*one) for one in product(MASKS, ELEMENT_TYPES, HEAD_DIMS, TARGETS)]


def covering_kernels() -> list[Kernel]:
    """A few in which every two of element type, head dim and kind of copy meet.

    Each target gets as many, and each mask and target occurs.
    """
    kernels = []
    masks = list(MASKS)
    for i, (dtype, dim) in enumerate(product(ELEMENT_TYPES, HEAD_DIMS)):
        for shift in (0, 3):
            target = TARGETS[(i + i // len(HEAD_DIMS) + shift) % len(TARGETS)]
            kernels.append(Kernel(masks[(2 * i + shift) % len(masks)], dtype, dim, target))
    return kernels
