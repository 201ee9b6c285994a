"""Attention written by hand: projections, score arithmetic, and the layer that joins them.

B batch, S sequence, H heads, D head dim, E = H * D. Projections return query, key and value as
BHSD, or as BSHD for what works on that; an ``Attend`` takes them with a mask and returns the
context in the same layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from attention_zoo.model import HEAD_DIM, HEADS, HIDDEN

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Heads = tuple[Tensor, Tensor, Tensor]
SCALE = HEAD_DIM**-0.5


class Separate(nn.Module):
    """Three projections; ``kv_heads`` below ``HEADS`` for grouped-query attention."""

    def __init__(self, *, kv_heads: int = HEADS, heads_first: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, kv_heads * HEAD_DIM)
        self.value = nn.Linear(HIDDEN, kv_heads * HEAD_DIM)
        self.heads_first = heads_first

    def forward(self, hidden: Tensor, memory: Tensor | None = None) -> Heads:
        """[B, Sq, E] and, for cross attention, [B, Sk, E] -> heads."""
        memory = hidden if memory is None else memory
        query, key, value = (
            rows.view(rows.shape[0], rows.shape[1], -1, HEAD_DIM)
            for rows in (self.query(hidden), self.key(memory), self.value(memory))
        )
        if not self.heads_first:
            return query, key, value
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


Packing = Literal[
    "chunk", "split", "slice", "unbind", "permute", "permute_unbind", "interleaved", "key_value"
]


class Packed(nn.Module):
    """One projection for query, key and value, taken apart in one of several ways."""

    def __init__(self, packing: Packing) -> None:
        super().__init__()
        self.packing = packing
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)

    def forward(self, hidden: Tensor) -> Heads:
        """[B, S, E] -> BHSD heads."""
        batch, sequence, _ = hidden.shape
        packed = self.qkv(hidden)
        if self.packing in {"permute", "permute_unbind"}:
            heads = packed.reshape(batch, sequence, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
            if self.packing == "permute":
                return heads[0], heads[1], heads[2]
            query, key, value = heads.unbind(0)
            return query, key, value
        query, key, value = (
            rows.reshape(batch, sequence, HEADS, HEAD_DIM).transpose(1, 2)
            for rows in self._rows(packed)
        )
        return query, key, value

    def _rows(self, packed: Tensor) -> tuple[Tensor, ...]:
        batch, sequence, _ = packed.shape
        if self.packing == "chunk":
            return packed.chunk(3, dim=-1)
        if self.packing == "split":
            return packed.split(HIDDEN, dim=2)
        if self.packing == "slice":
            return packed[..., :HIDDEN], packed[..., HIDDEN:-HIDDEN], packed[..., -HIDDEN:]
        if self.packing == "unbind":
            return packed.view(batch, sequence, 3, HEADS, HEAD_DIM).unbind(2)
        if self.packing == "key_value":
            query, both = packed.split([HIDDEN, 2 * HIDDEN], dim=-1)
            key, value = both.view(batch, sequence, 2, HIDDEN).unbind(2)
            return query, key, value
        return packed.view(batch, sequence, HEADS, 3 * HEAD_DIM).chunk(3, dim=-1)


def made(mask: nn.Module | None, hidden: Tensor, given: Tensor | None) -> Tensor | None:
    """Return the mask, which may need a graph input."""
    if mask is None:
        return None
    tensor: Tensor = mask(hidden) if given is None else mask(hidden, given)
    return tensor


class SelfAttention(nn.Module):
    """[B, S, E] and the input that the mask may need -> [B, S, E]."""

    def __init__(
        self,
        attend: Attend,
        mask: nn.Module | None = None,
        project: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.project = project or Separate()
        self.mask = mask
        self.attend = attend
        self.output = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor, given: Tensor | None = None) -> Tensor:
        """Attend and project."""
        return self.with_mask(hidden, made(self.mask, hidden, given))

    def with_mask(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with a mask that is made already, and project."""
        query, key, value = self.project(hidden)
        context = self.attend(query, key, value, mask)
        if getattr(self.project, "heads_first", True):
            context = context.transpose(1, 2)
        batch, sequence = hidden.shape[:2]
        projected: Tensor = self.output(context.reshape(batch, sequence, HIDDEN))
        return projected


