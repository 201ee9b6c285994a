"""Generated inputs respect the model: indices in range, masks of 0 and 1, matching shapes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stof_onnx.accuracy.domains import InputDomain, infer_domains
from stof_onnx.accuracy.inputs import generate_feeds, plan_feeds
from stof_onnx.accuracy.session import open_session
from stof_onnx.accuracy.shapes import SymbolicShapes
from stof_onnx.ir.errors import InputError

MODELS = Path(__file__).parents[1] / "models"
INT64 = TensorProto.INT64
FLOAT = TensorProto.FLOAT


def value(name, dims, dtype=INT64):
    return helper.make_tensor_value_info(name, dtype, dims)


def table(name, rows):
    return numpy_helper.from_array(np.zeros((rows, 4), np.float32), name)


def scalar(name, number, dtype=np.int64):
    return numpy_helper.from_array(np.array(number, dtype), name)


def model_of(nodes, inputs, outputs, initializers=(), *, opset=18):
    nodes = [helper.make_node(op, i, o, **attributes) for op, i, o, attributes in nodes]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def domain_of(nodes, *, name="x", dtype=INT64, dims=("batch", "sequence"), initializers=()):
    output = value(nodes[-1][2][0], None, FLOAT)
    model = model_of(nodes, [value(name, list(dims), dtype)], [output], initializers)
    return infer_domains(model)[name]


# ---------------------------------------------------------------------------------- domains


LOOKUP = ("Gather", ["table", "i"], ["y"], {})
INDEX_PATHS = {
    "directly": [("Gather", ["table", "x"], ["y"], {})],
    "cast": [("Cast", ["x"], ["i"], {"to": TensorProto.INT32}), LOOKUP],
    "identity": [("Identity", ["x"], ["i"], {}), LOOKUP],
    "reshape": [("Reshape", ["x", "shape"], ["i"], {}), LOOKUP],
    "unsqueeze": [("Unsqueeze", ["x", "one"], ["i"], {}), LOOKUP],
    "slice": [("Slice", ["x", "zeros", "ones"], ["i"], {}), LOOKUP],
    "expand": [("Expand", ["x", "shape"], ["i"], {}), LOOKUP],
    "table through identity": [
        ("Identity", ["table"], ["t"], {}),
        ("Gather", ["t", "x"], ["y"], {}),
    ],
    "table as constant node": [
        ("Constant", [], ["t"], {"value": table("", 10)}),
        ("Gather", ["t", "x"], ["y"], {}),
    ],
    "gather elements": [
        ("Expand", ["table", "shape"], ["t"], {}),
        ("GatherElements", ["t", "x"], ["y"], {}),
    ],
    "other axis": [("Gather", ["transposed", "x"], ["y"], {"axis": -1})],
    "the smaller of two tables": [
        ("Gather", ["table", "x"], ["z"], {}),
        ("Gather", ["large", "x"], ["y"], {}),
    ],
    "also compared with the padding id": [
        ("Equal", ["x", "one"], ["z"], {}),
        ("Gather", ["table", "x"], ["y"], {}),
    ],
}
CONSTANTS = [
    table("table", 10),
    table("large", 99),
    numpy_helper.from_array(np.zeros((4, 10), np.float32), "transposed"),
    numpy_helper.from_array(np.array([1, -1]), "shape"),
    numpy_helper.from_array(np.array([0, 0]), "zeros"),
    numpy_helper.from_array(np.array([1, 1]), "ones"),
    scalar("one", [1]),
    scalar("two", 2),
    scalar("one_f", 1, np.float32),
]


@pytest.mark.parametrize("nodes", INDEX_PATHS.values(), ids=INDEX_PATHS)
def test_lookup_bounds_an_input(nodes):
    assert domain_of(nodes, initializers=CONSTANTS) == InputDomain("index", 0, 10)


def test_added_constant_shifts_the_range():
    nodes = [("Add", ["x", "two"], ["i"], {}), LOOKUP]
    assert domain_of(nodes, initializers=CONSTANTS) == InputDomain("index", 0, 8)
    nodes = [("Sub", ["x", "one"], ["i"], {}), LOOKUP]
    assert domain_of(nodes, initializers=CONSTANTS) == InputDomain("index", 1, 11)


MASK_USES = {
    "cast to bool": (INT64, [("Cast", ["x"], ["y"], {"to": TensorProto.BOOL})]),
    "compared with 0": (
        INT64,
        [("Greater", ["x", "one"], ["y"], {})],
    ),
    "after unsqueeze": (
        INT64,
        [("Unsqueeze", ["x", "one"], ["z"], {}), ("Equal", ["z", "one"], ["y"], {})],
    ),
    "one minus": (FLOAT, [("Sub", ["one_f", "x"], ["y"], {})]),
    "one minus, after a cast": (
        INT64,
        [("Cast", ["x"], ["z"], {"to": FLOAT}), ("Sub", ["one_f", "z"], ["y"], {})],
    ),
    "boolean": (TensorProto.BOOL, [("Not", ["x"], ["y"], {})]),
}


@pytest.mark.parametrize(("dtype", "nodes"), MASK_USES.values(), ids=MASK_USES)
def test_use_shows_a_mask(dtype, nodes):
    assert domain_of(nodes, dtype=dtype, initializers=CONSTANTS).kind == "mask"


def test_names_decide_where_use_does_not():
    identity = [("Identity", ["pad_mask"], ["y"], {})]
    assert domain_of(identity, name="pad_mask").kind == "mask"
    identity = [("Identity", ["x"], ["y"], {})]
    assert domain_of(identity) == InputDomain("count")
    assert domain_of(identity, dtype=FLOAT) == InputDomain("real")
    added = [("Identity", ["mask"], ["z"], {}), ("Add", ["z", "z"], ["y"], {})]
    assert domain_of(added, name="mask", dtype=FLOAT).kind == "additive_mask"
    lookup = [("Gather", ["table", "position_ids"], ["y"], {})]
    wanted = InputDomain("position", 0, 10)
    assert domain_of(lookup, name="position_ids", initializers=CONSTANTS) == wanted


def test_vector_compared_with_zero_is_no_mask():
    nodes = [("Greater", ["x", "one"], ["y"], {})]
    assert domain_of(nodes, dims=["batch"], initializers=CONSTANTS).kind == "count"


def test_local_functions_are_looked_into():
    model = model_of([], [value("x", ["n"])], [value("y", None, FLOAT)], [table("table", 10)])
    model.graph.node.append(helper.make_node("Lookup", ["table", "x"], ["y"], domain="local"))
    model.opset_import.append(helper.make_opsetid("local", 1))
    body = [helper.make_node("Gather", ["t", "i"], ["o"])]
    model.functions.append(
        helper.make_function("local", "Lookup", ["t", "i"], ["o"], body, model.opset_import[:1])
    )
    assert infer_domains(model)["x"] == InputDomain("index", 0, 10)


@pytest.mark.parametrize(
    "model", ["bert_sdpa_dynamo", "gpt2_eager_torchscript", "modernbert_sdpa_dynamo"]
)
def test_exported_models(model):
    domains = infer_domains(onnx.load(MODELS / f"{model}.onnx"))
    assert domains == {
        "input_ids": InputDomain("index", 0, 128),
        "attention_mask": InputDomain("mask", 0, 2),
    }


# ----------------------------------------------------------------------------------- shapes


def inputs_only(**shapes):
    """A model whose inputs have the given dimensions; it is never run."""
    inputs = [value(name, dims, FLOAT) for name, dims in shapes.items()]
    return model_of([], inputs, [value("y", ["n"], FLOAT)])


DECODER = {
    "input_ids": ["batch", "sequence"],
    "attention_mask": ["batch", "past_sequence + sequence"],
    "past": ["batch", 2, "past_sequence", 32],
}
CROSS = {"ids": ["batch", "sequence"], "memory": ["batch", "keys", 64]}

BAD_SHAPES = {
    "unknown input": (CROSS, {"id": (1, 2)}, "no input 'id'; wanted one of ids [batch, sequence],"),
    "wrong rank": (CROSS, {"ids": (1, 2, 3)}, "has 3 dimensions; wanted 2: [batch, sequence]"),
    "fixed dimension": (CROSS, {"memory": (1, 2, 63)}, "has size 63 in axis 2; wanted 64, which"),
    "contradiction": (
        CROSS,
        {"ids": (1, 2), "memory": (3, 2, 64)},
        "input 'memory' makes dimension 'batch' 3; wanted 1 as in another input",
    ),
    "contradiction within one input": (
        {"mask": ["sequence", "sequence"]},
        {"mask": (4, 5)},
        "makes dimension 'sequence' 5; wanted 4",
    ),
    "not positive": (CROSS, {"ids": (0, 2)}, "has size 0 in axis 0; wanted sizes of at least 1"),
    "wrong sum": (
        DECODER,
        {"input_ids": (1, 3), "past": (1, 2, 4, 32), "attention_mask": (1, 8)},
        "has size 8 in axis 1; wanted 'past_sequence + sequence' = 7",
    ),
}


@pytest.mark.parametrize(("dims", "given", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_contradictory_shapes_are_refused(dims, given, message):
    with pytest.raises(InputError) as caught:
        SymbolicShapes(inputs_only(**dims), given)
    assert message in str(caught.value)


def test_given_shapes_spread_to_inputs_with_the_same_dimensions():
    shapes = SymbolicShapes(inputs_only(**DECODER), {"past": (3, 2, 5, 32)})
    assert shapes.free == ["sequence"]
    assert shapes.resolve({"sequence": 4}) == {
        "input_ids": (3, 4),
        "attention_mask": (3, 9),
        "past": (3, 2, 5, 32),
    }


def test_dimension_with_a_hyphen_is_a_name():
    shapes = SymbolicShapes(inputs_only(x=["batch-size", "n"], y=["n", "batch-size"]))
    assert shapes.free == ["batch-size", "n"]


def test_unnamed_dimensions_agree_among_inputs():
    shapes = SymbolicShapes(inputs_only(x=[None, None, 8], y=[None, None]))
    assert shapes.resolve({"batch": 2, "length": 5}) == {"x": (2, 5, 8), "y": (2, 5)}


def test_leading_axis_that_counts_tokens_is_no_batch():
    shapes = SymbolicShapes(inputs_only(x=["tokens", 8], y=["n", 8], z=["s", "s"]))
    assert [name for name in shapes.free if shapes.is_batch(name)] == ["n"]


# ------------------------------------------------------------------------------------ feeds


@pytest.fixture(scope="module")
def bert_feeds():
    return generate_feeds(onnx.load(MODELS / "bert_sdpa_dynamo.onnx"))


def mask_of(feeds, name):
    return next(feed.arrays["attention_mask"] for feed in feeds if feed.name == name)


def test_feeds_cover_sizes_and_paddings(bert_feeds):
    shapes = {feed.arrays["input_ids"].shape for feed in bert_feeds}
    assert {batch for batch, _ in shapes} >= {1, 2, 3}
    assert len(shapes) >= 3
    assert any(length > 64 for _, length in shapes)
    assert any(length % 2 for _, length in shapes)
    assert len({feed.name for feed in bert_feeds}) == len(bert_feeds) == 5 * len(shapes)
    for feed in bert_feeds:
        ids, mask = feed.arrays["input_ids"], feed.arrays["attention_mask"]
        assert ids.shape == mask.shape
        assert ids.dtype == mask.dtype == np.int64
        assert ids.min() >= 0
        assert ids.max() < 128
        assert set(np.unique(mask)) <= {0, 1}


def test_paddings_are_what_their_names_say(bert_feeds):
    size = "batch 3, sequence 127"
    assert mask_of(bert_feeds, f"{size}, no padding").all()
    right = mask_of(bert_feeds, f"{size}, right padding")
    assert (np.diff(right, axis=1) <= 0).all()
    assert len(set(right.sum(1))) == 3
    assert right[:, 0].all()
    left = mask_of(bert_feeds, f"{size}, left padding")
    np.testing.assert_array_equal(left, right[:, ::-1])
    holes = mask_of(bert_feeds, f"{size}, random holes")
    assert (np.abs(np.diff(holes, axis=1)).sum(1) > 2).all()
    empty = mask_of(bert_feeds, f"{size}, an all-padding row")
    assert empty.sum(1).tolist() == [127, 127, 0]


def test_same_seed_same_feeds(bert_feeds):
    model = onnx.load(MODELS / "bert_sdpa_dynamo.onnx")
    again = generate_feeds(model)
    other = generate_feeds(model, seed=1)
    for feed, same in zip(bert_feeds, again, strict=True):
        for name, array in feed.arrays.items():
            np.testing.assert_array_equal(array, same.arrays[name])
    assert (bert_feeds[-1].arrays["input_ids"] != other[-1].arrays["input_ids"]).any()


def test_queries_and_keys_get_different_lengths():
    feeds = generate_feeds(onnx.load(MODELS / "cross_attention_sdpa_dynamo.onnx"))
    lengths = {(f.arrays["hidden"].shape[1], f.arrays["memory"].shape[1]) for f in feeds}
    assert any(queries < keys for queries, keys in lengths)
    assert any(queries > keys for queries, keys in lengths)


def test_fixed_shapes_are_kept():
    feeds = generate_feeds(onnx.load(MODELS / "bert_static_sdpa_dynamo.onnx"))
    assert {feed.arrays["input_ids"].shape for feed in feeds} == {(2, 20)}
    assert feeds[0].name == "input_ids [2, 20], attention_mask [2, 20], no padding"


def test_given_shapes_are_used():
    model = onnx.load(MODELS / "bert_sdpa_dynamo.onnx")
    feeds = generate_feeds(model, {"input_ids": [2, 9]})
    assert {feed.arrays["attention_mask"].shape for feed in feeds} == {(2, 9)}
    assert len(feeds) == 5


def test_model_without_mask_has_no_paddings():
    feeds = generate_feeds(onnx.load(MODELS / "gpt2_nomask_sdpa_dynamo.onnx"))
    assert [feed.name for feed in feeds] == [
        "batch 1, sequence 7",
        "batch 2, sequence 33",
        "batch 2, sequence 64",
        "batch 3, sequence 127",
    ]


def limited(rows, *, batch="batch"):
    """Adds a constant [1, rows] table, cut to the sequence: longer sequences don't fit."""
    nodes = [
        ("Shape", ["x"], ["length"], {"start": 1, "end": 2}),
        ("Slice", ["positions", "start", "length", "axis"], ["cut"], {}),
        ("Add", ["x", "cut"], ["y"], {}),
    ]
    constants = [
        numpy_helper.from_array(np.zeros((1, rows), np.float32), "positions"),
        scalar("start", [0]),
        scalar("axis", [1]),
    ]
    dims = [batch, "sequence"]
    return model_of(nodes, [value("x", dims, FLOAT)], [value("y", dims, FLOAT)], constants)


