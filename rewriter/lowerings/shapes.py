"""Shape rules of attention operators and of what ONNX Runtime's optimizer writes beside them.

Without them nothing behind the first such operator of a model would have a known shape.
"""

from __future__ import annotations

from stof_onnx.ir.expr import Const, Expr
from stof_onnx.ir.expr.build import add, floordiv, integer
from stof_onnx.rewriter.symbolic import SymbolicGraph
from stof_onnx.rewriter.symbolic.indexing import attribute, broadcast_shape, optional_input
from stof_onnx.rewriter.symbolic.registry import Node, Shape, Unliftable, shape

_SAME = (
    "BiasGelu",
    "BiasSplitGelu",
    "FastGelu",
    "Gelu",
    "QuickGelu",
    "RotaryEmbedding",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)


@shape("Attention")
def attention(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """ONNX Attention: Y, present_key, present_value, the scores."""
    query, key, value = (sym.shape(tensor) for tensor in node.inputs[:3])
    past = optional_input(node, 4)
    before = integer(0) if past is None else sym.shape(past)[2]
    if len(query) == 4:
        heads, kv_heads, head_dim, value_dim = query[1], key[1], query[3], value[3]
    else:
        heads = integer(node.attrs["q_num_heads"])
        kv_heads = integer(node.attrs["kv_num_heads"])
        head_dim, value_dim = floordiv(query[2], heads), floordiv(value[2], kv_heads)
    total = add(before, key[-2])
    if position == 0 and len(query) == 3:
        return (query[0], query[1], _times(heads, value_dim))
    return (
        (query[0], heads, query[-2], value_dim),
        (query[0], kv_heads, total, head_dim),
        (query[0], kv_heads, total, value_dim),
        (query[0], heads, query[-2], total),
    )[position]


@shape("com.microsoft::Attention")
def ms_attention(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Output [B, S, Hv*Dv] and present [2, B, H, T, D]."""
    rows, weights = sym.shape(node.inputs[0]), sym.shape(node.inputs[1])
    widths = attribute(node, "qkv_hidden_sizes", None)
    width = floordiv(weights[1], integer(3)) if widths is None else integer(widths[2])
    if position == 0:
        return (rows[0], rows[1], width)
    past = optional_input(node, 4)
    total = rows[1] if past is None else add(sym.shape(past)[3], rows[1])
    heads = integer(node.attrs["num_heads"])
    return (integer(2), rows[0], heads, total, floordiv(width, heads))


@shape("com.microsoft::MultiHeadAttention")
def ms_multi_head_attention(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Output, present_key and present_value of the unpacked forms."""
    query = sym.shape(node.inputs[0])
    key_tensor, value_tensor = optional_input(node, 1), optional_input(node, 2)
    if len(query) != 3 or key_tensor is None or value_tensor is None:
        raise Unliftable("a packed MultiHeadAttention")
    heads = integer(node.attrs["num_heads"])
    key, value = sym.shape(key_tensor), sym.shape(value_tensor)
    value_dim = value[3] if len(value) == 4 else floordiv(value[2], heads)
    if position == 0:
        return (query[0], query[1], _times(heads, value_dim))
    past = optional_input(node, 6)
    total = key[-2] if past is None else add(sym.shape(past)[2], key[-2])
    return (query[0], heads, total, floordiv(query[2], heads) if position == 1 else value_dim)


@shape("com.microsoft::GroupQueryAttention")
def ms_group_query_attention(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Output, and the present tensors where there is no cache before them."""
    query = sym.shape(node.inputs[0])
    heads, kv_heads = (integer(node.attrs[name]) for name in ("num_heads", "kv_num_heads"))
    packed = heads if optional_input(node, 1) is not None else add(heads, add(kv_heads, kv_heads))
    head_dim = floordiv(query[2], packed)
    if position == 0:
        return (query[0], query[1], _times(heads, head_dim))
    if optional_input(node, 3) is not None:
        raise Unliftable("the length of a cache is a run-time value")
    return (query[0], kv_heads, query[1], head_dim)


@shape(*(f"com.microsoft::{name}" for name in _SAME))
def same(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The first input's shape; further outputs are the sums before the normalisation."""
    if position in (1, 2):
        raise Unliftable("mean and variance")
    return sym.shape(node.inputs[0])


@shape("com.microsoft::EmbedLayerNormalization")
def embed(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """Embeddings [B, S, E], mask_index [B], and the sum before the normalisation."""
    tokens = sym.shape(node.inputs[0])
    return tokens[:1] if position == 1 else (*tokens, sym.shape(node.inputs[2])[1])


@shape("com.microsoft::FusedMatMul")
def fused_matmul(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """MatMul with either matrix transposed first."""
    left, right = (list(sym.shape(tensor)) for tensor in node.inputs[:2])
    if (
        len(left) < 2
        or len(right) < 2
        or any(attribute(node, name, 0) for name in ("transBatchA", "transBatchB"))
    ):
        raise Unliftable("FusedMatMul with a vector or transposed batches")
    for dims, name in ((left, "transA"), (right, "transB")):
        if attribute(node, name, 0):
            dims[-2:] = [dims[-1], dims[-2]]
    return (*broadcast_shape(tuple(left[:-2]), tuple(right[:-2])), left[-2], right[-1])


@shape("com.microsoft::MatMulNBits")
def matmul_n_bits(sym: SymbolicGraph, node: Node, position: int) -> Shape:
    """The last dimension becomes N."""
    return (*sym.shape(node.inputs[0])[:-1], integer(node.attrs["N"]))


def _times(heads: Expr, dim: Expr) -> Expr:
    if not isinstance(heads, Const) or not isinstance(dim, Const):
        raise Unliftable("heads or head dim that are not fixed")
    return integer(int(heads.value) * int(dim.value))
