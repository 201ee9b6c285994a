"""Hand-written attention that isn't projection, mask and product alone.

PyTorch's own layers, cross attention, position biases, sinks, caches, and other axes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from attention_zoo.handwritten_layers import SCALE, Eager, Separate, sdpa
from attention_zoo.handwritten_masks import causal, table, table_here, triu_of_infinities
from attention_zoo.model import HEAD_DIM, HEADS, HIDDEN, VOCABULARY


def joined(context_BHSD: Tensor) -> Tensor:
    """[B, H, S, D] -> [B, S, E]."""
    return context_BHSD.transpose(1, 2).flatten(2)


# ---------------------------------------------------------------------------------------------
# PyTorch's layers


class TorchAttention(nn.Module):
    """nn.MultiheadAttention with its key padding mask, its attention mask, or both.

    PyTorch's fast path, an operator that TorchScript's exporter does not know, is switched off for
    the whole process, as people do; the dynamo exporter never takes it.
    """

    def __init__(
        self,
        mask: Literal["padding", "causal", "causal_bool", "both", "none"],
        *,
        batch_first: bool = True,
        need_weights: bool = False,
    ) -> None:
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(False)
        self.attention = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=batch_first)
        self.mask = mask
        self.need_weights = need_weights

    def forward(self, hidden: Tensor, drop: Tensor | None = None) -> Tensor:
        """[B, S, E] (or [S, B, E]) and bool [B, S], true where dropped -> as hidden."""
        sequence = hidden.shape[1] if self.attention.batch_first else hidden.shape[0]
        mask = None
        if self.mask in {"causal", "both"}:
            mask = triu_of_infinities(sequence)
        if self.mask == "causal_bool":
            mask = torch.ones(sequence, sequence, dtype=torch.bool).triu(1)
        if self.mask == "both":
            drop = None if drop is None else torch.zeros(drop.shape).masked_fill(drop, -torch.inf)
        attended: Tensor = self.attention(
            hidden,
            hidden,
            hidden,
            key_padding_mask=drop,
            attn_mask=mask,
            need_weights=self.need_weights,
        )[0]
        return attended


class TorchEncoder(nn.Module):
    """nn.TransformerEncoderLayer, twice."""

    def __init__(self, *, norm_first: bool, causal: bool = False) -> None:
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(False)
        self.causal = causal
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                HIDDEN, HEADS, 48, batch_first=True, norm_first=norm_first, activation="gelu"
            )
            for _ in range(2)
        )

    def forward(self, hidden: Tensor, drop: Tensor | None = None) -> Tensor:
        """[B, S, E] and bool [B, S], true where dropped -> [B, S, E]."""
        mask = triu_of_infinities(hidden.shape[1]) if self.causal else None
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, src_key_padding_mask=drop, is_causal=self.causal)
        return hidden


class TorchDecoder(nn.Module):
    """nn.TransformerDecoderLayer: causal self-attention and padded cross attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(False)
        self.layer = nn.TransformerDecoderLayer(HIDDEN, HEADS, 48, batch_first=True)

    def forward(self, hidden: Tensor, memory: Tensor, drop: Tensor | None = None) -> Tensor:
        """[B, Sq, E], [B, Sk, E] and bool [B, Sk], true where dropped -> [B, Sq, E]."""
        mask = torch.nn.Transformer.generate_square_subsequent_mask(hidden.shape[1])
        decoded: Tensor = self.layer(
            hidden, memory, tgt_mask=mask, memory_key_padding_mask=drop, tgt_is_causal=True
        )
        return decoded


# ---------------------------------------------------------------------------------------------
# Attention between two sequences


class Cross(nn.Module):
    """Attention from a sequence to a padded memory, with matmul or PyTorch's operator."""

    def __init__(self, *, eager: bool) -> None:
        super().__init__()
        self.project = Separate()
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.eager = eager

    def forward(self, hidden: Tensor, memory: Tensor, memory_keep: Tensor) -> Tensor:
        """[B, Sq, E], [B, Sk, E] and [B, Sk], nonzero where kept -> [B, Sq, E]."""
        attend = Eager("fill") if self.eager else sdpa
        keep = memory_keep[:, None, None, :] > 0
        context = attend(*self.project(hidden, memory), keep)
        attended: Tensor = self.output(joined(context))
        return attended


class LearnedQueries(nn.Module):
    """A few learned queries read a padded sequence, as in Perceiver and Q-Former."""

    def __init__(self) -> None:
        super().__init__()
        self.query_embed = nn.Parameter(torch.zeros(5, HIDDEN))
        self.cross = Cross(eager=False)

    def forward(self, memory: Tensor, memory_keep: Tensor) -> Tensor:
        """[B, Sk, E] and [B, Sk] -> [B, 5, E]."""
        queries = self.query_embed.expand(memory.shape[0], -1, -1)
        attended: Tensor = self.cross(queries, memory, memory_keep)
        return attended


