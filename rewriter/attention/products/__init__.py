"""Operators that multiply two tensors: the score product and the product with value.

Each file offers ``read(sym, node) -> Product | None``. Another operator costs one file, one
line in :data:`PRODUCTS` and its name in :data:`PRODUCT_OPS`.
"""

from __future__ import annotations

from collections.abc import Callable

from stof_onnx.rewriter.attention.products import einsum, matmul
from stof_onnx.rewriter.attention.products.product import Product as Product
from stof_onnx.rewriter.graph import Node
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

PRODUCT_OPS = frozenset({"MatMul", "com.microsoft::FusedMatMul", "Einsum"})
PRODUCTS: tuple[Callable[[SymbolicGraph, Node], Product | None], ...] = (matmul.read, einsum.read)


def read_product(sym: SymbolicGraph, node: Node) -> Product | None:
    """The product that a node computes; None if it computes none, or shapes are unknown."""
    for read in PRODUCTS:
        try:
            found = read(sym, node)
        except Unliftable:
            continue
        if found is not None:
            return found
    return None
