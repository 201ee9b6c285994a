"""Rotary position embedding of [B, H, S, D] in standard operators.

    a, b = halves of the first R channels (or their even and odd ones, if interleaved)
    a' = a cos - b sin        b' = b cos + a sin

with cos and sin of shape [max positions, R/2] read at each token's position.
"""

from __future__ import annotations

from dataclasses import dataclass

from stof_onnx.rewriter.graph import Tensor
from stof_onnx.rewriter.lowerings.scores import LAST_AXIS
from stof_onnx.rewriter.lowerings.subgraph import SubGraph


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines at the tokens' positions, [B or 1, 1, S, R/2].

    Attributes:
        cos, sin: tensors.
        half: R/2.
        interleaved: even and odd channels form the pairs, not the two halves.
    """

    cos: Tensor
    sin: Tensor
    half: int
    interleaved: bool


def rotation(
    g: SubGraph,
    caches: tuple[Tensor, Tensor],
    positions: Tensor,
    *,
    per_batch: bool,
    interleaved: bool,
) -> Rotation:
    """Read the caches at positions: [B, S] if ``per_batch``, else [S]."""
    half = g.fixed(g.dims(caches[0])[1], "the width of cos_cache")
    axes = g.ints(1) if per_batch else g.ints(0, 1)
    cos, sin = (
        g.common("Unsqueeze", g.common("Gather", cache, positions, axis=0), axes)
        for cache in caches
    )
    return Rotation(cos, sin, half, interleaved)


def rotate(g: SubGraph, heads_BHSD: Tensor, head_dim: int, by: Rotation) -> Tensor:
    """Apply a rotation to the first R channels."""
    width = 2 * by.half
    turned = heads_BHSD
    if width < head_dim:
        turned = _channels(g, heads_BHSD, 0, width, 1)
    if by.interleaved:
        first, second = (_channels(g, turned, start, LAST_AXIS, 2) for start in (0, 1))
    else:
        first = _channels(g, turned, 0, by.half, 1)
        second = _channels(g, turned, by.half, width, 1)
    new_first = g.op("Sub", g.op("Mul", first, by.cos), g.op("Mul", second, by.sin))
    new_second = g.op("Add", g.op("Mul", second, by.cos), g.op("Mul", first, by.sin))
    if by.interleaved:
        pairs = [g.op("Unsqueeze", x, g.ints(-1)) for x in (new_first, new_second)]
        parts = [g.reshape(g.op("Concat", *pairs, axis=-1), 0, 0, 0, width)]
    else:
        parts = [new_first, new_second]
    if width < head_dim:
        parts.append(_channels(g, heads_BHSD, width, head_dim, 1))
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=-1)


def _channels(g: SubGraph, tensor: Tensor, start: int, end: int, step: int) -> Tensor:
    bounds = [g.ints(start), g.ints(end), g.ints(-1)]
    return g.op("Slice", tensor, *bounds, *([g.ints(step)] if step > 1 else []))
