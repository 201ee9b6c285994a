"""Sizes are found for models whose files don't say how their lengths depend on each other."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from stof_onnx.accuracy.inputs import plan_feeds
from stof_onnx.accuracy.session import open_session
from stof_onnx.ir.errors import InputError

INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
VOCABULARY, FEATURES = 11, 8


def value(name, dims, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, dims)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model_of(nodes, inputs, outputs, initializers=()):
    nodes = [
        helper.make_node(op, sources, [target], **attributes)
        for op, sources, target, attributes in nodes
    ]
    graph = helper.make_graph(
        nodes, "graph", inputs, [value(name, None) for name in outputs], list(initializers)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


TABLE = constant("table", np.ones((VOCABULARY, FEATURES), np.float32))
ATTENTION = [
    ("Gather", ["table", "ids"], "rows", {}),
    ("Unsqueeze", ["rows", "one"], "query", {}),
    ("Concat", ["past.key", "query"], "key", {"axis": 2}),
    ("Concat", ["past.value", "query"], "values", {"axis": 2}),
    ("Transpose", ["key"], "turned", {"perm": [0, 1, 3, 2]}),
    ("MatMul", ["query", "turned"], "scores", {}),
]
PADDING = [
    ("Cast", ["mask"], "keep", {"to": BOOL}),
    ("Unsqueeze", ["keep", "one_two"], "keys", {}),
]
HIDE = [
    ("Where", ["keys", "scores", "lowest"], "hidden", {}),
    ("Softmax", ["hidden"], "weights", {"axis": -1}),
    ("MatMul", ["weights", "values"], "y", {}),
]


def decoder(new, past, total, *, batch="batch", value_past=None, mask_rank=2, position_rows=0):
    """One attention over cached and new keys, whose mask must have past + new positions."""
    nodes = [*ATTENTION, *(PADDING if mask_rank == 2 else []), *HIDE]
    mask = [batch, total] if mask_rank == 2 else [batch, 1, new, total]
    inputs = [
        value("ids", [batch, new], INT64),
        value("mask" if mask_rank == 2 else "keys", mask, INT64 if mask_rank == 2 else BOOL),
        value("past.key", [batch, 1, past, FEATURES]),
        value("past.value", [batch, 1, value_past or past, FEATURES]),
    ]
    constants = [
        TABLE,
        constant("one", [1]),
        constant("one_two", [1, 2]),
        constant("lowest", np.float32(-1e30)),
    ]
    outputs = ["y"]
    if position_rows:
        nodes.append(("Gather", ["places", "position_ids"], "z", {}))
        inputs.append(value("position_ids", [batch, new], INT64))
        constants.append(constant("places", np.ones((position_rows, 2), np.float32)))
        outputs.append("z")
    return model_of(nodes, inputs, outputs, constants)


@dataclasses.dataclass
class Planned:
    """A plan of feeds, and how often the model ran for it."""

    feeds: list
    notes: tuple
    runs: int

    def shapes(self, name):
        return {feed.arrays[name].shape for feed in self.feeds}

    @property
    def assumed(self):
        return [note for note in self.notes if "taken to be" in note]


def plan(model, shapes=None):
    runs = []
    with open_session(model, "test") as session:

        def probe(arrays):
            runs.append(1)
            return session.run(arrays)

        made = plan_feeds(model, probe, shapes)
        for feed in made.feeds:
            session.run(feed.arrays)
    return Planned(made.feeds, made.notes, len(runs))


DECODERS = {
    "named": (decoder("sequence", "past", "total"), ["total is taken to be past + sequence"]),
    "names that say nothing": (decoder("s0", "s1", "s2"), ["s2 is taken to be s1 + s0"]),
    "one new token": (decoder(1, "past", "total"), ["total is taken to be past + 1"]),
    "fixed cache": (decoder("sequence", 6, "total"), ["total is taken to be sequence + 6"]),
    "all fixed but the mask": (decoder(3, 6, "total"), ["total is taken to be 6 + 3"]),
    "fixed mask": (decoder("sequence", "past", 30), ["sequence is taken to be 30 - past"]),
    "mask for queries and keys": (
        decoder("sequence", "past", "total", mask_rank=4),
        ["total is taken to be past + sequence"],
    ),
    "keys and values named apart": (
        decoder("sequence", "past_k", "total", value_past="past_v"),
        ["total is taken to be past_k + sequence", "past_v is taken to be past_k"],
    ),
    "named after their inputs": (
        decoder("ids_axes_1", "past.key_axes_2", "mask_axes_1", value_past="past.value_axes_2"),
        [
            "mask_axes_1 is taken to be past.key_axes_2 + ids_axes_1",
            "past.value_axes_2 is taken to be past.key_axes_2",
        ],
    ),
    "not named": (
        decoder(None, None, None, batch=None),
        [
            "mask[1] is taken to be past.key[2] + ids[1]",
            "past.value[2] is taken to be past.key[2]",
        ],
    ),
}


@pytest.mark.parametrize(("model", "notes"), DECODERS.values(), ids=DECODERS)
def test_sum_is_found_and_told(model, notes):
    found = plan(model)
    assert found.assumed == notes
    mask = "mask" if "mask" in found.feeds[0].arrays else "keys"
    for feed in found.feeds:
        new, past = feed.arrays["ids"].shape[1], feed.arrays["past.key"].shape[2]
        assert feed.arrays[mask].shape[-1] == past + new
    assert found.runs < 100


def test_cache_is_also_empty_and_masks_cover_past_and_new_positions():
    found = plan(decoder("sequence", "past", "total"))
    pasts = {shape[2] for shape in found.shapes("past.key")}
    assert 0 in pasts
    assert 1 in {shape[1] for shape in found.shapes("ids")}
    assert len(pasts) >= 4
    assert {shape[0] for shape in found.shapes("ids")} == {1, 2, 3}
    assert {feed.name.rsplit(", ")[-1] for feed in found.feeds} == {
        "no padding",
        "right padding",
        "left padding",
        "random holes",
        "an all-padding row",
    }
    left = next(feed for feed in found.feeds if feed.name.endswith("left padding"))
    assert "past 4" in left.name
    assert left.arrays["mask"].tolist() == [[0] * 5 + [1] * 6]


def test_padding_that_the_model_refuses_is_left_out():
    """A lookup of each row's kept positions, in a table that has a row for all or nothing."""
    nodes = [
        ("ReduceMin", ["mask", "one"], "full", {"keepdims": 0}),
        ("ReduceMax", ["mask", "one"], "any", {"keepdims": 0}),
        ("Sub", ["any", "full"], "partly", {}),
        ("Gather", ["only_zero", "partly"], "y", {}),
    ]
    constants = [constant("one", [1]), constant("only_zero", np.zeros(1, np.float32))]
    found = plan(model_of(nodes, [value("mask", ["batch", "n"], INT64)], ["y"], constants))
    paddings = {feed.name.rsplit(", ")[-1] for feed in found.feeds}
    assert paddings == {"no padding", "an all-padding row"}
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the model refuses batch 1, n 7, right padding (")
    assert found.notes[0].endswith(" and 11 other inputs with padding; they were left out")


def test_declared_sum_needs_no_note():
    found = plan(decoder("sequence", "past", "past + sequence"))
    assert found.notes == ()


def test_positions_follow_the_cache_and_stay_in_the_table():
    found = plan(decoder("sequence", "past", "total", position_rows=50))
    assert found.assumed == ["total is taken to be past + sequence"]
    for feed in found.feeds:
        new, past = feed.arrays["ids"].shape[1], feed.arrays["past.key"].shape[2]
        wanted = np.minimum(np.arange(past, past + new), 49)
        assert (feed.arrays["position_ids"] == wanted).all()


def test_table_limits_the_sum():
    model = decoder("sequence", "past", "total")
    rows = constant("rows_40", np.zeros((1, 40), np.float32))
    model.graph.initializer.extend([rows, constant("zero", [0])])
    cut = helper.make_node("Shape", ["mask"], ["length"], start=1, end=2)
    sliced = helper.make_node("Slice", ["rows_40", "zero", "length", "one"], ["limit"])
    added = helper.make_node("Add", ["y_scores", "limit"], ["scores"])
    product = next(n for n in model.graph.node if n.output[0] == "scores")
    product.output[0] = "y_scores"
    position = list(model.graph.node).index(product) + 1
    for node in (added, sliced, cut):
        model.graph.node.insert(position, node)
    found = plan(model)
    assert found.assumed == ["total is taken to be past + sequence"]
    assert max(shape[1] for shape in found.shapes("mask")) in range(30, 41)
    assert any("was used instead" in note for note in found.notes)


# ------------------------------------------------------------------------- other relations


def added(first, second):
    """x + y, which need equal lengths."""
    inputs = [value("x", ["batch", first]), value("y", ["batch", second])]
    return model_of([("Add", ["x", "y"], "z", {})], inputs, ["z"])


def test_equal_lengths_are_found():
    assert plan(added("a", "b")).assumed == ["b is taken to be a"]


def test_independent_lengths_are_left_alone():
    found = plan(
        model_of([("Concat", ["x", "y"], "z", {"axis": 1})], added("a", "b").graph.input, "z")
    )
    assert found.notes == ()
    pairs = [(f.arrays["x"].shape, f.arrays["y"].shape) for f in found.feeds]
    assert all(first != second for first, second in pairs)


def concatenated(*, pairs):
    """Inputs x, y, z, ...: the first of each triple must be as long as the others together."""
    nodes, inputs, outputs = [], [], []
    for number, dims in enumerate(pairs):
        names = [f"{letter}{number}" for letter in "xyz"]
        inputs += [value(name, ["batch", dim]) for name, dim in zip(names, dims, strict=True)]
        nodes.append(("Concat", names[1:], f"c{number}", {"axis": 1}))
        nodes.append(("Add", [names[0], f"c{number}"], f"o{number}", {}))
        outputs.append(f"o{number}")
    return model_of(nodes, inputs, outputs)


@pytest.mark.parametrize("order", ["abc", "bac", "bca"])
def test_any_length_may_be_the_sum(order):
    """Inputs of one kind and names without meaning: only running them tells."""
    model = concatenated(pairs=["abc"])
    inputs = sorted(model.graph.input, key=lambda v: order.index("abc"["xyz".index(v.name[0])]))
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    assert [note.replace("c + b", "b + c") for note in plan(model).assumed] == [
        "a is taken to be b + c"
    ]


def test_first_of_two_possible_sums_is_used():
    """A mask that is cut to the keys fits every longer sum too; the plausible one is taken."""
    model = decoder("sequence", "past", "total")
    unused = value("extra", ["batch", 1, "more", FEATURES])
    model.graph.input.append(unused)
    model.graph.node.append(helper.make_node("Identity", ["extra"], ["y2"]))
    model.graph.output.append(value("y2", None))
    assert plan(model).assumed == ["total is taken to be past + sequence"]


def static_cache():
    """New rows are written into a cache with room for them, at given positions."""
    nodes = [
        ("Gather", ["table", "ids"], "rows", {}),
        ("Gather", ["cache", "cache_position"], "places", {"axis": 2}),
    ]
    inputs = [
        value("ids", ["batch", "sequence"], INT64),
        value("cache_position", ["sequence"], INT64),
        value("cache", ["batch", 1, "room", FEATURES]),
    ]
    return model_of(nodes, inputs, ["rows", "places"], [TABLE])


def test_cache_with_room_for_new_positions():
    found = plan(static_cache())
    assert found.assumed == ["room is taken to be sequence + 9"]
    for feed in found.feeds:
        count = feed.arrays["ids"].shape[1]
        assert (feed.arrays["cache_position"] == np.arange(count)).all()


def tower(side=0):
    """Patches of 16 pixels in windows of 2 by 2; with a table of positions, one size only."""
    weights = constant("weights", np.ones((4, 3, 16, 16), np.float32) / 768)
    nodes = [
        ("Conv", ["image", "weights"], "patches", {"strides": [16, 16]}),
        ("Shape", ["image"], "shape", {"start": 2, "end": 4}),
        ("Div", ["shape", "sixteen"], "counts", {}),
        ("Div", ["shape", "thirty_two"], "windows", {}),
        ("Mul", ["windows", "two"], "covered", {}),
        ("Sub", ["counts", "covered"], "rest", {}),
        ("ReduceSum", ["rest"], "uncovered", {"keepdims": 0}),
        ("Gather", ["only_zero", "uncovered"], "checked", {}),
        ("Cast", ["checked"], "fits", {"to": FLOAT}),
        ("Flatten", ["patches"], "y", {}),
    ]
    constants = [weights, constant("sixteen", [16]), constant("thirty_two", [32])]
    constants += [constant("two", [2]), constant("only_zero", [0])]
    if side:
        nodes[-1] = ("Reshape", ["patches", "to"], "rows", {})
        nodes.append(("Add", ["rows", "places"], "y", {}))
        constants.append(constant("to", [0, 4, -1]))
        constants.append(constant("places", np.ones((1, 1, side * side), np.float32)))
    inputs = [value("image", ["batch", 3, "height", "width"])]
    return model_of(nodes, inputs, ["y", "fits"], constants)


def test_images_have_multiples_of_a_window():
    found = plan(tower())
    shapes = found.shapes("image")
    assert all(height % 32 == width % 32 == 0 for *_, height, width in shapes)
    assert len(shapes) >= 4
    assert any(height != width for *_, height, width in shapes)
    assert found.notes[0].startswith("the model refuses batch 1, height 7, width 4 (")
    assert found.runs < 150


def audio(frames):
    """Two convolutions, the second halving the length, and a table of positions."""
    weights = constant("weights", np.ones((4, 4, 3), np.float32) / 12)
    nodes = [
        ("Conv", ["sound", "weights"], "wide", {"pads": [1, 1]}),
        ("Conv", ["wide", "weights"], "narrow", {"pads": [1, 1], "strides": [2]}),
        ("Transpose", ["narrow"], "rows", {"perm": [0, 2, 1]}),
        ("Add", ["rows", "places"], "y", {}),
    ]
    places = constant("places", np.ones((frames // 2, 4), np.float32))
    return model_of(nodes, [value("sound", ["batch", 4, "frames"])], ["y"], [weights, places])


def test_length_follows_from_the_table_of_positions():
    found = plan(audio(300))
    assert {shape[2] for shape in found.shapes("sound")} <= {299, 300}
    assert {shape[0] for shape in found.shapes("sound")} >= {1, 2}
    assert found.runs < 150


def test_shape_left_by_tracing():
    """The model was traced with 2 rows of 20, and takes nothing else."""
    nodes = [("Reshape", ["x", "to"], "y", {})]
    model = model_of(nodes, [value("x", ["batch", "n"])], ["y"], [constant("to", [2, 20])])
    assert (2, 20) in plan(model).shapes("x")


def test_batch_left_by_tracing():
    nodes = [("Reshape", ["x", "to"], "y", {})]
    model = model_of(nodes, [value("x", ["batch", "n", 3])], ["y"], [constant("to", [2, 0, 3])])
    found = plan(model)
    assert {shape[0] for shape in found.shapes("x")} == {2}
    assert {shape[1] for shape in found.shapes("x")} >= {7, 33, 64, 127}


# ------------------------------------------------------------------------------ given shapes


def test_given_shapes_take_part_in_the_sum():
    found = plan(decoder("sequence", "past", "total"), {"mask": (2, 20)})
    assert found.assumed == ["sequence is taken to be total - past"]
    assert {sum(shapes) for shapes in zip(*lengths_of(found), strict=True)} == {20}
    found = plan(decoder("sequence", "past", "total"), {"past.key": (2, 1, 5, FEATURES)})
    assert found.assumed == ["total is taken to be past + sequence"]
    assert found.shapes("past.value") == {(2, 1, 5, FEATURES)}


def lengths_of(found):
    new = [feed.arrays["ids"].shape[1] for feed in found.feeds]
    return new, [feed.arrays["past.key"].shape[2] for feed in found.feeds]


GIVEN = {"ids": (1, 4), "past.key": (1, 1, 5, FEATURES), "mask": (1, 8)}


def test_contradictory_shapes_are_not_mended():
    with pytest.raises(InputError, match="runs in ONNX Runtime at none of the sizes tried"):
        plan(decoder("sequence", "past", "total"), GIVEN)


def test_given_shapes_that_leave_no_room():
    shapes = {"mask": (1, 3), "past.key": (1, 1, 5, FEATURES)}
    with pytest.raises(InputError) as caught:
        plan(decoder("sequence", "past", "total"), shapes)
    assert "sequence = total - past" in str(caught.value)


def test_failure_says_what_was_tried_and_what_to_give():
    model = decoder("sequence", "past", "total")
    model.graph.initializer.append(constant("to", [-1, 5000]))
    model.graph.node.append(helper.make_node("Reshape", ["keep", "to"], ["z"]))
    model.graph.output.append(value("z", None, BOOL))
    runs = 0
    with open_session(model, "test") as session:

        def probe(arrays):
            nonlocal runs
            runs += 1
            return session.run(arrays)

        with pytest.raises(InputError) as caught:
            plan_feeds(model, probe)
    text = str(caught.value)
    assert "tried: lengths of their own, total = past + sequence, past = sequence + 9" in text
    assert " other relations; wanted shapes that it takes for ids [batch, sequence], mask" in text
    assert text.endswith("--input-shapes ids:[1,7] mask:[1,11] past.key:[1,1,4,8]")
    assert runs <= 500