class Cached(nn.Module):
    """A decoder layer with a cache: the new tokens see it and themselves up to their own."""

    def __init__(self, *, eager: bool) -> None:
        super().__init__()
        self.project = Separate()
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.eager = eager

    def forward(
        self, hidden: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, E] and two [B, H, P, D] -> [B, S, E] and two [B, H, P + S, D]."""
        query, key, value = self.project(hidden)
        key = torch.cat([past_key, key], dim=2)
        value = torch.cat([past_value, value], dim=2)
        past = past_key.shape[2]
        rows = torch.arange(past, past + hidden.shape[1])[:, None]
        keep = torch.arange(past + hidden.shape[1])[None, :] <= rows
        attend = Eager("where") if self.eager else sdpa
        return self.output(joined(attend(query, key, value, keep))), key, value


# ---------------------------------------------------------------------------------------------
# Scores that are changed


class Biased(nn.Module):
    """Self-attention with a position bias that is added to the scores."""

    def __init__(self, bias: nn.Module, *, eager: bool = True, is_causal: bool = False) -> None:
        super().__init__()
        self.project = Separate()
        self.bias = bias
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.eager = eager
        self.is_causal = is_causal

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        bias = self.bias(hidden.shape[1])
        if self.is_causal:
            bias = bias.masked_fill(~table_here(causal, hidden), float("-inf"))
        attend = Eager("add") if self.eager else sdpa
        attended: Tensor = self.output(joined(attend(*self.project(hidden), bias)))
        return attended


class Alibi(nn.Module):
    """Linear biases (arXiv 2108.12409), on distances or on key positions alone."""

    def __init__(self, form: Literal["distance", "symmetric", "key"]) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("slopes", 2.0 ** (-2.0 * torch.arange(1, HEADS + 1)))

    def forward(self, length: int) -> Tensor:
        """Return [H, S, S], for ``key`` [H, 1, S]."""
        slopes = self.get_buffer("slopes")[:, None, None]
        position = torch.arange(length)
        if self.form == "key":
            # Differs from the distance by a number per row, which the softmax drops.
            return slopes * position
        distance = position[None, :] - position[:, None]
        return slopes * (-distance.abs() if self.form == "symmetric" else distance)


class T5Bias(nn.Module):
    """T5's relative positions in logarithmic buckets (arXiv 1910.10683)."""

    def __init__(self, buckets: int = 8, furthest: int = 20) -> None:
        super().__init__()
        self.embed = nn.Embedding(buckets, HEADS)
        self.per_side = buckets // 2
        self.furthest = furthest

    def forward(self, length: int) -> Tensor:
        """Return [1, H, S, S]."""
        position = torch.arange(length)
        distance = position[None, :] - position[:, None]
        exact = self.per_side // 2
        size = distance.abs()
        ratio = torch.log(size.clamp(min=1).float() / exact) / math.log(self.furthest / exact)
        far = (exact + (ratio * (self.per_side - exact)).long()).clamp(max=self.per_side - 1)
        bucket = (distance > 0).long() * self.per_side + torch.where(size < exact, size, far)
        bias: Tensor = self.embed(bucket).permute(2, 0, 1).unsqueeze(0)
        return bias


class ClippedBias(nn.Module):
    """A table of clipped distances, as in Shaw-style biases without the queries."""

    def __init__(self, furthest: int = 6) -> None:
        super().__init__()
        self.furthest = furthest
        self.bias_table = nn.Parameter(torch.zeros(HEADS, 2 * furthest + 1))

    def forward(self, length: int) -> Tensor:
        """Return [H, S, S]."""
        position = torch.arange(length)
        distance = (position[:, None] - position[None, :]).clamp(-self.furthest, self.furthest)
        return self.bias_table[:, distance + self.furthest]


class Modified(nn.Module):
    """Causal self-attention whose scores or weights get one more operation."""

    def __init__(self, form: Literal["softcap", "sinks", "zero_sink", "rotary", "norms"]) -> None:
        super().__init__()
        self.project = Separate()
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.sinks = nn.Parameter(torch.zeros(HEADS))
        self.query_norm = nn.LayerNorm(HEAD_DIM)
        self.key_norm = nn.RMSNorm(HEAD_DIM)
        self.form = form

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        query, key, value = self.project(hidden)
        if self.form == "norms":
            query, key = self.query_norm(query), self.key_norm(key)
        if self.form == "rotary":
            query, key = rotated(query), rotated(key)
        scores = query @ key.transpose(-2, -1) * SCALE
        if self.form == "softcap":
            scores = torch.tanh(scores / 5.0) * 5.0
        keep = table_here(causal, hidden)
        weights = self.weights(scores.masked_fill(~keep, torch.finfo(scores.dtype).min))
        attended: Tensor = self.output(joined(weights @ value))
        return attended

    def weights(self, scores: Tensor) -> Tensor:
        """Return the softmax, for sinks with one more column that is dropped."""
        if self.form == "sinks":
            column = self.sinks.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
            return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
        if self.form == "zero_sink":
            # softmax1: a column of zeros.
            return F.pad(scores, (1, 0)).softmax(dim=-1)[..., 1:]
        return scores.softmax(dim=-1)


