"""Random attention graphs: any mixture of layouts, idioms, masks, and things that aren't attention.

``random_graph(index)`` writes one; ``index(n)`` takes each decision, 0 being the plainest option.
Most graphs are attention as some exporter could write it; every second one has one or two
disturbances (``random_decoys``), after which it mostly isn't what it looks like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.rewriter import random_decoys
from tests.rewriter.graphs import CHANNELS, TYPES, Attention, Dim, Graph, Sizes, Value
from tests.rewriter.mask_terms import lowest
from tests.rewriter.random_layouts import Axes, Choices, Laid, Letters, rearrange, reduced
from tests.rewriter.random_masks import MaskWriter
from tests.rewriter.random_operands import Operands, write_operands
from tests.rewriter.random_products import context_of, scores_of
from tests.rewriter.random_softmax import softmax_of

LENGTHS = ((2, 7, 5, 3), (3, 4, 9, 0), (1, 1, 2, 6))


@dataclass(frozen=True)
class RandomGraph:
    """A graph and how it came about.

    Attributes:
        graph: as written.
        model: the same, with the names of dimensions left out where it was decided so.
        sizes: of all dimensions, one after the other.
        made: decisions that weren't the plainest.
        decoys: disturbances that change what is computed.
        tolerance: relative error that rounding may cause.
    """

    graph: Graph
    model: onnx.ModelProto
    sizes: tuple[dict[str, int], ...]
    made: tuple[str, ...]
    decoys: tuple[str, ...]
    tolerance: float


@dataclass
class Scene:
    """One attention being written.

    Attributes:
        g: the graph.
        c: decisions.
        a: sizes and types.
        letters: what the letters of axes stand for.
        decoys: disturbances still to come, by station.
        masks: of the layer before, which this one may share.
    """

    g: Graph
    c: Choices
    a: Attention
    letters: Letters
    decoys: dict[str, list[str]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    shared: list[tuple[str, Value, Value]] = field(default_factory=list)

    def disturb(self, station: str, x: Laid) -> Laid:
        """What a disturbance at this station makes of a tensor."""
        for name in self.decoys.get(station, []):
            found = random_decoys.DECOYS[name].apply(self.g, self.letters, x)
            if found is not None:
                self.done.append(name)
                x = replace(x, value=found)
        return x

    def has(self, name: str) -> bool:
        """Whether a disturbance that is no function of one tensor is to come; it is done then."""
        station = random_decoys.DECOYS[name].station
        if name not in self.decoys.get(station, []):
            return False
        self.done.append(name)
        return True


def random_graph(index: Callable[[int], int]) -> RandomGraph:
    """Write a graph by the decisions of ``index``."""
    c = Choices(index)
    c.plain = c.pick("", [3, 1, 0])
    a = _attention(c)
    g = Graph(a.opset)
    layers = 2 if c.chance("two layers", 8) else 1
    decoys: list[str] = []
    shared: list[tuple[str, Value, Value]] = []
    for layer in range(layers):
        scene = Scene(g, c, a, Letters(), random_decoys.choose(c), shared=shared)
        _write_layer(scene, f"output{layer}")
        decoys += scene.done
        shared = scene.shared
    model = g.model()
    if c.chance("unnamed dimensions", 12):
        for value in model.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                dim.ClearField("dim_param")
    queries = a.queries if isinstance(a.queries, int) else None
    sizes = tuple(sizes_of(*lengths, queries=queries) for lengths in LENGTHS)
    return RandomGraph(g, model, sizes, tuple(c.made), tuple(decoys), _tolerance(a, c.made))


def _attention(c: Choices) -> Attention:
    """Sizes: often fixed ones, and then often equal, so that axes can be taken for each other."""
    kv_heads, groups = c.pick("kv heads", [2, 1, 3, 4]), c.pick("groups", [1, 1, 2, 4])
    cross = c.chance("cross", 4)
    batches: list[Dim] = ["batch", "batch", 2, 1]
    queries: list[Dim] = ["sequence", "sequence", 4, 1]
    keys: list[Dim] = ["memory", "memory", 4, 1]
    return Attention(
        batch=c.pick("batch", batches),
        queries=c.pick("queries", queries),
        keys=c.pick("keys", keys) if cross else None,
        past="past" if not cross and c.chance("cache", 6) else "",
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_dim=c.pick("head dim", [4, 2, 1]),
        value_dim=c.pick("value dim", [0, 0, 2, 1]),
        dtype="float16" if c.chance("float16", 8) else "float32",
        opset=c.pick("opset", [18, 15, 17, 20, 23]),
    )


def sizes_of(
    batch: int, sequence: int, memory: int, past: int, *, queries: int | None = None
) -> dict[str, int]:
    """Sizes of all named dimensions; ``queries`` where that number is fixed."""
    total = past + (sequence if queries is None else queries)
    return {"batch": batch, "sequence": sequence, "memory": memory, "past": past, "total": total}


def _tolerance(a: Attention, made: Sequence[str]) -> float:
    """A fill that doesn't swallow scores rounds them in rows without keys."""
    if a.dtype == "float16":
        return 2e-2
    return (
        5e-3
        if any(
            made_
            in (
                "fill=-1000000000.0",
                "fill=-10000.0",
                "floor at=-1000000000.0",
                "floor at=-10000.0",
            )
            for made_ in made
        )
        else 2e-5
    )


