"""The Softmax of random graphs, what guards it, and attention sinks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.rewriter.graphs import Value
from tests.rewriter.random_layouts import Laid, rearrange, reduced

if TYPE_CHECKING:
    from tests.rewriter.random_graphs import Scene


def softmax_of(scene: Scene, scores: Laid) -> Laid:
    """The weights, with the scores' axes."""
    g, c, a = scene.g, scene.c, scene.a
    wide = a.dtype == "float16" and c.chance("wide softmax", 2)
    value, dtype = scores.value, a.dtype
    if wide:
        value, dtype = g.cast(value, "float32"), "float32"
    axis = scores.axis("k") - len(scores.axes)
    if scene.has("softmax axis"):
        axis = axis - 1 if axis > -len(scores.axes) else -1
    if c.chance("positive axis", 4):
        axis += len(scores.axes)
    wanted = c.chance("sinks", 8) or "sinks" in scene.decoys
    sinks = wanted and axis in (-1, len(scores.axes) - 1)
    if sinks:
        value = _with_sinks(scene, replace(scores, value=value), dtype)
    value = g.op("Softmax", value, axis=axis)
    value = scene.disturb("softmax", replace(scores, value=value)).value
    if sinks:
        value = _without_sinks(scene, value, len(scores.axes) - 1)
    if c.chance("guard", 4) or "guard" in scene.decoys:
        zero = g.const(1.0 if scene.has("guard writes 1") else 0.0, dtype)
        sides = (value, zero) if scene.has("guard reversed") else (zero, value)
        is_nan = g.op("IsNaN", value)
        for op in c.pick("guard through", [(), ("Identity",), ("Cast",), ("Cast", "Identity")]):
            is_nan = g.op("Identity", is_nan) if op == "Identity" else g.cast(is_nan, "bool")
        value = g.op("Where", is_nan, *sides)
    if wide:
        value = g.cast(value, a.dtype)
    for _ in range(c.pick("", [0, 0, 1, 2])):
        value = g.op(c.pick("weights through", ["Identity", "Dropout"]), value)
    return scene.disturb("weights", replace(scores, value=value))


def _with_sinks(scene: Scene, x: Laid, dtype: str) -> Value:
    """A learned logit for each head in a column behind the keys."""
    g, c, letters = scene.g, scene.c, scene.letters
    heads = scene.a.heads
    if c.chance("sinks input", 3):
        sinks = g.input(f"sinks_{dtype}", [heads], dtype)
    else:
        sinks = g.weight(heads, dtype=dtype)
    if scene.has("sinks cut from more"):
        sinks = g.slice(g.input(f"many_sinks_{dtype}", [heads + 2], dtype), 0, 0, heads)
    if scene.has("sinks of other heads"):
        sinks = g.op("Gather", sinks, g.ints(*range(heads - 1, -1, -1)))
    full = ("b", "gj", "q", "")
    shape = g.op("Concat", *(letters.vector(g, axis) for axis in full), axis=0)
    wide = Laid(g.op("Expand", g.unsqueeze(sinks, 0, 2, 3), shape), full)
    if scene.has("sinks of each query"):
        wide = replace(wide, value=g.op("Mul", wide.value, _rows(scene, dtype)))
    column = rearrange(g, letters, c, wide, tuple(a.replace("k", "") for a in x.axes)).value
    scores = x.value
    if scene.has("shift before sinks"):
        scores = g.op("Sub", scores, reduced(g, "ReduceMax", scores, -1))
    parts = (column, scores) if scene.has("sinks first") else (scores, column)
    joined = g.op("Concat", *parts, axis=-1)
    if scene.has("scaled with sinks"):
        joined = g.op("Mul", joined, g.const(0.5, dtype))
    if c.chance("shift after sinks", 3):
        joined = g.op("Sub", joined, reduced(g, "ReduceMax", joined, -1))
    return joined


def _rows(scene: Scene, dtype: str) -> Value:
    batch, queries, _ = scene.a.input_dims
    return scene.g.input(f"rows_{dtype}", [batch, 1, queries, 1], dtype)


def _without_sinks(scene: Scene, weights: Value, axis: int) -> Value:
    g = scene.g
    if scene.has("first column cut"):
        return g.slice(weights, axis, 1, 2**62)
    if scene.c.chance("sinks cut by length", 3):
        return g.slice(weights, -1, 0, scene.letters.vector(g, "k"))
    return g.slice(weights, axis, 0, -1)
