"""Comparing models: equal ones pass, wrong ones fail and the stof node at fault is named."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stof_onnx.accuracy import CheckResult, check
from stof_onnx.accuracy.precision import runnable
from stof_onnx.accuracy.result import FeedResult, OutputResult, Tolerance
from stof_onnx.accuracy.tolerance import Rules, distance, judge
from stof_onnx.ir.errors import CheckFailedError, InputError

compare = importlib.import_module("stof_onnx.accuracy.compare")

MODELS = Path(__file__).parents[1] / "models"
FLOAT = TensorProto.FLOAT
NAN, INF = float("nan"), float("inf")


def value(name, dims=("batch", "sequence", 8), dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, dims)


def model_of(nodes, inputs, outputs, initializers=()):
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("stof", 1)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def chain(*functions, dtype=FLOAT, last="y"):
    """x -> functions[0] -> t0 -> functions[1] -> ... -> y, scaled by weights in between."""
    np_dtype = helper.tensor_dtype_to_np_dtype(dtype)
    nodes, source = [], "x"
    for number, function in enumerate(functions):
        target = f"t{number}" if number < len(functions) - 1 else last
        domain = "stof" if function.startswith("Stof") else ""
        nodes.append(
            helper.make_node(function, [source], [f"a{number}"], name=f"f{number}", domain=domain)
        )
        nodes.append(helper.make_node("MatMul", [f"a{number}", "weights"], [target]))
        source = target
    weights = np.random.default_rng(0).standard_normal((8, 8)) / 3
    inputs, outputs = [value("x", dtype=dtype)], [value(last, dtype=dtype)]
    constants = [numpy_helper.from_array(weights.astype(np_dtype), "weights")]
    return model_of(nodes, inputs, outputs, constants)


@pytest.fixture
def expansion(monkeypatch):
    """Lets `StofTanh` stand for `Tanh`, and so on."""

    def expand(model):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for node in copy.graph.node:
            if node.domain == "stof":
                node.op_type, node.domain = node.op_type.removeprefix("Stof"), ""
        return copy

    monkeypatch.setattr(compare, "_expand", expand)


# ------------------------------------------------------------------------------ whole models


def test_equal_models_pass(expansion):
    result = check(chain("Tanh", "Sigmoid"), chain("StofTanh", "StofSigmoid"))
    assert result.passed
    assert result.first_departure is None
    assert result.worst.output.max_abs == 0.0
    assert result.feeds[0].feed == "batch 1, sequence 7"


def test_wrong_node_is_named(expansion):
    original = chain("Tanh", "Tanh", "Tanh")
    optimized = chain("StofTanh", "StofSigmoid", "StofTanh")
    result = check(original, optimized)
    assert not result.passed
    assert result.first_departure == "f1"
    assert result.departure.op_type == "StofSigmoid"
    assert result.departure.output == "a1"
    assert result.departure.max_abs > 0.1
    assert not result.worst.output.passed
    # Locating borrows the models and gives them back.
    assert [output.name for output in original.graph.output] == ["y"]


def test_fault_outside_of_stof_nodes_has_no_departure(expansion):
    result = check(chain("Tanh", "Tanh"), chain("StofTanh", "Sigmoid"))
    assert not result.passed
    assert result.first_departure is None


def test_node_without_a_name_is_named_by_its_output(expansion):
    optimized = chain("StofSigmoid")
    optimized.graph.node[0].name = ""
    assert check(chain("Tanh"), optimized).first_departure == "a0"


def test_small_systematic_error_fails(expansion):
    optimized = chain("StofTanh", "StofTanh")
    weights = numpy_helper.to_array(optimized.graph.initializer[0]) * np.float32(1.001)
    optimized.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    assert not check(chain("Tanh", "Tanh"), optimized).passed
    assert check(chain("Tanh", "Tanh"), optimized, atol=0.1).passed


def test_result_is_json(expansion):
    result = check(chain("Tanh"), chain("StofSigmoid"))
    data = json.loads(json.dumps(result.to_json()))
    assert data["passed"] is False
    assert data["first_departure"] == "f0"
    assert data["departure"]["output"] == "a0"
    assert data["worst"]["output"]["output"] == "y"
    assert data["feeds"][0]["outputs"][0]["tolerance"]["rtol"] == 1e-4
    assert data["feeds"][0]["passed"] is False
    assert len(result.rows()) == len(result.feeds)


def test_progress_is_told_about_every_feed(expansion):
    class Recorder:
        def __init__(self):
            self.done = []

        def task(self, description, total):
            self.done.append([description, total, 0])
            return self

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def advance(self, n=1):
            self.done[-1][2] += n

    recorder = Recorder()
    check(chain("Tanh"), chain("StofTanh"), progress=recorder)
    assert recorder.done == [["Checking", 4, 4]]


def test_nothing_is_printed(expansion, capfd):
    check(chain("Tanh"), chain("StofSigmoid"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name", ["bert_sdpa_dynamo", "bert_fp16_sdpa_dynamo", "gpt2_nomask_sdpa_dynamo"]
)
def test_exported_model_agrees_with_itself(expansion, name):
    path = MODELS / f"{name}.onnx"
    result = check(path, str(path))
    assert result.passed
    assert result.notes == ()


@pytest.mark.parametrize("name", ["bert_sdpa_dynamo", "bert_fp16_sdpa_dynamo", "gpt2_sdpa_dynamo"])
def test_mask_that_is_ignored_is_found(expansion, name):
    """Every feed without padding agrees; the ones with padding don't.

    A row that is padding throughout is left out: adding the same fill to every score
    changes nothing as long as the scores aren't rounded away, as in the float16 model.
    """
    optimized = onnx.load(MODELS / f"{name}.onnx")
    for node in optimized.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.BOOL:
            node.op_type = "Equal"
            node.input.append(node.input[0])
            del node.attribute[:]
    result = check(MODELS / f"{name}.onnx", optimized)
    verdicts = {feed.feed.split(", ")[-1]: set() for feed in result.feeds}
    for feed in result.feeds:
        verdicts[feed.feed.split(", ")[-1]].add(feed.passed)
    assert verdicts.pop("no padding") == {True}
    del verdicts["an all-padding row"]
    assert set.union(*verdicts.values()) == {False}


# ------------------------------------------------------------------------------- disagreement


def test_other_outputs_are_an_error(expansion):
    with pytest.raises(CheckFailedError, match="has outputs z; wanted the original's: y"):
        check(chain("Tanh"), chain("StofTanh", last="z"))


def test_optimized_model_that_does_not_load_is_an_error(expansion):
    with pytest.raises(CheckFailedError, match="can't load the expanded optimized model"):
        check(chain("Tanh"), chain("StofNobody"))


def test_original_that_does_not_load_is_an_input_error(expansion):
    original = chain("Tanh")
    original.graph.node[0].op_type = "Nobody"
    with pytest.raises(InputError, match="can't load the original model"):
        check(original, chain("StofTanh"))


def test_optimized_model_that_fails_at_some_size_fails_the_check(expansion):
    """A length baked into the optimized model."""
    optimized = chain("StofTanh")
    node = optimized.graph.node[-1]
    node.output[0] = "free"
    optimized.graph.initializer.append(
        numpy_helper.from_array(np.zeros((1, 33, 8), np.float32), "zeros")
    )
    optimized.graph.node.append(helper.make_node("Add", ["free", "zeros"], ["y"]))
    result = check(chain("Tanh"), optimized)
    assert [feed.passed for feed in result.feeds] == [False, True, False, False]
    assert result.feeds[0].error
    assert not result.passed


def test_given_shapes_reach_the_models(expansion):
    result = check(chain("Tanh"), chain("StofTanh"), input_shapes={"x": (4, 5, 8)})
    assert [feed.feed for feed in result.feeds] == ["x [4, 5, 8]"]
    with pytest.raises(InputError, match="no input 'ids'"):
        check(chain("Tanh"), chain("StofTanh"), input_shapes={"ids": (4, 5)})


def test_fixed_length_shows_in_the_notes(expansion):
    model = chain("Tanh")
    model.graph.node[0].input[0] = "sum"
    zeros = numpy_helper.from_array(np.zeros((1, 33, 8), np.float32), "zeros")
    model.graph.initializer.append(zeros)
    model.graph.node.insert(0, helper.make_node("Add", ["x", "zeros"], ["sum"]))
    result = check(model, model)
    assert result.passed
    assert any("sequence 33 were used instead" in note for note in result.notes)


# ------------------------------------------------------------------------------- numbers


def test_nan_in_both_is_equal(expansion):
    """sqrt of a negative number is NaN in both models, at the same places."""
    assert check(chain("Sqrt"), chain("StofSqrt")).passed
    nodes = [helper.make_node("Sqrt", ["x"], ["y"])]
    model = model_of(nodes, [value("x")], [value("y")])
    result = check(model, model)
    assert result.passed
    assert result.worst.output.max_abs == 0.0


def test_nan_in_one_fails(expansion):
    original = model_of([helper.make_node("Sqrt", ["x"], ["y"])], [value("x")], [value("y")])
    nodes = [helper.make_node("Relu", ["x"], ["z"]), helper.make_node("Sqrt", ["z"], ["y"])]
    result = check(original, model_of(nodes, [value("x")], [value("y")]))
    assert not result.passed
    assert math.isinf(result.worst.output.max_abs)


@pytest.mark.parametrize(
    ("expected", "actual", "max_abs"),
    [
        ([NAN, 1], [NAN, 1], 0.0),
        ([INF, -INF, 1], [INF, -INF, 1], 0.0),
        ([NAN, 1], [1, NAN], INF),
        ([INF], [-INF], INF),
        ([INF], [1], INF),
        ([1], [INF], INF),
        ([0, 0], [0, 0], 0.0),
        ([], [], 0.0),
        ([3, 4], [3, 4.5], 0.5),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_distance(expected, actual, max_abs, dtype):
    pair = [np.array(numbers, dtype) for numbers in (expected, actual)]
    assert distance(*pair)[0] == max_abs
    result = judge("y", *pair, Rules(), lambda: {"y": pair[0]})
    assert result.passed == (max_abs == 0.0)


def test_relative_l2_distance():
    assert distance(np.array([3.0, 4.0]), np.array([3.0, 4.5]))[1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("expected", "actual", "passed"),
    [
        (np.array([1, 2]), np.array([1, 2]), True),
        (np.array([1, 2]), np.array([1, 3]), False),
        (np.array([True, False]), np.array([True, False]), True),
        (np.array([True, False]), np.array([True, True]), False),
    ],
)
def test_integers_and_booleans_have_to_be_equal(expected, actual, passed):
    assert judge("y", expected, actual, Rules(), dict).passed == passed


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        (np.zeros((2, 3), np.float32), "shape [2, 3], wanted [3, 2]"),
        (np.zeros((3, 2), np.float16), "type float16, wanted float32"),
    ],
)
def test_other_shape_or_type_fails(actual, reason):
    result = judge("y", np.zeros((3, 2), np.float32), actual, Rules(), dict)
    assert not result.passed
    assert result.reason == reason


def test_default_tolerance_follows_the_size_of_an_output():
    expected = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for size in (1e-1, 1, 1e4):
        atol = Rules().tolerance(expected * np.float32(size)).atol
        assert atol == pytest.approx(1e-4 * size, rel=0.1)
    with_fills = np.concatenate([expected, np.full(1000, -3.4e38, np.float32), [np.float32(NAN)]])
    assert Rules().tolerance(with_fills).atol == pytest.approx(1e-4, rel=0.1)


def test_residue_of_a_cancellation_passes():
    noise = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32) * 1e-8
    assert judge("y", noise[0], noise[1], Rules(), dict).passed
    zero = np.zeros(1000, np.float32)
    assert judge("y", zero, noise[0], Rules(), dict).passed


def test_half_inside_widens_the_tolerance():
    expected = np.ones(8, np.float32)
    assert not judge("y", expected, expected * 1.002, Rules(), lambda: {"y": expected}).passed
    assert judge("y", expected, expected * np.float32(1.002), Rules(half=True), dict).passed


def test_noise_of_the_original_widens_the_tolerance():
    expected = np.ones(8, np.float32)
    actual = expected * np.float32(1.00015)
    noisy = expected * np.float32(1.0001)
    result = judge("y", expected, actual, Rules(), lambda: {"y": noisy})
    assert result.passed
    assert "varies by 0.0001" in result.reason
    # A user's tolerance is final, and noise never excuses a large error.
    assert not judge("y", expected, actual, Rules(atol=1e-6, rtol=0), lambda: {"y": noisy}).passed
    assert not judge("y", expected, expected * 2, Rules(), lambda: {"y": expected * 1.5}).passed


def test_user_tolerances_replace_the_defaults():
    expected = np.linspace(1, 2, 100, dtype=np.float32)
    actual = expected + np.float32(0.01)
    assert judge("y", expected, actual, Rules(atol=0.02), dict).passed
    assert judge("y", expected, actual, Rules(rtol=0.02), dict).passed
    assert not judge("y", expected, actual, Rules(atol=0.005), dict).passed


def test_half_model(expansion):
    half = TensorProto.FLOAT16
    result = check(chain("Tanh", "Tanh", dtype=half), chain("StofTanh", "StofTanh", dtype=half))
    assert result.passed
    assert result.feeds[0].outputs[0].dtype == "float16"
    wrong = chain("StofTanh", "StofSigmoid", dtype=half)
    assert check(chain("Tanh", "Tanh", dtype=half), wrong).first_departure == "f1"


def test_bfloat16_model_is_compared_in_float32(expansion):
    kind = TensorProto.BFLOAT16
    original = chain("Tanh", "Tanh", dtype=kind)
    result = check(original, chain("StofTanh", "StofTanh", dtype=kind))
    assert result.passed
    assert "bfloat16" in result.notes[0]
    assert result.feeds[0].outputs[0].dtype == "float32"
    assert original.graph.input[0].type.tensor_type.elem_type == kind
    wrong = chain("StofTanh", "StofSigmoid", dtype=kind)
    assert check(original, wrong).first_departure == "f1"


def test_bfloat16_casts_and_constants_become_float32():
    constant = numpy_helper.from_array(np.float32(1.5), "")
    bf16 = helper.make_tensor("", TensorProto.BFLOAT16, [], [1.5])
    nodes = [
        helper.make_node("Cast", ["x"], ["z"], to=TensorProto.BFLOAT16),
        helper.make_node("Constant", [], ["c"], value=bf16),
        helper.make_node("Add", ["z", "c"], ["y"]),
    ]
    model = model_of(nodes, [value("x")], [value("y", dtype=TensorProto.BFLOAT16)])
    copy, notes = runnable(model)
    assert notes
    assert copy.graph.node[0].attribute[0].i == FLOAT
    assert copy.graph.node[1].attribute[0].t == constant
    assert runnable(copy) == (copy, ())


def test_no_feeds_is_no_proof():
    assert not CheckResult(()).passed


def test_worst_prefers_failures():
    tolerance = Tolerance(1e-5, 1e-5)
    good = OutputResult("a", "float32", 1.0, 0.5, tolerance, passed=True)
    bad = OutputResult("b", "float32", 0.1, 0.1, tolerance, passed=False)
    result = CheckResult((FeedResult("first", (good,)), FeedResult("second", (bad,))))
    assert result.worst.feed == "second"
    assert not result.passed