# -------------------------------------------------------------------------------------- one layer


def _write_layer(scene: Scene, output: str) -> None:
    operands = write_operands(scene)
    scores = _scored(scene, operands, scores_of(scene, operands))
    weights = softmax_of(scene, scores)
    context = context_of(scene, weights, operands.value)
    _write_output(scene, scene.disturb("context", context), output)
    _use_elsewhere(scene, {"scores": scores, "weights": weights, "query": operands.query}, output)


def _scored(scene: Scene, operands: Operands, scores: Laid) -> Laid:
    """Scale, softcap and masks in any order that makes sense, and some that doesn't."""
    c = scene.c
    steps = ["scale"] if operands.scale_left else []
    if c.chance("softcap", 6) or "capped" in scene.decoys:
        steps.append("softcap")
    if scene.a.dtype == "float16":
        # ONNX Runtime computes from one operator to the next without rounding to half
        # precision: what is left of a score beside two of its lowest numbers is no reference.
        steps += ["mask"] * c.pick("masks", [1, 0])
    else:
        steps += ["mask"] * c.pick("masks", [1, 0, 2, 1, 3])
        steps += ["noise"] * c.pick("", [0, 0, 1, 2])
        steps += ["floor"] if c.chance("floor", 8) else []
    if c.chance("steps moved", 6) and len(steps) > 1:
        at = c.pick("", range(len(steps)))
        steps.insert(c.pick("", range(len(steps))), steps.pop(at))
    scores = scene.disturb("scores", scores)
    for step in steps:
        scores = _STEPS[step](scene, scores)
    return scene.disturb("masked", scores)


def _scale(scene: Scene, x: Laid) -> Laid:
    g, c, a = scene.g, scene.c, scene.a
    how = c.pick("scale", ["Mul", "Div", "computed", "number first", "two"])
    root = math.sqrt(a.head_dim)
    if how == "Div":
        return replace(x, value=g.op("Div", x.value, g.const(root, a.dtype)))
    if how == "computed":
        root_value = g.op("Sqrt", g.cast(g.ints(a.head_dim), a.dtype))
        return replace(x, value=g.op("Div", x.value, root_value))
    factor = g.const([1.0 / root] if c.chance("", 3) else 1.0 / root, a.dtype)
    if how == "number first":
        return replace(x, value=g.op("Mul", factor, x.value))
    value = g.op("Mul", x.value, factor)
    if how == "two":
        value = g.op("Div", g.op("Mul", value, g.const(3.0, a.dtype)), g.const(2.0, a.dtype))
    return replace(x, value=value)


