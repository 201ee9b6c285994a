"""What one attention computes, apart from nodes and kernels: numbers in, the oracle's answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import ml_dtypes
import numpy as np

from tests.ir.attention_cases import Array
from tests.reference.attention import EmptyRow, attention

HIDING = -1000.0
"""A bias below this hides; rows with nothing else depend on how score + bias is rounded."""


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
        empty_row: what a row without keys yields.
        fill: what is added to the scores of a row without keys by the rule "softmax".
        score_dtype: type to which scores are rounded when bias or fill are added.
        nan_to_zero: whether a row whose weights are NaN yields 0.
    """

    query: Array
    key: Array
    value: Array
    keep: Array
    bias: Array | None
    scale: float
    empty_row: EmptyRow
    fill: float
    score_dtype: str
    nan_to_zero: bool

    @cached_property
    def scores(self) -> Array:
        """scale * Q K^T in float64, [B, H, Sq, Sk]."""
        query, key = self.query.astype(np.float64), self.key.astype(np.float64)
        key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
        return self.scale * (query @ key.swapaxes(2, 3))

    @cached_property
    def kept(self) -> Array:
        """keep as [B, H, Sq, Sk]."""
        return np.broadcast_to(self.keep, self.scores.shape)

    @cached_property
    def added(self) -> Array:
        """What the mask adds to the scores of kept pairs, rounding included where it decides."""
        shape = self.scores.shape
        bias = np.zeros(shape)
        if self.bias is not None:
            bias = np.broadcast_to(self.bias, shape).astype(np.float64)
        empty = ~self.kept.any(axis=3, keepdims=True)
        hiding = (bias < HIDING) & np.isfinite(bias)
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = self._rounded(self.scores + bias)
            filled = self._rounded(rounded + self.fill)
            bias = np.where(hiding, rounded - self.scores, bias)
            if self.empty_row == "softmax":
                bias = np.where(empty, filled - self.scores, bias)
        return bias

    def _rounded(self, values: Array) -> Array:
        kind = ml_dtypes.bfloat16 if self.score_dtype == "bfloat16" else np.dtype(self.score_dtype)
        return values.astype(kind).astype(np.float64)

    @cached_property
    def wanted(self) -> Array:
        """The oracle's answer in float64, [B, H, Sq, Dv]."""
        kept, rule = self.kept, self.empty_row
        if rule == "softmax":  # those rows attend to everything, with what is added to them
            kept, rule = kept | ~kept.any(axis=3, keepdims=True), "nan"
        with np.errstate(invalid="ignore"):
            result = attention(
                *(x.astype(np.float64) for x in (self.query, self.key, self.value)),
                kept,
                self.added,
                scale=self.scale,
                empty_row=rule,
            )
        return np.nan_to_num(result, nan=0.0) if self.nan_to_zero else result

    @cached_property
    def equivalent(self) -> Equivalent:
        """The attention with a dense mask, for PyTorch."""
        kept = self.kept
        empty = ~kept.any(axis=3, keepdims=True)
        if self.empty_row == "mean":
            scores, shown = np.where(empty, 0.0, self.scores + self.added), kept | empty
        else:
            scores = self.scores + self.added
            shown = kept | empty if self.empty_row == "softmax" else kept
        mask = np.where(shown, self.added, -np.inf)
        highest = np.where(shown, scores, -np.inf).max(axis=3, keepdims=True)
        rows = np.isfinite(highest)
        # Where everything is hidden alike, its own rounding has made the weights.
        fixed = rows & ((mask.max(axis=3, keepdims=True) < HIDING) | empty)
        with np.errstate(invalid="ignore"):
            mask = np.where(fixed, np.where(shown, scores - highest, -np.inf), mask)
        mask = np.where(rows, mask, 0.0)
        query = np.where(fixed | ~rows, 0, self.query.astype(np.float64))
        return Equivalent(query.astype(self.query.dtype), mask, rows[..., 0])
