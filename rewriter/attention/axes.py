"""Which axes of the scores are batch, head, query and key.

Scores are mostly [B, H, Sq, Sk]; exporters also merge heads into the batch ([B*H, Sq, Sk]),
keep groups of heads apart ([B, Hkv, G, Sq, Sk]) or windows ([B, windows, H, N, N]). The key
axis is the one that the Softmax runs over, the query axis mostly the last of the others; the rest
is cut into batch and heads in every way that its sizes allow, and the way that lets query, key
and value be read is the right one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stof_onnx.ir.expr import Const, Expr, Op, Poly, Var, walk
from stof_onnx.ir.expr.build import add, floordiv, integer, mod, mul
from stof_onnx.rewriter.attention.block import ScoreIndex
from stof_onnx.rewriter.symbolic.indexing import product
from stof_onnx.rewriter.symbolic.registry import Index, Shape

_MOST_HEADS = 1024


@dataclass(frozen=True)
class ScoreAxes:
    """One way to see the scores as [B, H, Sq, Sk].

    Attributes:
        dims: (B, H, Sq, Sk).
        index: variables over dims.
        at: index of score (b, h, q, k) in the tensor.
    """

    dims: tuple[Expr, Expr, Expr, Expr]
    index: ScoreIndex
    at: Index

    @property
    def heads(self) -> int:
        """H, which is always a number."""
        assert isinstance(self.dims[1], Const)
        return int(self.dims[1].value)


def split_axes(shape: Shape, key_axis: int, hints: Sequence[int] = ()) -> Iterator[ScoreAxes]:
    """Each way to see scores of this shape, the likeliest first.

    Args:
        shape: of the scores, rank 2 or more.
        key_axis: that the Softmax runs over.
        hints: numbers of heads that may be merged into an axis.
    """
    others = [axis for axis in range(len(shape)) if axis != key_axis]
    # The query axis is nearly always the last of the others.
    for query_axis in reversed(others):
        lead, last = [axis for axis in others if axis != query_axis], (query_axis, key_axis)
        # [B, H, ...] first, then heads merged into the batch, then axes that are all of one kind.
        for cut in range(1, len(lead)):
            yield from _cut(shape, (lead[:cut], lead[cut:]), last)
        yield from _merged(shape, lead, hints, last)
        for cut in range(1, len(lead)):
            yield from _cut(shape, (lead[cut:], lead[:cut]), last)
        yield from _cut(shape, (lead, []), last)
        if lead:
            yield from _cut(shape, ([], lead), last)


def _cut(
    shape: Shape, lead: tuple[Sequence[int], Sequence[int]], last: tuple[int, int]
) -> Iterator[ScoreAxes]:
    """Some of the leading axes are the batch, the others the heads."""
    batch, heads = (product([shape[axis] for axis in axes]) for axes in lead)
    if heads.constant is not None and 1 <= heads.constant <= _MOST_HEADS:
        yield _axes(shape, lead, last, batch.expr(), heads.constant)


def _merged(
    shape: Shape, lead: Sequence[int], hints: Sequence[int], last: tuple[int, int]
) -> Iterator[ScoreAxes]:
    """Batch and heads share the leading axes."""
    merged = product([shape[axis] for axis in lead])
    for heads in dict.fromkeys((*hints, _content(merged))) if lead else ():
        batch = floordiv(merged.expr(), integer(heads))
        if heads > 1 and mul(batch, integer(heads)) == merged.expr():
            yield _axes(shape, (lead, ()), last, batch, heads, merged=heads)


def _axes(
    shape: Shape,
    lead: tuple[Sequence[int], Sequence[int]],
    last: tuple[int, int],
    batch: Expr,
    heads: int,
    *,
    merged: int = 1,
) -> ScoreAxes:
    dims = (batch, integer(heads), shape[last[0]], shape[last[1]])
    b, h, q, k = (_variable(name, dim) for name, dim in zip("bhqk", dims, strict=True))
    at: list[Expr] = [integer(0)] * len(shape)
    at[last[0]], at[last[1]] = q, k
    flat = add(mul(b, integer(merged)), h) if merged > 1 else b
    for axes, position in zip(lead, (flat, h), strict=True):
        for axis, value in zip(axes, spread(position, [shape[a] for a in axes]), strict=True):
            at[axis] = value
    return ScoreAxes(dims, ScoreIndex(b, h, q, k), tuple(at))


def spread(position: Expr, dims: Sequence[Expr]) -> list[Expr]:
    """The row-major index over ``dims`` of a flat position."""
    result = []
    for axis, dim in enumerate(dims):
        inner = floordiv(position, product(dims[axis + 1 :]).expr())
        result.append(inner if axis == 0 else mod(inner, dim))
    return result


def head_hints(*indices: Index) -> list[int]:
    """Numbers that an index is divided by: how many heads were merged into a batch axis."""
    found: dict[int, None] = {}
    for index in indices:
        for expr in index:
            for node in walk(expr):
                if isinstance(node, Op) and node.name in ("floordiv", "mod"):
                    divisor = node.args[1]
                    if isinstance(divisor, Const) and divisor.value > 1:
                        found[int(divisor.value)] = None
    return sorted(found, reverse=True)


def _variable(name: str, dim: Expr) -> Expr:
    return integer(0) if dim == integer(1) else Var(name, dim)


def _content(poly: Poly) -> int:
    """The constant factor of a product of dimensions."""
    if len(poly.terms) != 1:
        return 1
    (value,) = poly.terms.values()
    return value if 0 < value <= _MOST_HEADS else 1