def _softcap(scene: Scene, x: Laid) -> Laid:
    g, cap = scene.g, scene.g.const(scene.c.pick("cap", [2.0, 0.5, 30.0]), scene.a.dtype)
    capped = g.op("Mul", g.op("Tanh", g.op("Div", x.value, cap)), cap)
    return scene.disturb("capped", replace(x, value=capped))


def _floor(scene: Scene, x: Laid) -> Laid:
    """OPT: no score below a number."""
    g, c = scene.g, scene.c
    lowest_one = lowest(scene.a.dtype)
    limit = g.const(c.pick("floor at", [lowest_one, -1e9, -1e4, -math.inf, -1.0]), scene.a.dtype)
    sides = (limit, x.value) if c.chance("floor first", 3) else (x.value, limit)
    return replace(x, value=g.op("Max", *sides))


def _noise(scene: Scene, x: Laid) -> Laid:
    """Operators that change nothing."""
    g, c = scene.g, scene.c
    kind = c.pick(
        "noise", ["Identity", "max", "Cast", "merged", "Dropout", "add 0", "there and back"]
    )
    if kind == "Identity":
        return replace(x, value=g.op("Identity", x.value))
    if kind == "max":
        maximum = reduced(g, "ReduceMax", x.value, x.axis("k") - len(x.axes))
        return replace(x, value=g.op("Sub", x.value, maximum))
    if kind == "Cast":
        return replace(x, value=g.cast(x.value, scene.a.dtype))
    if kind == "Dropout":
        return replace(x, value=g.op("Dropout", x.value))
    if kind == "add 0":
        return replace(x, value=g.op("Add", x.value, g.const(0.0, scene.a.dtype)))
    other: Axes = tuple(c.pick("other axes", _SCORE_AXES))
    other_x = rearrange(g, scene.letters, c, x, other)
    return other_x if kind == "merged" else rearrange(g, scene.letters, c, other_x, x.axes)


_SCORE_AXES: tuple[Axes, ...] = (
    ("b", "gj", "q", "k"),
    ("bgj", "q", "k"),
    ("gjb", "q", "k"),
    ("b", "g", "j", "q", "k"),
    ("gj", "b", "q", "k"),
)


def _mask(scene: Scene, x: Laid) -> Laid:
    """A mask, in the scores' axes or in [B, H, Sq, Sk]."""
    g, c, letters = scene.g, scene.c, scene.letters
    full: Axes = ("b", "gj", "q", "k")
    home = x.axes
    if home != full and c.chance("masked in 4-D", 3):
        x = rearrange(g, letters, c, x, full)
    how = c.pick("mask how", ["add", "keep", "drop", "add first", "add negated"])
    if scene.shared and c.chance("shared mask", 2):
        kind, mask, fill = scene.shared[0]
        how = how if kind == "add" and how.startswith("add") else "add" if kind == "add" else "keep"
    else:
        mask, fill, kind = _new_mask(scene, how)
        scene.shared = [*scene.shared, (kind, mask, fill)]
    placed = _placed(scene, mask, x.axes, scene.a.dtype if kind == "add" else "bool")
    if kind == "add":
        sides = (placed, x.value) if how == "add first" else (x.value, placed)
        if how == "add negated":
            value = g.op("Sub", x.value, g.op("Neg", placed))
        else:
            value = g.op("Add", *sides)
    elif how == "keep":
        value = g.op("Where", placed, x.value, fill)
    else:
        value = g.op("Where", g.op("Not", placed), fill, x.value)
    x = replace(x, value=value)
    if x.axes != home and c.chance("back", 2):
        x = rearrange(g, letters, c, x, home)
    return x


