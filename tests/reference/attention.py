"""Masked attention in fp64 and the masks of the literature, each from its definition.

Shapes: B batch, H query heads, Hkv key/value heads, Sq query length, Sk key length, D head dim.

A mask is a boolean array ``keep`` that broadcasts to [B, H, Sq, Sk]: true where query q sees key k.
Where Sq != Sk, ``query_offset`` says at which key position query 0 stands: 0 aligns the first query
with the first key, ``Sk - Sq`` the last query with the last key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
EmptyRow = Literal["nan", "zero", "mean", "softmax"]


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    keep: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    scale: float | None = None,
    empty_row: EmptyRow = "nan",
    fill: float = -math.inf,
    softcap: float = 0.0,
    sinks: ArrayLike | None = None,
    again: ArrayLike = False,
    fill_twice: float = -math.inf,
    nan_to_zero: bool = False,
) -> FloatArray:
    """Compute softmax(scale * q.k + bias, over the kept keys) . v, row by row.

    Args:
        q: [B, H, Sq, D].
        k: [B, Hkv, Sk, D]; query head h reads key/value head h // (H / Hkv).
        v: [B, Hkv, Sk, Dv].
        keep: broadcasts to [B, H, Sq, Sk]; true where the query sees the key.
        bias: broadcasts to [B, H, Sq, Sk]; added to the scaled scores.
        scale: factor of the scores, 1 / sqrt(D) unless given.
        empty_row: the output of a query that sees no key: all NaN, zeros, the mean over all Sk
            values, or the softmax over all keys of score + ``fill``. ``fill`` is the same for all
            of them and cancels, so that the last is the softmax without a mask.
        fill: what is added to the score of a key that is not kept, in rows that keep another. The
            default leaves such keys out; -1e4 or less does the same in fp64, but -10 does not.
        softcap: c of c * tanh(score / c), which the scaled score becomes before the bias (Gemma 2,
            arXiv 2408.00118, section 2); none if 0.
        sinks: [H], a logit for each query head that has a weight in its rows' softmax, but no
            value (gpt-oss, arXiv 2508.10925, section 2). A query that sees no key has all its
            weight there, as far as its keys' logits are lower: -inf ("nan", "zero"), ``fill``
            ("mean") or score + ``fill`` ("softmax").
        again: broadcasts to [B, H, Sq, Sk]; of the keys that are not kept, those that are hidden a
            second time. "mean" is then that of the values hidden once.
        fill_twice: what those get in place of ``fill``, which must be finite then: twice the fill,
            or -inf where that is what it is in the type of the scores.
        nan_to_zero: whether a query all of whose keys have -inf so yields 0 instead of NaN.

    Returns:
        [B, H, Sq, Dv] in fp64.

    Raises:
        ValueError: the shapes do not fit, or ``empty_row`` is unknown.
    """
    if empty_row not in get_args(EmptyRow):
        raise ValueError(f'empty_row is {empty_row!r}; use "nan", "zero", "mean" or "softmax"')
    query, key, value = (np.asarray(x, np.float64) for x in (q, k, v))
    _check_shapes(query, key, value)
    batch, heads, query_length, head_dim = query.shape
    group = heads // key.shape[1]
    scores_shape = (batch, heads, query_length, key.shape[2])
    kept = np.broadcast_to(np.asarray(keep, np.bool_), scores_shape)
    twice = np.broadcast_to(np.asarray(again, np.bool_), scores_shape) & ~kept
    rule = _Rule(empty_row, fill, fill_twice, nan_to_zero)
    added = np.broadcast_to(np.asarray(0.0 if bias is None else bias, np.float64), scores_shape)
    factor = 1.0 / math.sqrt(head_dim) if scale is None else scale

    logits = np.full(heads, -math.inf) if sinks is None else np.asarray(sinks, np.float64)
    if logits.shape != (heads,):
        raise ValueError(f"sinks {logits.shape}: must be [{heads}], one for each query head")

    output = np.empty((batch, heads, query_length, value.shape[3]))
    for b, h, row in np.ndindex(batch, heads, query_length):
        scores = factor * (key[b, h // group] @ query[b, h, row])
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        scores = scores + added[b, h, row]
        hidden = _Hidden(kept[b, h, row], twice[b, h, row])
        weights = _row_weights(scores, hidden, rule, logits[h])
        output[b, h, row] = weights @ value[b, h // group]
    return output


def _check_shapes(query: FloatArray, key: FloatArray, value: FloatArray) -> None:
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"{shapes}: each must be [batch, heads, length, head dim]")
    same_batch = query.shape[0] == key.shape[0] == value.shape[0]
    if not same_batch or key.shape[1:3] != value.shape[1:3] or query.shape[3] != key.shape[3]:
        raise ValueError(f"{shapes}: batch, key/value heads, key length or head dim differ")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{shapes}: query heads must be a multiple of key/value heads")


class _Rule(NamedTuple):
    """The arguments of `attention` that say what hidden keys weigh."""

    empty_row: str
    fill: float
    fill_twice: float
    nan_to_zero: bool


class _Hidden(NamedTuple):
    """Which keys [Sk] a query keeps, and which of the others are hidden twice."""

    kept: BoolArray
    twice: BoolArray


def _row_weights(scores: FloatArray, hidden: _Hidden, rule: _Rule, sink: float) -> FloatArray:
    """Return the weights [Sk] of one query; a sink of -inf is none."""
    kept, twice = hidden
    if kept.any():
        added = np.where(twice, rule.fill_twice, rule.fill)
        return _softmax(np.where(kept, scores, scores + added), sink)
    if rule.empty_row in ("nan", "zero"):
        if sink > -math.inf:
            return np.zeros_like(scores)
        return np.full_like(scores, np.nan if rule.empty_row == "nan" else 0.0)
    # In units that make the fill 0: added to a score it would leave nothing of it.
    logits = scores if rule.empty_row == "softmax" else np.zeros_like(scores)
    if twice.any():
        logits = np.where(twice, logits + (rule.fill_twice - rule.fill), logits)
    if sink > -math.inf:
        return _softmax(logits + rule.fill, sink)
    if (logits == -math.inf).all():
        return np.full_like(scores, 0.0 if rule.nan_to_zero else np.nan)
    return _softmax(logits)


def _softmax(scores: FloatArray, sink: float = -math.inf) -> FloatArray:
    highest = scores.max(initial=sink)
    exponentials = np.exp(scores - highest)
    return np.asarray(exponentials / (exponentials.sum() + np.exp(sink - highest)))


def causal_keep(query_length: int, key_length: int, *, query_offset: int = 0) -> BoolArray:
    """Keep keys at or before the query: k <= q. [Sq, Sk]."""
    q, k = _positions(query_length, key_length, query_offset)
    return np.asarray(k <= q)


def sliding_window_keep(
    query_length: int, key_length: int, *, window: int, query_offset: int = 0
) -> BoolArray:
    """Keep keys at most ``window`` away on either side: |q - k| <= window. [Sq, Sk].

    Both ends belong to the window, which is 2 * window + 1 keys wide.
    """
    q, k = _positions(query_length, key_length, query_offset)
    return np.asarray(abs(q - k) <= window)


def causal_window_keep(
    query_length: int, key_length: int, *, window: int, query_offset: int = 0
) -> BoolArray:
    """Keep the query's own key and those before it, ``window`` in all: 0 <= q - k < window.

    Returns:
        [Sq, Sk].
    """
    q, k = _positions(query_length, key_length, query_offset)
    return np.asarray((q - k >= 0) & (q - k < window))


def bigbird_keep(
    query_length: int,
    key_length: int,
    *,
    window: int,
    global_tokens: int,
    block: int,
    random_blocks: ArrayLike,
) -> BoolArray:
    """Keep window, global and random keys (BigBird, arXiv 2007.14062, section 2). [Sq, Sk].

    Args:
        query_length: Sq.
        key_length: Sk.
        window: |q - k| <= window is kept.
        global_tokens: the first queries see all keys, and the first keys are seen by all queries.
        block: edge of a random block in tokens.
        random_blocks: bool [ceil(Sq / block), ceil(Sk / block)] or larger, true where the whole
            block of tokens is kept. (The paper draws them at random; here the caller does.)
    """
    chosen = np.asarray(random_blocks, np.bool_)
    keep = np.zeros((query_length, key_length), np.bool_)
    for q in range(query_length):
        for k in range(key_length):
            in_window = abs(q - k) <= window
            is_global = q < global_tokens or k < global_tokens
            keep[q, k] = in_window or is_global or chosen[q // block, k // block]
    return keep


def padding_keep(
    lengths: Sequence[int], key_length: int, *, side: Literal["right", "left"] = "right"
) -> BoolArray:
    """Keep the first (or, padded on the left, the last) ``lengths[b]`` keys. [B, 1, 1, Sk]."""
    keep = np.zeros((len(lengths), 1, 1, key_length), np.bool_)
    for b, length in enumerate(lengths):
        for k in range(key_length):
            keep[b, 0, 0, k] = k < length if side == "right" else k >= key_length - length
    return keep


def _positions(
    query_length: int, key_length: int, query_offset: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the key positions of queries as [Sq, 1] and of keys as [1, Sk]."""
    q = np.arange(query_length, dtype=np.int64) + query_offset
    k = np.arange(key_length, dtype=np.int64)
    return q[:, None], k[None, :]