class Stack(nn.Module):
    """Pre-norm layers that share one mask."""

    def __init__(self, layers: list[SelfAttention], mask: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in layers)
        self.mask = mask

    def forward(self, hidden: Tensor, given: Tensor | None = None) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        mask = made(self.mask, hidden, given)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = hidden + layer.with_mask(norm(hidden), mask)  # type: ignore[operator]
        return hidden


# ---------------------------------------------------------------------------------------------
# scaled_dot_product_attention


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's operator with a bool or float mask."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def sdpa_causal(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's operator with its own causal mask."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def sdpa_scaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's operator with a scale of its own."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)


def sdpa_grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's operator with fewer heads of key and value."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


# ---------------------------------------------------------------------------------------------
# Matrix product and softmax

ScalePlace = Literal[
    "scores", "division", "query", "key", "both", "after_mask", "none", "computed", "numpy_like"
]
MaskForm = Literal[
    "add", "fill", "fill_inverted", "fill_1e9", "fill_lowest", "where", "where_inverted",
    "subtract", "multiply",
]  # fmt: skip


class Eager:
    """softmax(scale * Q K^T + mask) V with scale and mask in one of several places."""

    def __init__(
        self,
        mask_form: MaskForm = "add",
        scale: ScalePlace = "scores",
        *,
        softmax: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(dim=-1),
    ) -> None:
        self.mask_form = mask_form
        self.scale = scale
        self.softmax = softmax

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Heads BHSD -> context BHSD."""
        return self.softmax(self.scores(query, key, mask)) @ value

    def scores(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Return what goes into the softmax, [B, H, S, S]."""
        scale = self.scale
        if scale in {"query", "both"}:
            query = query * (SCALE if scale == "query" else SCALE**0.5)
        if scale in {"key", "both"}:
            key = key * (SCALE if scale == "key" else SCALE**0.5)
        scores = torch.matmul(query, key.transpose(-2, -1))
        if scale == "scores":
            scores = scores * SCALE
        elif scale == "division":
            scores = scores / math.sqrt(HEAD_DIM)
        elif scale == "computed":
            scores = scores / torch.sqrt(torch.tensor(key.size(-1), dtype=scores.dtype))
        elif scale == "numpy_like":
            scores = scores / torch.full([], key.size(-1) ** 0.5, dtype=scores.dtype)
        if mask is not None:
            scores = apply_mask(scores, mask, self.mask_form)
        return scores * SCALE if scale == "after_mask" else scores


def apply_mask(scores: Tensor, mask: Tensor, form: MaskForm) -> Tensor:
    """Join scores and mask: float for add, subtract and multiply, else true where kept."""
    if form == "add":
        return scores + mask
    if form == "subtract":
        return scores - 1e30 * (1.0 - mask.to(scores.dtype))
    if form == "multiply":
        # GPT-1 and early GPT-2.
        kept = mask.to(scores.dtype)
        return scores * kept + -1e4 * (1 - kept)
    if form == "fill":
        return scores.masked_fill(mask == 0, float("-inf"))
    if form == "fill_inverted":
        return scores.masked_fill(mask.logical_not(), float("-inf"))
    if form == "fill_1e9":
        return scores.masked_fill(mask == 0, -1e9)
    lowest = torch.finfo(scores.dtype).min
    if form == "fill_lowest":
        return scores.masked_fill(~mask, lowest)
    if form == "where":
        return torch.where(mask, scores, torch.full([], lowest, dtype=scores.dtype))
    return torch.where(mask == 0, lowest, scores)


def minus_maximum(scores: Tensor) -> Tensor:
    """Softmax of scores from which their maximum is subtracted first."""
    return (scores - scores.amax(dim=-1, keepdim=True)).softmax(dim=-1)


def in_float32(scores: Tensor) -> Tensor:
    """Softmax in float32, returned in the scores' type."""
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def nan_to_zero(scores: Tensor) -> Tensor:
    """Softmax in which a row without keys yields 0."""
    weights = scores.softmax(dim=-1)
    return weights.masked_fill(weights.isnan(), 0.0)


def nan_to_num(scores: Tensor) -> Tensor:
    """Softmax in which a row without keys yields 0, by ``torch.nan_to_num``."""
    return torch.nan_to_num(scores.softmax(dim=-1), nan=0.0)


