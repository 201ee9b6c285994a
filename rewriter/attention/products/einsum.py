"""Einsum of two tensors that sums over one label.

Einsum("bqhd,bkhd->bhqk", Q, K)  ->  out[b, h, q, k]
"""

from __future__ import annotations

from stof_onnx.rewriter.attention.products.product import Labels, Product
from stof_onnx.rewriter.graph import Node
from stof_onnx.rewriter.symbolic import SymbolicGraph


def read(sym: SymbolicGraph, node: Node) -> Product | None:
    """Read an equation without repeated labels; an ellipsis stands for stack axes."""
    if node.op != "Einsum" or len(node.inputs) != 2:
        return None
    terms, arrow, out_term = node.attrs["equation"].replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or len(operands) != 2:
        return None
    labels = [
        _labels(term, len(sym.shape(tensor)))
        for term, tensor in zip(operands, node.inputs, strict=True)
    ]
    longest = max((sum(map(_is_stack, found)) for found in labels), default=0)
    out = _labels(out_term, len(out_term.replace("...", "")) + longest)
    summed = [name for name in dict.fromkeys((*labels[0], *labels[1])) if name not in out]
    lone = set(labels[0]) ^ set(labels[1])
    repeated = any(len(set(found)) != len(found) for found in (*labels, out))
    if repeated or len(summed) != 1 or summed[0] in lone:
        return None
    return Product(node, (labels[0], labels[1]), out, summed[0])


def _labels(term: str, rank: int) -> Labels:
    before, ellipsis, after = term.partition("...")
    stack = rank - len(before) - len(after) if ellipsis else 0
    return (*before, *(f"s{axis}" for axis in range(stack, 0, -1)), *after)


def _is_stack(label: str) -> bool:
    return len(label) > 1
