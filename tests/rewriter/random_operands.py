"""Query, key and value as random graphs make them: projections, packing, rotary, caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.rewriter.graphs import CHANNELS, Value
from tests.rewriter.random_layouts import Axes, Laid, rearrange, reduced

if TYPE_CHECKING:
    from tests.rewriter.random_graphs import Scene


@dataclass(frozen=True)
class Operands:
    """Query over b, g, j, q, d; key and value over b, g, k and d or e.

    Attributes:
        query, key, value: the three.
        scale_left: whether the scores are still to be scaled.
    """

    query: Laid
    key: Laid
    value: Laid
    scale_left: bool


def write_operands(scene: Scene) -> Operands:
    """Declare what the operands come from, and write them."""
    c, a = scene.c, scene.a
    letters = scene.letters
    letters.numbers |= {"g": a.kv_heads, "j": a.heads // a.kv_heads, "d": a.head_dim}
    letters.numbers["e"] = a.out_dim
    for letter, dim in zip("bqk", a.dims, strict=True):
        letters.dims[letter] = dim
        if isinstance(dim, int):
            letters.numbers[letter] = dim
    kinds = ["separate", "inputs"]
    if a.keys is None:
        kinds += ["packed", "by group"] if a.head_dim == a.out_dim else []
        kinds += ["split rows"]
    kind = c.pick("packing", kinds)
    writers = {
        "separate": _separate,
        "inputs": _inputs,
        "packed": _packed,
        "by group": _by_group,
        "split rows": _split_rows,
    }
    q, k, v = writers[kind](scene)
    scaled = c.pick("scale at", ["query", "scores", "both", "key", "none", "scores"])
    q = _prepared(scene, q, "query", "q")
    k = _prepared(scene, k, "key", "k")
    v = _prepared(scene, v, "value", "k")
    if a.past:
        k, v = _cached(scene, k, "key"), _cached(scene, v, "value")
        letters.numbers.pop("k", None)
        letters.dims["k"] = "total"
        letters.vectors["k"] = scene.g.dim(k.value, k.axis("k"))
    exponent = -0.25 if scaled == "both" else -0.5
    if scaled in ("query", "both"):
        q = _factor(scene, q, exponent)
    if scaled in ("key", "both"):
        k = _factor(scene, k, exponent)
    return Operands(
        scene.disturb("query", q),
        scene.disturb("key", k),
        scene.disturb("value", v),
        scaled == "scores",
    )


def _factor(scene: Scene, x: Laid, exponent: float) -> Laid:
    factor = scene.g.const(scene.a.head_dim**exponent, scene.a.dtype)
    return replace(x, value=scene.g.op("Mul", x.value, factor))


# ---------------------------------------------------------------------------------------- sources


def _hidden(scene: Scene, name: str, token: str) -> Laid:
    """Tokens with their channels, batch first or tokens first."""
    axes: Axes = ("b", token) if not scene.c.chance("sequence first", 5) else (token, "b")
    tag = name if axes[0] == "b" else f"{name}_by_token"
    dims = [*scene.letters.declared(axes), CHANNELS]
    value = scene.g.input(tag, dims, scene.a.dtype)
    for at, letter in enumerate(axes):
        scene.letters.vectors.setdefault(letter, scene.g.dim(value, at))
    return Laid(value, (*axes, "c"))


def _project(scene: Scene, x: Laid, last: str, width: int) -> Laid:
    g, dtype = scene.g, scene.a.dtype
    value = g.op("MatMul", x.value, g.weight(CHANNELS, width, dtype=dtype))
    if scene.c.chance("no bias", 3):
        return Laid(value, (*x.axes[:-1], last))
    return Laid(g.op("Add", value, g.weight(width, dtype=dtype)), (*x.axes[:-1], last))


def _memory(scene: Scene, hidden: Laid) -> Laid:
    """What keys come from, with its tokens called "k"."""
    if scene.a.keys is not None:
        return _hidden(scene, "memory", "k")
    scene.letters.vectors["k"] = scene.letters.vector(scene.g, "q")
    return _of_keys(hidden)


def _of_keys(x: Laid) -> Laid:
    return replace(x, axes=tuple(axis.replace("q", "k") for axis in x.axes))


def _separate(scene: Scene) -> Sequence[Laid]:
    a = scene.a
    hidden = _hidden(scene, "hidden", "q")
    memory = _memory(scene, hidden)
    q = _project(scene, hidden, "gjd", a.heads * a.head_dim)
    k = _project(scene, memory, "gd", a.kv_heads * a.head_dim)
    if a.head_dim == a.out_dim and scene.c.chance("value is key", 12):
        return q, k, replace(k, axes=(*k.axes[:-1], "ge"))
    return q, k, _project(scene, memory, "ge", a.kv_heads * a.out_dim)


_INPUT_AXES: tuple[tuple[Axes, Axes, Axes], ...] = (
    (("b", "gj", "q", "d"), ("b", "g", "k", "d"), ("b", "g", "k", "e")),
    (("b", "q", "gjd"), ("b", "k", "gd"), ("b", "k", "ge")),
    (("b", "q", "gj", "d"), ("b", "k", "g", "d"), ("b", "k", "g", "e")),
    (("q", "b", "gjd"), ("k", "b", "gd"), ("k", "b", "ge")),
    (("gj", "b", "q", "d"), ("g", "b", "k", "d"), ("g", "b", "k", "e")),
    (("b", "q", "dgj"), ("b", "k", "dg"), ("b", "k", "eg")),
    (("b", "gj", "d", "q"), ("b", "g", "d", "k"), ("b", "g", "e", "k")),
)


def _inputs(scene: Scene) -> Sequence[Laid]:
    g, letters = scene.g, scene.letters
    found = []
    chosen = scene.c.pick("input axes", _INPUT_AXES)
    for name, axes in zip(("query", "key", "value"), chosen, strict=True):
        tag = f"{name}_{'_'.join(axes)}"
        x = Laid(g.input(tag, letters.declared(axes), scene.a.dtype), axes)
        for letter in "bqk":
            if letter in axes:
                letters.vectors.setdefault(letter, g.dim(x.value, axes.index(letter)))
        found.append(x)
    return found


_PACKED = ("tgd", "gtd", "gdt", "tdg")


def _packed(scene: Scene) -> Sequence[Laid]:
    """One projection for as many key heads as query heads; "t" tells the three apart."""
    g, c, letters, a = scene.g, scene.c, scene.letters, scene.a
    letters.numbers |= {"t": 3, "g": a.heads, "j": 1}
    hidden = _hidden(scene, "hidden", "q")
    _memory(scene, hidden)
    packed = _project(scene, hidden, c.pick("packed", _PACKED), 3 * a.heads * a.head_dim)
    first: Axes = ("t", *hidden.axes[:-1], "g", "d")
    spread = c.pick(
        "packed as",
        [
            first,
            ("b", "q", "t", "g", "d"),
            ("t", "b", "g", "q", "d"),
            ("b", "g", "q", "td"),
            ("b", "q", "g", "td"),
        ],
    )
    x = rearrange(g, letters, c, packed, spread)
    parts = _parts(scene, x)
    q, k, v = (Laid(part, tuple(s for s in spread if s != "t")) for part in parts)
    q, k, v = (replace(x, axes=tuple(s.replace("t", "") for s in x.axes)) for x in (q, k, v))
    named_q = tuple("gj" if axis == "g" else axis for axis in q.axes)
    named_v = tuple(axis.replace("d", "e") for axis in _of_keys(v).axes)
    return Laid(q.value, named_q), _of_keys(k), Laid(v.value, named_v)


def _parts(scene: Scene, x: Laid) -> list[Value]:
    """The three along the axis that "t" is in; an axis of its own disappears."""
    g, c = scene.g, scene.c
    axis = x.axis("t")
    size = scene.letters.fixed(x.axes[axis].replace("t", "")) or 1
    alone = x.axes[axis] == "t"
    how = c.pick("parts by", ["Split", "Slice", "Gather"])
    if how == "Gather" and alone:
        return [g.op("Gather", x.value, g.const(i, "int64"), axis=axis) for i in range(3)]
    if how == "Slice":
        parts = [g.slice(x.value, axis, i * size, (i + 1) * size) for i in range(3)]
    else:
        sizes = g.ints(size, size, size)
        parts = g.ops("Split", x.value, sizes, outputs=["", "", ""], axis=axis)
    return [g.op("Squeeze", part, g.ints(axis)) for part in parts] if alone else parts


def _by_group(scene: Scene) -> Sequence[Laid]:
    """Falcon: each group's query heads, then its key head, then its value head."""
    g, letters, c = scene.g, scene.letters, scene.c
    a = scene.a
    per_group = a.heads // a.kv_heads
    letters.numbers["p"] = per_group + 2
    hidden = _hidden(scene, "hidden", "q")
    _memory(scene, hidden)
    width = a.kv_heads * (per_group + 2) * a.head_dim
    x = _project(scene, hidden, "gpd", width)
    lead = hidden.axes[:-1]
    x = rearrange(g, letters, c, x, (*lead, "g", "p", "d"))
    ends = [(0, per_group), (per_group, per_group + 1), (per_group + 1, 2**62)]
    q, k, v = (g.slice(x.value, 3, start, end) for start, end in ends)
    keys = tuple(axis.replace("q", "k") for axis in lead)
    return (
        Laid(q, (*lead, "g", "j", "d")),
        Laid(k, (*keys, "g", "", "d")),
        Laid(v, (*keys, "g", "", "e")),
    )