def with_dropout(scores: Tensor) -> Tensor:
    """Softmax and a dropout that is off."""
    return F.dropout(scores.softmax(dim=-1), p=0.1, training=False)


# ---------------------------------------------------------------------------------------------
# Heads merged into the batch, and einsum


def merged(heads: Tensor) -> Tensor:
    """[B, H, S, D] -> [B * H, S, D]."""
    return heads.reshape(-1, heads.shape[2], heads.shape[3])


def bmm(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``torch.bmm`` on [B * H, S, D]; a float mask is added in rank 4, as in transformers 4."""
    batch = query.shape[0]
    scores = torch.bmm(merged(query * SCALE), merged(key).transpose(1, 2))
    if mask is not None:
        scores = scores.view(batch, HEADS, scores.shape[1], scores.shape[2]) + mask
        scores = scores.view(batch * HEADS, scores.shape[2], scores.shape[3])
    context = torch.bmm(scores.softmax(dim=-1), merged(value))
    return context.view(batch, HEADS, context.shape[1], HEAD_DIM)


def bmm_repeated(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``torch.bmm`` with a bool mask [B, 1, S or 1, S] repeated for each head."""
    batch = query.shape[0]
    scores = torch.bmm(merged(query), merged(key).transpose(1, 2)) / HEAD_DIM**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.squeeze(1).repeat_interleave(HEADS, dim=0), float("-inf"))
    context = torch.bmm(scores.softmax(dim=-1), merged(value))
    return context.view(batch, HEADS, -1, HEAD_DIM)


def baddbmm(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``torch.baddbmm`` with a float mask [S, S] as its addend, as in BLOOM."""
    if mask is None:
        raise ValueError("baddbmm adds a mask: got none")
    batch, _, sequence, _ = query.shape
    scores = torch.baddbmm(
        mask.expand(batch * HEADS, sequence, sequence),
        merged(query),
        merged(key).transpose(1, 2),
        beta=1.0,
        alpha=SCALE,
    )
    context = torch.bmm(scores.softmax(dim=-1), merged(value))
    return context.view(batch, HEADS, sequence, HEAD_DIM)


class Einsum:
    """Both products by ``torch.einsum``; a bool mask is filled in."""

    def __init__(self, scores: str, context: str) -> None:
        self.scores = scores
        self.context = context

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Heads -> context in the layouts of the equations."""
        scores = torch.einsum(self.scores, query, key) * SCALE
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.einsum(self.context, scores.softmax(dim=-1), value)


# ---------------------------------------------------------------------------------------------
# Grouped-query attention


def grouped_repeat(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``repeat_interleave`` of the few heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return Eager("fill")(query, key, value, mask)


def grouped_expand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``expand`` and ``reshape`` of the few heads, as in Llama."""

    def repeated(heads: Tensor) -> Tensor:
        batch, few, sequence, _ = heads.shape
        expanded = heads[:, :, None].expand(batch, few, HEADS // few, sequence, HEAD_DIM)
        return expanded.reshape(batch, HEADS, sequence, HEAD_DIM)

    return Eager("fill")(query, repeated(key), repeated(value), mask)


def grouped_broadcast(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Products that broadcast over the group: scores [B, Hkv, G, S, S]."""
    batch, few, sequence, _ = key.shape
    query = query.reshape(batch, few, HEADS // few, sequence, HEAD_DIM)
    scores = query @ key.unsqueeze(2).transpose(-1, -2) * SCALE
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    context = scores.softmax(-1) @ value.unsqueeze(2)
    return context.reshape(batch, HEADS, sequence, HEAD_DIM)


def grouped_einsum(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The same by ``einsum`` on BSHD heads, as in xLSTM- and T5X-like code."""
    batch, sequence, few, _ = key.shape
    query = query.reshape(batch, sequence, few, HEADS // few, HEAD_DIM)
    scores = torch.einsum("bqkgd,bskd->bkgqs", query, key) * SCALE
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    context = torch.einsum("bkgqs,bskd->bqkgd", scores.softmax(-1), value)
    return context.reshape(batch, sequence, HEADS, HEAD_DIM)


def one_key_head(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Multi-query attention: [B, 1, S, D] broadcasts in the products."""
    return Eager("fill")(query, key, value, mask)