def plan(model, shapes=None):
    with open_session(model, "test") as session:
        return plan_feeds(model, session.run, shapes)


def test_length_limit_is_found_and_told():
    made = plan(limited(48))
    assert {feed.arrays["x"].shape for feed in made.feeds} == {(1, 7), (2, 33), (2, 48), (3, 48)}
    assert len(made.notes) == 2
    assert made.notes[0].startswith("the model refuses batch 2, sequence 64 (")
    assert made.notes[0].endswith("; batch 2, sequence 48 was used instead")


def test_given_length_beyond_the_limit_is_an_input_error():
    with pytest.raises(InputError, match="runs in ONNX Runtime at none of the sizes") as caught:
        plan(limited(48), {"x": (2, 49)})
    assert "x [batch, sequence]" in str(caught.value)
    assert "--input-shapes" in str(caught.value)


def test_other_masks_and_numbers_stay_in_their_domains():
    names = {"mask4": TensorProto.BOOL, "add_mask": FLOAT, "lengths": INT64, "position_ids": INT64}
    dims = {"lengths": ["batch"], "position_ids": ["batch", "sequence"]}
    nodes = [
        ("Identity", ["mask4"], ["o1"], {}),
        ("Add", ["add_mask", "add_mask"], ["o2"], {}),
        ("Identity", ["lengths"], ["o3"], {}),
        ("Identity", ["position_ids"], ["o4"], {}),
    ]
    inputs = [
        value(name, dims.get(name, ["batch", 1, "sequence", "sequence"]), dtype)
        for name, dtype in names.items()
    ]
    outputs = [
        value(f"o{i + 1}", dims.get(name, ["batch", 1, "sequence", "sequence"]), dtype)
        for i, (name, dtype) in enumerate(names.items())
    ]
    arrays = generate_feeds(model_of(nodes, inputs, outputs))[-1].arrays
    assert 0.5 < arrays["mask4"].mean() < 0.9
    assert set(np.unique(arrays["add_mask"])) == {0.0, np.finfo(np.float32).min}
    assert arrays["lengths"].min() >= 0
    assert arrays["lengths"].max() <= 127
    np.testing.assert_array_equal(arrays["position_ids"], np.tile(np.arange(127), (3, 1)))


def test_input_that_is_no_number_is_refused():
    strings = value("x", ["n"], TensorProto.STRING)
    model = model_of(
        [("Identity", ["x"], ["y"], {})], [strings], [value("y", ["n"], TensorProto.STRING)]
    )
    with pytest.raises(InputError, match="input 'x' has type STRING"):
        generate_feeds(model)


def test_model_that_cannot_be_loaded_is_an_input_error():
    model = model_of([("Identity", ["x"], ["y"], {})], [value("x", ["n"])], [value("y", ["n"])])
    model.graph.node[0].domain = "nobody"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    with pytest.raises(InputError, match="can't load the model"):
        generate_feeds(model)