def _split_rows(scene: Scene) -> Sequence[Laid]:
    """One projection, cut into rows of query, key and value."""
    g, c, a = scene.g, scene.c, scene.a
    hidden = _hidden(scene, "hidden", "q")
    _memory(scene, hidden)
    widths = [a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.out_dim]
    packed = _project(scene, hidden, "", sum(widths))
    if c.chance("rows by Slice", 2):
        starts = [0, widths[0], widths[0] + widths[1]]
        ends = [widths[0], widths[0] + widths[1], 2**63 - 1]
        rows = [g.slice(packed.value, 2, s, e) for s, e in zip(starts, ends, strict=True)]
    else:
        rows = g.ops("Split", packed.value, g.ints(*widths), outputs=["", "", ""], axis=-1)
    lead = hidden.axes[:-1]
    q, k, v = (Laid(x, (*lead, last)) for x, last in zip(rows, ("gjd", "gd", "ge"), strict=True))
    return q, _of_keys(k), _of_keys(v)


# ------------------------------------------------------------------------------------ on the heads


def _prepared(scene: Scene, x: Laid, role: str, token: str) -> Laid:
    """Heads apart, and what is computed on them."""
    g, c, letters = scene.g, scene.c, scene.letters
    head = "gj" if role == "query" else "g"
    channel = "e" if role == "value" else "d"
    by_token = c.chance("heads stay behind tokens", 4)
    axes = ("b", token, head, channel) if by_token else ("b", head, token, channel)
    wants_rotary = role != "value" and c.chance("rotary", 6) and letters.numbers["d"] % 2 == 0
    wants_norm = role != "value" and c.chance("head norm", 8)
    if (
        wants_rotary
        or wants_norm
        or c.chance("heads apart", 2)
        or (scene.a.past and role != "query")
    ):
        x = rearrange(g, letters, c, x, axes)
        x = _rotated(scene, x, token) if wants_rotary else x
        x = _normed(scene, x) if wants_norm else x
    if c.chance("identity", 8):
        x = replace(x, value=g.op("Identity", x.value))
    return x


