"""MatMul of stacks of matrices, also with transposed ones and a factor as ONNX Runtime fuses it.

MatMul(L[..., i, c], R[..., c, j])  ->  out[..., i, j]
FusedMatMul(L, R, alpha, transA, transB)  ->  alpha * the same
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.products.product import Labels, Product
from stof_onnx.rewriter.graph import Node
from stof_onnx.rewriter.symbolic import SymbolicGraph

_FUSED = "com.microsoft::FusedMatMul"


def read(sym: SymbolicGraph, node: Node) -> Product | None:
    """Label stack axes from the right, so that operands of unequal rank broadcast."""
    if node.op not in ("MatMul", _FUSED):
        return None
    if node.attrs.get("transBatchA", 0) or node.attrs.get("transBatchB", 0):
        return None
    ranks = [len(sym.shape(tensor)) for tensor in node.inputs]
    if min(ranks) < 2:
        return None
    left, right = (_stack(rank) for rank in ranks)
    out = (*max(left, right, key=len), "i", "j")
    a: Labels = ("c", "i") if node.attrs.get("transA", 0) else ("i", "c")
    b: Labels = ("j", "c") if node.attrs.get("transB", 0) else ("c", "j")
    factor = float(node.attrs.get("alpha", 1.0)) if node.op == _FUSED else 1.0
    return Product(node, ((*left, *a), (*right, *b)), out, "c", factor)


def _stack(rank: int) -> Labels:
    return tuple(f"s{axis}" for axis in range(rank - 2, 0, -1))