def rotated(heads_BHSD: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of neighbouring pairs."""
    position = torch.arange(heads_BHSD.shape[2], dtype=torch.float32)
    frequency = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angle = position[:, None] * frequency
    even, odd = heads_BHSD[..., 0::2], heads_BHSD[..., 1::2]
    cosine, sine = angle.cos(), angle.sin()
    pairs = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1)
    return pairs.flatten(-2)


class ContentBias(nn.Module):
    """Transformer-XL's scores: the bias of a pair depends on the query."""

    def __init__(self) -> None:
        super().__init__()
        self.project = Separate()
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.register_buffer("distances", table(lambda q, k: (q - k).clamp(-7, 7) + 7))
        self.relative_embed = nn.Embedding(15, HEAD_DIM)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        query, key, value = self.project(hidden)
        length = hidden.shape[1]
        relative = self.relative_embed(self.get_buffer("distances")[:length, :length])
        position = torch.einsum("bhqd,qkd->bhqk", query, relative)
        weights = ((query @ key.transpose(-2, -1) + position) * SCALE).softmax(dim=-1)
        attended: Tensor = self.output(joined(weights @ value))
        return attended


# ---------------------------------------------------------------------------------------------
# Other layouts


class SequenceFirst(nn.Module):
    """[S, B, E] as in fairseq: heads and batch are one axis from the projection on."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)
        self.output = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor, drop: Tensor) -> Tensor:
        """[S, B, E] and bool [B, S], true where dropped -> [S, B, E]."""
        sequence, batch, _ = hidden.shape

        def split(rows: Tensor) -> Tensor:
            return rows.contiguous().view(sequence, batch * HEADS, HEAD_DIM).transpose(0, 1)

        query = split(self.query(hidden) * SCALE)
        scores = torch.bmm(query, split(self.key(hidden)).transpose(1, 2))
        scores = scores.view(batch, HEADS, sequence, sequence)
        scores = scores.masked_fill(drop[:, None, None, :], float("-inf"))
        weights = scores.view(batch * HEADS, sequence, sequence).softmax(dim=-1)
        context = torch.bmm(weights, split(self.value(hidden)))
        context = context.transpose(0, 1).contiguous().view(sequence, batch, HIDDEN)
        attended: Tensor = self.output(context)
        return attended


class ChannelsFirst(nn.Module):
    """[B, C, L] with convolutions of width 1, as in diffusion U-Nets."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv1d(HIDDEN, 3 * HIDDEN, 1)
        self.output = nn.Conv1d(HIDDEN, HIDDEN, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, L] -> [B, C, L]."""
        batch, _, length = image.shape
        query, key, value = (
            rows.reshape(batch, HEADS, HEAD_DIM, length) for rows in self.qkv(image).chunk(3, dim=1)
        )
        scores = torch.einsum("bhdi,bhdj->bhij", query * SCALE, key)
        context = torch.einsum("bhij,bhdj->bhid", scores.softmax(dim=-1), value)
        mixed: Tensor = self.output(context.permute(0, 1, 3, 2).reshape(batch, HIDDEN, length))
        return mixed


class GridWindows(nn.Module):
    """Windows of a grid with a relative position bias: scores of rank 5."""

    def __init__(self, *, side: int = 4, eager: bool = True) -> None:
        super().__init__()
        self.side = side
        self.eager = eager
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, HEADS))
        place = torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")).flatten(1)
        difference = place[:, :, None] - place[:, None, :] + side - 1
        self.register_buffer("index", difference[0] * (2 * side - 1) + difference[1])

    def forward(self, grid: Tensor) -> Tensor:
        """[B, height, width, E] -> [B, height, width, E]."""
        batch, height, width, _ = grid.shape
        rows, columns, side = height // self.side, width // self.side, self.side
        windows = grid.view(batch, rows, side, columns, side, HIDDEN).transpose(2, 3)
        windows = windows.reshape(batch, rows * columns, side * side, HIDDEN)
        packed = self.qkv(windows).view(batch, -1, side * side, 3, HEADS, HEAD_DIM)
        query, key, value = packed.permute(3, 0, 1, 4, 2, 5).unbind(0)
        bias = self.bias_table[self.get_buffer("index")].permute(2, 0, 1)
        if self.eager:
            context = (query @ key.transpose(-2, -1) * SCALE + bias).softmax(-1) @ value
        else:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        context = context.transpose(2, 3).reshape(batch, rows, columns, side, side, HIDDEN)
        mixed: Tensor = self.output(context.transpose(2, 3).reshape(batch, height, width, HIDDEN))
        return mixed


class Embedded(nn.Module):
    """Tokens instead of hidden states; the mask may read the tokens."""

    def __init__(self, attention: nn.Module, *, reads_tokens: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.attention = attention
        self.reads_tokens = reads_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Int64 [B, S] -> [B, S, E]."""
        given = (tokens,) if self.reads_tokens else ()
        attended: Tensor = self.attention(self.embed(tokens), *given)
        return attended
