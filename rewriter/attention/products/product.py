"""A product of two tensors, whatever operator computes it.

Axes carry labels, as in an einsum: an index of the output, and one for the label that is
summed over, say which elements of the operands meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stof_onnx.ir.expr import Const, Expr, Op, to_text, walk
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from stof_onnx.rewriter.symbolic.registry import Index

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Product:
    """``out[labels] = factor * sum over contracted of left[labels] * right[labels]``.

    Attributes:
        node: that computes it.
        labels: of the axes of its two operands.
        out: labels of the output's axes.
        contracted: the one label that is summed over.
        factor: the operator's own scale.
    """

    node: Node
    labels: tuple[Labels, Labels]
    out: Labels
    contracted: str
    factor: float = 1.0

    def operand(self, side: int) -> Tensor:
        """The left (0) or right (1) operand."""
        return self.node.inputs[side]

    def operand_index(self, sym: SymbolicGraph, side: int, at: Mapping[str, Expr]) -> Index:
        """Index of an operand where the labels have these values; broadcast axes read 0."""
        dims = sym.shape(self.operand(side))
        for label, dim in zip(self.labels[side], dims, strict=True):
            self._require_same_size(sym, side, label, dim)
        return tuple(
            integer(0) if dim == integer(1) else at[label]
            for label, dim in zip(self.labels[side], dims, strict=True)
        )

    def _require_same_size(self, sym: SymbolicGraph, side: int, label: str, dim: Expr) -> None:
        """Only an axis known to have size 1 is broadcast; never the one that is summed over.

        Sums and products of names must be equal for the graph to run; a Slice to the first
        element of a run-time axis, say, may or may not have size 1.
        """
        if label not in self.labels[1 - side]:
            return
        other = self.size(sym, 1 - side, label)
        if dim == other:
            return
        is_one = integer(1) in (dim, other)
        must_agree = (_is_plain(dim) and _is_plain(other)) or _is_limited(dim, other)
        if (label == self.contracted) if is_one else not must_agree:
            raise Unliftable(f"an axis of {to_text(dim)} meets one of {to_text(other)}")

    def size(self, sym: SymbolicGraph, side: int, label: str) -> Expr:
        """Length of an operand's axis."""
        return sym.shape(self.operand(side))[self.labels[side].index(label)]


def _is_limited(dim: Expr, other: Expr) -> bool:
    """Whether one is the other limited by a number: 1 only where the other is 1, too."""
    for limited, whole in ((dim, other), (other, dim)):
        if isinstance(limited, Op) and limited.name == "min" and whole in limited.args:
            limits = [arg for arg in limited.args if arg != whole]
            return all(isinstance(arg, Const) and arg.value > 1 for arg in limits)
    return False


def _is_plain(dim: Expr) -> bool:
    return all(node.name in ("add", "mul") for node in walk(dim) if isinstance(node, Op))