def _rotated(scene: Scene, x: Laid, token: str) -> Laid:
    """x * cos + rotated(x) * sin, with numbers for each token and channel."""
    g, a = scene.g, scene.a
    half = a.head_dim // 2
    tokens = scene.letters.dims[token]
    parts = []
    for name in ("cos", "sin"):
        value = g.input(f"{name}_{token}", [tokens, a.head_dim], a.dtype)
        axes = [i for i, axis in enumerate(x.axes) if axis not in (token, "d")]
        parts.append(g.unsqueeze(value, *axes))
    low, high = g.slice(x.value, -1, 0, half), g.slice(x.value, -1, half, 2**62)
    turned = g.op("Concat", g.op("Neg", high), low, axis=-1)
    value = g.op("Add", g.op("Mul", x.value, parts[0]), g.op("Mul", turned, parts[1]))
    return replace(x, value=value)


def _normed(scene: Scene, x: Laid) -> Laid:
    """x / sqrt(mean(x^2) + 1) * weight, over the channels."""
    g, a = scene.g, scene.a
    weight = g.const([1.0 + i / 8 for i in range(a.head_dim)], a.dtype)
    square = g.op("Mul", x.value, x.value)
    mean = reduced(g, "ReduceMean", square, -1)
    root = g.op("Sqrt", g.op("Add", mean, g.const(1.0, a.dtype)))
    return replace(x, value=g.op("Mul", g.op("Div", x.value, root), weight))


