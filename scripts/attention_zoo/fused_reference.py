"""Inputs and numpy's outputs of the layers with ONNX Runtime's attention operators."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from attention_zoo.built_graphs import (
    Array,
    Feeds,
    attention,
    causal_keep,
    heads_of,
    padding_keep,
    rotary_tables,
    rotated,
    rows_of,
)
from attention_zoo.fused_layer import FILTER, MEMORY, PAST, FusedForm, Layer
from attention_zoo.model import HEAD_DIM, HEADS, HIDDEN, POSITIONS


def make_feeds(form: FusedForm, batch: int, sequence: int) -> Feeds:
    """Return random inputs; with ``decode`` the cache is as long as the sequence else is."""
    generator = np.random.default_rng(1)
    dtype = np.dtype(form.dtype)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(dtype)

    if form.past and form.operator == "GroupQueryAttention":
        # Several new tokens on a cache are one sequence's.
        batch = 1
    past = sequence if form.decode else PAST if form.past else 0
    length = 1 if form.decode else sequence
    keys = length + past + (MEMORY if form.memory else 0)
    feeds = {"hidden": normal(batch, length, HIDDEN)}
    if form.memory == "rows":
        feeds["memory"] = normal(batch, keys, HIDDEN)
    if form.memory == "heads":
        feeds |= {name: normal(batch, HEADS, keys, HEAD_DIM) for name in ("k", "v")}
    if past and form.operator == "Attention":
        feeds["past"] = normal(2, batch, HEADS, past, HEAD_DIM)
    elif past:
        for name in ("past_key", "past_value"):
            feeds[name] = normal(batch, form.kv_heads, past, form.head_dim)
    if form.operator == "GroupQueryAttention":
        full = np.ones((batch, keys), np.int64)
        feeds["attention_mask"] = full if form.past else padding_keep(batch, keys)
    if form.bias_axes:
        axes = [batch if axis == "batch" else int(axis) for axis in form.bias_axes]
        feeds["bias"] = normal(*axes, length, keys)
    if form.given:
        feeds["mask"] = _mask_values(form, batch, length, keys, generator).astype(np.int32)
    return feeds


def _mask_values(
    form: FusedForm, batch: int, length: int, keys: int, generator: np.random.Generator
) -> Array:
    padding = padding_keep(batch, keys)
    if form.given == "lengths":
        return np.asarray(padding.sum(axis=1))
    if form.given == "ends_starts":
        return np.concatenate([padding.sum(axis=1), np.arange(batch)])
    if form.given == "padding":
        return padding
    shape = (batch, length, keys) if form.given == "pairs" else (batch, 1, POSITIONS, POSITIONS)
    keep = generator.random(shape) < 0.7
    keep[..., 0] = True
    return keep


def expected(form: FusedForm, layer: Layer, feeds: Feeds) -> dict[str, Array]:
    """Compute the outputs with numpy; NaN where a padded row yields what nobody reads."""
    weights = [w.astype(np.float64) for w in layer.graph.weights.values() if w.dtype.kind == "f"]
    feeds = {name: v.astype(np.float64) if v.dtype.kind == "f" else v for name, v in feeds.items()}
    query, key, value = _projected(form, feeds, iter(weights))
    outputs: dict[str, Array] = {}
    if form.operator == "GroupQueryAttention":
        sinks = {"": None, "smooth": np.zeros(HEADS), "learned": weights[-3]}[form.sinks]
        context = _grouped_context(form, feeds, (query, key, value), sinks)
    else:
        if form.past:
            past_key, past_value = feeds["past"] if "past" in feeds else (
                feeds["past_key"], feeds["past_value"]
            )  # fmt: skip
            key = np.concatenate([past_key, key], axis=2)
            value = np.concatenate([past_value, value], axis=2)
            outputs = {"present": np.stack([key, value])}
            if form.operator == "MultiHeadAttention":
                outputs = {"key": key, "value": value}
        keep, bias = _masks(form, feeds, query.shape[2], key.shape[2])
        context = attention(query, key, value, keep=keep, bias=bias, scale=form.scale)
    return outputs | {"context": rows_of(context) @ weights[-2] + weights[-1]}


def _projected(form: FusedForm, feeds: Feeds, weights: Iterator[Array]) -> tuple[Array, ...]:
    hidden = feeds["hidden"]
    memory = feeds.get("memory", hidden)
    if form.memory == "heads":
        return heads_of(hidden @ next(weights) + next(weights), HEADS), feeds["k"], feeds["v"]
    if form.packed and form.operator == "MultiHeadAttention":
        packed = hidden @ next(weights) + next(weights)
        split = packed.reshape(*packed.shape[:2], HEADS, 3, HEAD_DIM)
        return tuple(split[:, :, :, i].swapaxes(1, 2) for i in range(3))
    if form.packed or form.operator == "Attention":
        rows = hidden @ next(weights) + next(weights)
        few = form.kv_heads * form.head_dim
        parts = np.split(rows, [form.width, form.width + few], axis=-1)
    elif form.projected_bias:
        parts = [rows @ next(weights) for rows in (hidden, memory, memory)]
        parts = [part + b for part, b in zip(parts, np.split(next(weights), 3), strict=True)]
    else:
        parts = [rows @ next(weights) + next(weights) for rows in (hidden, memory, memory)]
    heads = (HEADS, form.kv_heads, form.kv_heads)
    return tuple(heads_of(part, count) for part, count in zip(parts, heads, strict=True))


def _masks(form: FusedForm, feeds: Feeds, queries: int, keys: int) -> tuple[Array, Array]:
    """Return bool causality and the additive rest."""
    keep = np.ones((queries, keys), bool)
    if form.unidirectional:
        keep = causal_keep(queries, keys, keys - queries)
    given: Array = np.ones((1, 1, 1, keys))
    mask = feeds.get("mask", given)
    if form.given == "lengths":
        given = (np.arange(keys) < mask[:, None])[:, None, None]
    elif form.given == "ends_starts":
        ends, starts = np.split(mask, 2)
        index = np.arange(keys)
        given = ((index < ends[:, None]) & (index >= starts[:, None]))[:, None, None]
    elif form.given == "padding":
        given = mask[:, None, None]
    elif form.given == "pairs":
        given = mask[:, None]
    elif form.given == "megatron":
        given = mask[:, :, keys - queries : keys, :keys]
    filtered = FILTER if form.filter_value is None else form.filter_value
    return keep, (1.0 - given) * filtered + feeds.get("bias", np.zeros(1))


def _grouped_context(
    form: FusedForm, feeds: Feeds, heads: tuple[Array, ...], sinks: Array | None
) -> Array:
    """Attend row by row: each has its own length."""
    batch, _, queries, _ = heads[0].shape
    contexts = np.full((batch, HEADS, queries, form.head_dim), np.nan)
    for row, length in enumerate(feeds["attention_mask"].sum(axis=1)):
        new = min(queries, length)
        past = length - new
        here = [part[row : row + 1, :, :new] for part in heads]
        if form.rotary:
            cosine, sine = (t[past:length] for t in rotary_tables(POSITIONS, form.head_dim // 2))
            turned = functools.partial(rotated, interleaved=form.rotary == "interleaved")
            here[:2] = [turned(part, cosine, sine) for part in here[:2]]
        if past:
            for slot, name in ((1, "past_key"), (2, "past_value")):
                cached = feeds[name][row : row + 1, :, :past]
                here[slot] = np.concatenate([cached, here[slot]], axis=2)
        keep = causal_keep(new, length, past)
        if form.window:
            keep = keep & ~causal_keep(new, length, past - form.window)
        bias = feeds["bias"][row : row + 1, :, :new, :length] if form.bias_axes else None
        contexts[row, :, :new] = attention(
            *here, keep=keep, bias=bias, scale=form.scale, softcap=form.softcap, sinks=sinks
        )[0]
    return contexts
