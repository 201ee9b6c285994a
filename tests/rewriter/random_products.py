"""The two products of random graphs, by MatMul and Einsum on axes of many kinds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.rewriter.random_layouts import Axes, Laid, rearrange
from tests.rewriter.random_operands import Operands, repeated

if TYPE_CHECKING:
    from tests.rewriter.random_graphs import Scene

_LABELS = {"gj": "h"}
_QUERY_AXES: tuple[Axes, ...] = (
    ("b", "q", "gj", "d"),
    ("b", "gj", "q", "d"),
    ("q", "b", "gj", "d"),
    ("gj", "b", "d", "q"),
)
_SCORE_AXES: tuple[Axes, ...] = (
    ("b", "gj", "q", "k"),
    ("gj", "b", "q", "k"),
    ("b", "q", "gj", "k"),
    ("b", "gj", "k", "q"),
    ("b", "q", "k", "gj"),
)
_GROUPED: Axes = ("b", "g", "j", "q", "k")


def scores_of(scene: Scene, operands: Operands) -> Laid:
    """Query times key."""
    c, letters = scene.c, scene.letters
    modes = ["plain", "merged", "einsum", "grouped", "folded", "transposed", "merged otherwise"]
    if letters.numbers.get("b") == 1:
        modes.append("unbatched")
    mode = "einsum" if "einsum" in scene.decoys else c.pick("product", modes)
    q, k = operands.query, operands.key
    if mode.startswith("einsum"):
        return _einsum_scores(scene, q, k)
    leads: dict[str, tuple[Axes, Axes, str]] = {
        "plain": (("b", "gj"), ("b", "gj"), "q"),
        "transposed": (("b", "gj"), ("b", "gj"), "q"),
        "merged": (("bgj",), ("bgj",), "q"),
        "merged otherwise": (("gjb",), ("gjb",), "q"),
        "grouped": (("b", "g", "j"), ("b", "g", ""), "q"),
        "folded": (("b", "g"), ("b", "g"), "jq"),
        "unbatched": (("gj",), ("gj",), "q"),
    }
    lead, key_lead, rows = leads[mode]
    if any("j" in axis for axis in key_lead):
        k = repeated(scene, k)
    if mode == "unbatched":
        q, k = _without_batch(scene, q), _without_batch(scene, k)
    if mode == "transposed":
        q = _turned(scene, q, (*lead, "d", "q"))
        k = rearrange(scene.g, letters, c, k, (*lead, "k", "d"))
        return Laid(scene.g.op("MatMul", k.value, q.value), (*lead, "k", "q"))
    q = rearrange(scene.g, letters, c, q, (*lead, rows, "d"))
    if letters.fixed("k") == letters.fixed("d") and scene.has("key not transposed"):
        turned = rearrange(scene.g, letters, c, k, (*key_lead, "k", "d"))
    else:
        turned = _turned(scene, k, (*key_lead, "d", "k"))
    if mode in ("plain", "grouped") and scene.has("keys of the first batch"):
        turned = replace(turned, value=scene.g.slice(turned.value, 0, 0, 1))
    return Laid(scene.g.op("MatMul", q.value, turned.value), (*lead, rows, "k"))


def _without_batch(scene: Scene, x: Laid) -> Laid:
    """Squeezed where the batch of 1 has an axis of its own."""
    if "b" not in x.axes:
        rest = tuple(axis.replace("b", "") for axis in x.axes)
        return replace(x, axes=rest)
    axis = x.axes.index("b")
    value = scene.g.op("Squeeze", x.value, scene.g.ints(axis))
    return Laid(value, (*x.axes[:axis], *x.axes[axis + 1 :]))


def _turned(scene: Scene, x: Laid, axes: Axes) -> Laid:
    """Channels before tokens: at once, after the heads, or in 3-D."""
    g, c, letters = scene.g, scene.c, scene.letters
    how = c.pick("key transposed", ["at once", "late", "flat"])
    straight = (*axes[:-2], axes[-1], axes[-2])
    if how == "late":
        x = rearrange(g, letters, c, x, straight)
    if how == "flat":
        lead = "".join(axes[:-2])
        x = rearrange(g, letters, c, x, (lead, axes[-1], axes[-2]))
        x = rearrange(g, letters, c, x, (lead, *axes[-2:]))
    return rearrange(g, letters, c, x, axes)


def _einsum_scores(scene: Scene, q: Laid, k: Laid) -> Laid:
    c = scene.c
    if c.chance("einsum by group", 3):
        q = rearrange(scene.g, scene.letters, c, q, ("b", "q", "g", "j", "d"))
        key_axes = c.pick("", [("b", "k", "g", "d"), ("b", "g", "k", "d")])
        k = rearrange(scene.g, scene.letters, c, k, key_axes)
        return _einsum(scene, q, k, _GROUPED)
    axes = c.pick("einsum query", _QUERY_AXES)
    q = rearrange(scene.g, scene.letters, c, q, axes)
    same = c.pick("einsum key", [axes, *_QUERY_AXES])
    in_keys = tuple(axis.replace("q", "k") for axis in same)
    k = rearrange(scene.g, scene.letters, c, repeated(scene, k), in_keys)
    if scene.has("one channel for all"):
        k = replace(k, value=scene.g.slice(k.value, k.axis("d"), 0, 1))
    if scene.has("one query channel for all"):
        q = replace(q, value=scene.g.slice(q.value, q.axis("d"), 0, 1))
    out = c.pick("einsum scores", _SCORE_AXES)
    return _einsum(scene, k, q, out) if c.chance("key first", 4) else _einsum(scene, q, k, out)


def _einsum(scene: Scene, left: Laid, right: Laid, out: Axes) -> Laid:
    terms = ["".join(_LABELS.get(axis, axis) for axis in x) for x in (left.axes, right.axes, out)]
    equation = f"{terms[0]},{terms[1]}->{terms[2]}"
    if scene.c.chance("spaces", 4):
        equation = equation.replace(",", ", ").replace("->", " -> ")
    value = scene.g.op("Einsum", left.value, right.value, equation=equation)
    return Laid(value, out)


def context_of(scene: Scene, weights: Laid, value: Laid) -> Laid:
    """Weights times value."""
    g, c, letters = scene.g, scene.c, scene.letters
    if c.chance("value product otherwise", 4):
        axes = c.pick("weights as", [("b", "gj", "q", "k"), ("bgj", "q", "k"), _GROUPED])
        if "b" in "".join(weights.axes):
            weights = rearrange(g, letters, c, weights, axes)
    last = weights.axes[-2:]
    has_batch = "b" in "".join(weights.axes)
    value = value if has_batch else _without_batch(scene, value)
    if letters.fixed("q") == letters.fixed("k") is not None and scene.has("weights transposed"):
        weights = replace(weights, value=_swapped(scene, weights))
    is_split = weights.axes in (*_SCORE_AXES, _GROUPED)
    if is_split and (last not in (("q", "k"), ("k", "q")) or c.chance("value by Einsum", 4)):
        return _einsum_context(scene, weights, value)
    lead = weights.axes[:-2]
    if last == ("k", "q") and c.chance("value on the left", 2):
        v = rearrange(g, letters, c, repeated(scene, value), (*lead, "e", "k"))
        return Laid(g.op("MatMul", v.value, weights.value), (*lead, "e", "q"))
    if last == ("k", "q"):
        weights = rearrange(g, letters, c, weights, (*lead, "q", "k"))
    value_lead = tuple("" if axis == "j" else axis for axis in lead)
    if any("j" in axis for axis in value_lead):
        value = repeated(scene, value)
    v = rearrange(g, letters, c, value, (*value_lead, "k", "e"))
    if lead[0] == "b" and scene.has("values of the first batch"):
        v = replace(v, value=g.slice(v.value, 0, 0, 1))
    return Laid(g.op("MatMul", weights.value, v.value), (*weights.axes[:-1], "e"))


def _swapped(scene: Scene, x: Laid) -> str:
    """The last two axes swapped, although they are named as before."""
    order = [*range(len(x.axes) - 2), len(x.axes) - 1, len(x.axes) - 2]
    return scene.g.transpose(x.value, *order)


def _einsum_context(scene: Scene, weights: Laid, value: Laid) -> Laid:
    g, c, letters = scene.g, scene.c, scene.letters
    if weights.axes == _GROUPED:
        v = rearrange(g, letters, c, value, ("b", "k", "g", "e"))
        return _einsum(scene, weights, v, ("b", "q", "g", "j", "e"))
    axes = tuple(
        axis.replace("q", "k").replace("d", "e") for axis in c.pick("einsum value", _QUERY_AXES)
    )
    v = rearrange(g, letters, c, repeated(scene, value), axes)
    if letters.fixed("q") == letters.fixed("k") is not None and scene.has("summed over queries"):
        weights = replace(
            weights, axes=tuple({"q": "k", "k": "q"}.get(axis, axis) for axis in weights.axes)
        )
    out = c.pick(
        "einsum context", [("b", "q", "gj", "e"), ("b", "gj", "q", "e"), ("q", "b", "gj", "e")]
    )
    if c.chance("value first", 4):
        return _einsum(scene, v, weights, out)
    return _einsum(scene, weights, v, out)