def _cached(scene: Scene, x: Laid, what: str) -> Laid:
    """Past and present tokens; the present ones are an output where the axes are new."""
    g, a = scene.g, scene.a
    letters = scene.letters
    axes = x.axes
    dims = [a.past if axis == "k" else letters.declared((axis,))[0] for axis in axes]
    past = g.input(f"past_{what}_{'_'.join(axes)}", dims, a.dtype)
    joined = g.op("Concat", past, x.value, axis=x.axis("k"))
    if scene.c.chance("cache is an output", 2):
        full = ["total" if axis == "k" else letters.declared((axis,))[0] for axis in axes]
        g.output(joined, full, a.dtype, f"present_{joined}")
    return Laid(joined, axes)


def repeated(scene: Scene, x: Laid) -> Laid:
    """Each key head once for every query head of its group: "g" becomes "gj"."""
    g, c, letters = scene.g, scene.c, scene.letters
    groups = letters.numbers["j"]
    if any("gj" in axis for axis in x.axes):
        return x
    named = tuple(axis.replace("g", "gj") for axis in x.axes if axis or groups == 1)
    if groups == 1:
        return replace(x, axes=tuple(axis.replace("g", "gj") for axis in x.axes))
    if any("g" in axis and axis != "g" for axis in x.axes) or "" in x.axes:
        rest = [axis for axis in ("b", "k", "d", "e") if axis in "".join(x.axes)]
        x = rearrange(g, letters, c, x, (rest[0], "g", *rest[1:]))
        named = tuple(axis.replace("g", "gj") for axis in x.axes)
    axis = x.axis("g")
    how = c.pick("repeat", ["expand", "gather", "concat", "tile"])
    if scene.has("heads repeated otherwise"):
        numbers = list(range(letters.numbers["g"])) * groups
        return Laid(g.op("Gather", x.value, g.ints(*numbers), axis=axis), named)
    if how == "gather":
        numbers = [i for i in range(letters.numbers["g"]) for _ in range(groups)]
        return Laid(g.op("Gather", x.value, g.ints(*numbers), axis=axis), named)
    wide = g.unsqueeze(x.value, axis + 1)
    ones = [1] * (len(x.axes) + 1)
    ones[axis + 1] = groups
    if how == "expand":
        wide = g.op("Expand", wide, g.ints(*ones))
    elif how == "tile":
        wide = g.op("Tile", wide, g.ints(*ones))
    else:
        wide = g.op("Concat", *[wide] * groups, axis=axis + 1)
    apart = (*x.axes[: axis + 1], "j", *x.axes[axis + 1 :])
    return rearrange(g, letters, c, Laid(wide, apart), named)
