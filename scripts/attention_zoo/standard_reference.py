"""Inputs and numpy's outputs of the layers with a standard ``Attention``."""

from __future__ import annotations

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
from attention_zoo.model import HEAD_DIM, HEADS, HIDDEN, POSITIONS
from attention_zoo.standard_layer import MEMORY, PAST, WINDOW, Layer, OperatorForm


def make_feeds(form: OperatorForm, batch: int, sequence: int) -> Feeds:
    """Return random inputs."""
    generator = np.random.default_rng(1)
    dtype = np.dtype(form.dtype)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(dtype)

    memory = sequence + MEMORY if form.memory else sequence
    keys = memory + (PAST if form.past else 0)
    feeds = {"hidden": normal(batch, sequence, HIDDEN)}
    if form.memory:
        feeds["memory"] = normal(batch, memory, HIDDEN)
    if form.past:
        feeds["past_key"] = normal(batch, form.kv_heads, PAST, HEAD_DIM)
        feeds["past_value"] = normal(batch, form.kv_heads, PAST, HEAD_DIM)
    if form.nonpad:
        feeds["nonpad"] = padding_keep(batch, sequence).sum(axis=1)
    if form.rotary == "positions":
        feeds["position_ids"] = np.tile(np.arange(3, sequence + 3), (batch, 1))
    if form.given == "padding":
        feeds["attention_mask"] = padding_keep(batch, keys)
    elif form.given not in {"", "window"}:
        rank2 = form.given.endswith("2d")
        heads = HEADS if form.given == "float_heads" else 1
        shape = (sequence, keys) if rank2 else (batch, heads, sequence, keys)
        keep = generator.random(shape) < 0.7
        keep[..., 0] = True
        bias = np.where(keep, normal(*shape), -np.inf).astype(dtype)
        feeds["mask"] = keep if "bool" in form.given else bias
    return feeds


def expected(form: OperatorForm, layer: Layer, feeds: Feeds) -> dict[str, Array]:
    """Compute the outputs with numpy; the projections are checked with the rest."""
    weights = [w.astype(np.float64) for w in layer.graph.weights.values() if w.dtype.kind == "f"]
    hidden = feeds["hidden"].astype(np.float64)
    memory = feeds.get("memory", hidden).astype(np.float64)
    floats = iter(weights)
    if form.norms:
        hidden = memory = _norm(hidden, next(floats))
    query = heads_of(hidden @ next(floats) + next(floats), HEADS)
    key = heads_of(memory @ next(floats) + next(floats), form.kv_heads)
    value = heads_of(memory @ next(floats) + next(floats), form.kv_heads)
    if form.norms and form.rank == 4:
        query, key = _norm(query, next(floats)), _norm(key, next(floats))
    if form.rotary:
        query, key = (_rotated(form, heads, feeds) for heads in (query, key))
    outputs: dict[str, Array] = {}
    if form.past:
        key = np.concatenate([feeds["past_key"], key], axis=2)
        value = np.concatenate([feeds["past_value"], value], axis=2)
        outputs |= {"key": key, "value": value}
    keep, bias = _masks(form, feeds, query.shape[2], key.shape[2])
    context = attention(
        query, key, value, keep=keep, bias=bias, scale=form.scale, softcap=form.softcap
    )
    outputs["context"] = rows_of(context) @ weights[-2] + weights[-1]
    return outputs


def _norm(rows: Array, weight: Array) -> Array:
    scaled: Array = rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    return scaled


def _rotated(form: OperatorForm, heads: Array, feeds: Feeds) -> Array:
    half = HEAD_DIM // 4 if form.rotary == "partial" else HEAD_DIM // 2
    position = feeds.get("position_ids", np.arange(heads.shape[2])[None])
    cosine, sine = (table[position][:, None] for table in rotary_tables(POSITIONS, half))
    return rotated(heads, cosine, sine, interleaved=form.rotary == "interleaved")


def _masks(form: OperatorForm, feeds: Feeds, queries: int, keys: int) -> tuple[Array, Array | None]:
    keep = np.ones((queries, keys), bool)
    bias = None
    if form.given == "window":
        keep = np.abs(np.arange(queries)[:, None] - np.arange(keys)[None]) <= WINDOW
    elif form.given == "padding":
        keep = feeds["attention_mask"][:, None, None, :].astype(bool)
    elif "bool" in form.given:
        keep = feeds["mask"]
    elif form.given:
        bias = feeds["mask"]
    if form.nonpad:
        keep = keep & (np.arange(keys) < feeds["nonpad"][:, None])[:, None, None, :]
    if form.is_causal and form.nonpad:
        # The last query is the last token that is no padding.
        offset = feeds["nonpad"][:, None, None, None] - queries
        keep = keep & (np.arange(keys) <= np.arange(queries)[:, None] + offset)
    elif form.is_causal:
        keep = keep & causal_keep(queries, keys, PAST if form.past else 0)
    return keep, bias
