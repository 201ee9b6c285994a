"""What one attention computes, apart from nodes and kernels: numbers in, the oracle's answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import ml_dtypes
import numpy as np

from tests.ir.attention_cases import ALL, Array
from tests.reference.attention import attention

HIDING = -1000.0
"""A score below this is hidden; in rows of nothing else rounding decides what weighs how much."""


class Equivalent(NamedTuple):
    """The same attention for an implementation that knows dense masks only, no special rows.

    Attributes:
        query: [B, H, Sq, D]; rows whose weights don't depend on it are 0.
        mask: float64 [B, H, Sq, Sk], added to the scores; -inf hides. Each row keeps a key.
        rows: bool [B, H, Sq], rows whose result is that of ``mask``: not NaN, not 0 by rule.
    """

    query: Array
    mask: Array
    rows: Array


@dataclass(frozen=True)
class Problem:
    """Inputs of one attention, [B, H or Hkv, S, D], and its mask in dense form.

    Attributes:
        query, key, value: in their own types.
        keep, bias: broadcast to [B, H, Sq, Sk].
        scale: factor of the scores.
        fill: what the graph gives a pair that isn't kept.
        fill_is_added: whether it is added to the score, not written over it.
        score_dtype: type in which the graph holds scores.
        nan_to_zero: whether a row whose weights are NaN yields 0.
        softcap: c of c * tanh(score / c); 0 for none.
        sinks: float32 [H], if there are any.
        again: broadcasts to [B, H, Sq, Sk]; of the pairs that aren't kept, those that get the fill
            a second time.
    """

    query: Array
    key: Array
    value: Array
    keep: Array
    bias: Array | None
    scale: float
    fill: float
    fill_is_added: bool
    score_dtype: str
    nan_to_zero: bool
    softcap: float = 0.0
    sinks: Array | None = None
    again: Array = field(default_factory=lambda: ~ALL)

    @cached_property
    def _scaled(self) -> Array:
        """scale * Q K^T in float64, [B, H, Sq, Sk]."""
        query, key = self.query.astype(np.float64), self.key.astype(np.float64)
        key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
        return np.asarray(self.scale * (query @ key.swapaxes(2, 3)))

    @cached_property
    def scores(self) -> Array:
        """scale * Q K^T, capped, in float64, [B, H, Sq, Sk]."""
        if not self.softcap:
            return self._scaled
        return np.asarray(self.softcap * np.tanh(self._scaled / self.softcap))

    @cached_property
    def kept(self) -> Array:
        """keep as [B, H, Sq, Sk]."""
        return np.broadcast_to(self.keep, self.scores.shape)

    @cached_property
    def _dense_bias(self) -> Array:
        bias = 0.0 if self.bias is None else self.bias.astype(np.float64)
        return np.broadcast_to(bias, self.scores.shape)

    @cached_property
    def logits(self) -> Array:
        """What the graph takes the softmax of, step by step in its own type, [B, H, Sq, Sk]."""
        with np.errstate(over="ignore"):
            scores = self._rounded(self._scaled)
            if self.softcap:
                tanh = self._rounded(np.tanh(self._rounded(scores / self.softcap)))
                scores = self._rounded(self.softcap * tanh)
            scores = self._rounded(scores + self._rounded(self._dense_bias))
            fill = self._rounded(np.float64(self.fill))
            filled = self._rounded(scores + fill) if self.fill_is_added else fill
            filled = np.where(self.again, self._rounded(filled + fill), filled)
        return np.where(self.kept, scores, filled)

    @cached_property
    def seen(self) -> Array:
        """Rows that see a key that isn't hidden, [B, H, Sq, 1]."""
        scores = np.where(self.kept, self.scores + self._dense_bias, -np.inf)
        return np.asarray(scores.max(axis=3, keepdims=True, initial=-np.inf) >= HIDING)

    @cached_property
    def added(self) -> Array:
        """What makes logits of scores; -inf hides.

        Where something is seen nothing depends on the rounding of scores, and pairs that aren't
        kept have no weight. An implementation may be more precise than the graph there.
        """
        clear = np.where(self.kept, self._dense_bias, -np.inf)
        return np.where(self.seen, clear, self.logits - self.scores)

    def _rounded(self, values: Array) -> Array:
        kind = ml_dtypes.bfloat16 if self.score_dtype == "bfloat16" else np.dtype(self.score_dtype)
        return values.astype(kind).astype(np.float64)

    @cached_property
    def wanted(self) -> Array:
        """The oracle's answer in float64, [B, H, Sq, Dv]."""
        weighs = self.added > -np.inf
        return attention(
            *(x.astype(np.float64) for x in (self.query, self.key, self.value)),
            weighs,
            np.where(weighs, self.added, 0.0),
            scale=self.scale,
            empty_row="zero" if self.nan_to_zero else "nan",
            softcap=self.softcap,
            sinks=self.sinks,
        )

    @cached_property
    def equivalent(self) -> Equivalent:
        """The attention with a dense mask, for PyTorch."""
        highest = self.added.max(axis=3, keepdims=True, initial=-np.inf)
        rows = highest > -np.inf
        # Where everything is hidden alike, its own rounding has made the weights.
        fixed = rows & ~self.seen
        logits = np.where(fixed, self.logits, 0.0)
        # A sink is compared with them; without one they may be moved to where types are precise.
        highest = 0.0 if self.sinks is not None else logits.max(axis=3, keepdims=True)
        mask = np.where(fixed, logits - highest, self.added)
        mask = np.where(rows, mask, 0.0)
        query = np.where(fixed | ~rows, 0, self.query.astype(np.float64))
        return Equivalent(query.astype(self.query.dtype), mask, rows[..., 0])