def _new_mask(scene: Scene, how: str) -> tuple[Value, Value, str]:
    letters, a = scene.letters, scene.a
    sizes = Sizes(*(letters.vector(scene.g, letter) for letter in "bqk"))
    writer = MaskWriter(scene.g, scene.c, a, sizes)
    if how.startswith("add"):
        return writer.additive(), "", "add"
    keep = writer.keep()
    return keep, writer.fill()[0], "keep"


def _placed(scene: Scene, mask: Value, axes: Axes, dtype: str) -> Value:
    """A [B or 1, H or 1, Sq or 1, Sk or 1] mask for scores with these axes."""
    g, letters = scene.g, scene.letters
    if axes == ("b", "gj", "q", "k"):
        return mask
    shape = g.op("Concat", *(letters.vector(g, a) for a in ("b", "gj", "q", "k")), axis=0)
    if dtype == "bool" and g.opset < 13:
        mask = g.cast(mask, "int64")
    wide = g.op("Expand", mask, shape)
    return rearrange(g, letters, scene.c, Laid(wide, ("b", "gj", "q", "k")), axes).value


_STEPS: dict[str, Callable[[Scene, Laid], Laid]] = {
    "scale": _scale,
    "softcap": _softcap,
    "noise": _noise,
    "floor": _floor,
    "mask": _mask,
}


# ----------------------------------------------------------------------------------------- output

_OUTPUTS: tuple[Axes, ...] = (
    ("b", "q", "gje"),
    ("b", "q", "gj", "e"),
    ("b", "gj", "q", "e"),
    ("q", "b", "gje"),
    ("bq", "gje"),
    ("b", "q", "egj"),
    ("b", "g", "jqe"),
)


def _write_output(scene: Scene, context: Laid, name: str) -> None:
    g, c, a, letters = scene.g, scene.c, scene.a, scene.letters
    if c.chance("through rows", 6):
        context = rearrange(g, letters, c, context, ("b", "q", "gje"))
    axes = c.pick("output", [*_OUTPUTS[:1], context.axes, *_OUTPUTS[1:]])
    out = rearrange(g, letters, c, context, axes)
    unknown: list[Any] = [None] * len(out.axes)
    last = letters.fixed(out.axes[-1])
    if last is not None and c.chance("projected", 2):
        value = g.op("MatMul", out.value, g.weight(last, CHANNELS, dtype=a.dtype))
        g.output(value, [*unknown[1:], CHANNELS], a.dtype, name)
        return
    g.outputs.append(helper.make_tensor_value_info(out.value, TYPES[a.dtype], unknown))


def _use_elsewhere(scene: Scene, tensors: dict[str, Laid], name: str) -> None:
    """Tensors that something else reads too."""
    g, a = scene.g, scene.a
    for what, x in tensors.items():
        if scene.has(f"{what} read twice"):
            g.output(g.op("ReduceSum", x.value, keepdims=0), [], a.dtype, f"{name}_{what}_sum")
        if scene.has(f"shape of {what} read"):
            rank: list[Dim] = [len(x.axes)]
            g.output(g.op("Shape", x.value), rank, "int64", f"{name}_{what}_shape")
        if scene.has(f"{what} is an output"):
            unknown: list[Any] = [None] * len(x.axes)
            g.outputs.append(helper.make_tensor_value_info(x.value, TYPES[a.dtype], unknown))
        if scene.has(f"{what} captured"):
            g.output(_captured(g, x.value, a.dtype), [], a.dtype, f"{name}_{what}_if")


def _captured(g: Graph, value: Value, dtype: str) -> Value:
    """A tensor that only the body of an If reads."""
    condition = g.const(np.asarray(True), "bool")
    branches = []
    for op in ("ReduceSum", "ReduceMax"):
        out = f"{value}.{op}"
        node = helper.make_node(op, [value], [out], keepdims=0)
        info = helper.make_tensor_value_info(out, TYPES[dtype], [])
        branches.append(helper.make_graph([node], op, [], [info]))
    return g.op("If", condition, then_branch=branches[0], else_branch=branches[1])
