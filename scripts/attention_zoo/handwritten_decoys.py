"""Softmaxes that look like attention and aren't, or whose results are needed elsewhere.

Each must be left as it is, with a reason.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from attention_zoo.handwritten_layers import SCALE, Separate
from attention_zoo.handwritten_masks import causal, table_here
from attention_zoo.handwritten_models import joined
from attention_zoo.model import HEAD_DIM, HEADS, HIDDEN

DecoyForm = Literal[
    "mask_after_softmax",
    "query_axis",
    "head_axis",
    "talking_heads",
    "per_query_scale",
    "per_head_scale",
    "squared_weights",
    "renormalised",
    "gated_weights",
    "written_softmax",
    "log_softmax",
    "value_is_weighted_twice",
    "second_order",
]
DECOY_FORMS: tuple[DecoyForm, ...] = DecoyForm.__args__  # type: ignore[attr-defined]


def mixed(linear: nn.Linear, scores_BHSS: Tensor) -> Tensor:
    """Mix the heads of [B, H, S, S]."""
    talked: Tensor = linear(scores_BHSS.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return talked


class Decoy(nn.Module):
    """Self-attention with one operation that a fused attention does not have."""

    def __init__(self, form: DecoyForm) -> None:
        super().__init__()
        self.project = Separate()
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.before = nn.Linear(HEADS, HEADS)
        self.after = nn.Linear(HEADS, HEADS)
        self.gate_embed = nn.Parameter(torch.zeros(HEADS, 1, 1))
        self.form = form

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        query, key, value = self.project(hidden)
        scores = self.scored(query, key)
        keep = table_here(causal, hidden)
        if self.form not in {"mask_after_softmax", "query_axis", "head_axis"}:
            scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
        weights = self.weighted(scores, keep)
        if self.form == "second_order":
            weights = weights @ weights
        context = weights @ value
        if self.form == "value_is_weighted_twice":
            context = context + weights.transpose(-2, -1) @ value
        attended: Tensor = self.output(joined(context))
        return attended

    def scored(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the scores before the mask."""
        scores = query @ key.transpose(-2, -1) * SCALE
        if self.form == "talking_heads":
            return mixed(self.before, scores)
        if self.form == "per_query_scale":
            # Longer contexts get sharper scores, as in log-n scaling.
            length = torch.arange(scores.shape[2], dtype=scores.dtype) + 2
            return scores * length.log()[:, None]
        if self.form == "per_head_scale":
            return scores * self.gate_embed.exp()
        return scores

    def weighted(self, scores: Tensor, keep: Tensor) -> Tensor:
        """Return what the values are weighted with."""
        if self.form == "query_axis":
            return scores.softmax(dim=-2)
        if self.form == "head_axis":
            return scores.softmax(dim=1)
        if self.form == "log_softmax":
            return F.log_softmax(scores, dim=-1).masked_fill(~keep, 0.0)
        if self.form == "written_softmax":
            numbers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
            return numbers / numbers.sum(dim=-1, keepdim=True)
        weights = scores.softmax(dim=-1)
        if self.form == "mask_after_softmax":
            return weights * keep
        if self.form == "talking_heads":
            return mixed(self.after, weights)
        if self.form == "squared_weights":
            return weights * weights
        if self.form == "renormalised":
            strong = torch.where(weights > 0.05, weights, 0.0)
            return strong / strong.sum(dim=-1, keepdim=True)
        if self.form == "gated_weights":
            return weights * self.gate_embed.sigmoid()
        return weights


class ReturnsScores(nn.Module):
    """Attention that also returns its scores or its weights."""

    def __init__(self, what: Literal["scores", "weights", "mean_weights"]) -> None:
        super().__init__()
        self.project = Separate()
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.what = what

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, E] -> [B, S, E] and [B, H, S, S], for ``mean_weights`` [B, S, S]."""
        query, key, value = self.project(hidden)
        scores = query @ key.transpose(-2, -1) * SCALE
        weights = scores.softmax(dim=-1)
        attended = self.output(joined(weights @ value))
        if self.what == "mean_weights":
            return attended, weights.mean(dim=1)
        return attended, scores if self.what == "scores" else weights


class ResidualScores(nn.Module):
    """Two layers, the second of which adds the scores of the first (arXiv 2012.11747)."""

    def __init__(self) -> None:
        super().__init__()
        self.projects = nn.ModuleList([Separate(), Separate()])
        self.outputs = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        before: Tensor | None = None
        for project, output in zip(self.projects, self.outputs, strict=True):
            query, key, value = project(hidden)
            scores = query @ key.transpose(-2, -1) * SCALE
            before = scores if before is None else scores + before
            hidden = hidden + output(joined(before.softmax(dim=-1) @ value))
        return hidden


class EfficientAttention(nn.Module):
    """Keys weigh values first (arXiv 1812.01243): softmax over features and over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.project = Separate()
        self.output = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        query, key, value = self.project(hidden)
        summary = key.softmax(dim=-2).transpose(-2, -1) @ value
        attended: Tensor = self.output(joined(query.softmax(dim=-1) @ summary))
        return attended


class Pooling(nn.Module):
    """A weighted mean over the sequence: there is one query, and it is a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(HIDDEN, 1)

    def forward(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """[B, S, E] and int64 [B, S] -> [B, E]."""
        scores = self.score(hidden).masked_fill(keep[..., None] == 0, -1e9)
        pooled: Tensor = (hidden * scores.softmax(dim=1)).sum(dim=1)
        return pooled


class PoolingProduct(nn.Module):
    """The same pooling written as a matrix product of weights and values."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(HIDDEN, HEADS)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, H, E]."""
        pooled: Tensor = self.score(hidden).transpose(1, 2).softmax(dim=-1) @ hidden
        return pooled


class Router(nn.Module):
    """A mixture of four experts: a softmax between two products that is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, 4, bias=False)
        self.experts = nn.Parameter(torch.zeros(4, HIDDEN, HIDDEN))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        best, chosen = self.router(hidden).topk(2, dim=-1)
        gates = torch.zeros(*hidden.shape[:2], 4).scatter(-1, chosen, best.softmax(dim=-1))
        answers = torch.einsum("bse,xef->bsxf", hidden, self.experts)
        mixed: Tensor = (gates.unsqueeze(-2) @ answers).squeeze(-2)
        return mixed


class SoftRouter(nn.Module):
    """Every expert answers, weighted: MatMul, Softmax, MatMul with constants."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, HEADS * HEAD_DIM, bias=False)
        self.memory_values = nn.Parameter(torch.zeros(HEADS * HEAD_DIM, HIDDEN))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        answer: Tensor = self.router(hidden).softmax(dim=-1) @ self.memory_values
        return answer
