"""How a model is lowered: weights, casts, subgraphs, functions, refusals, numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper, parser

from stof_onnx.ir.errors import InputError
from stof_onnx.precision.convert import convert
from stof_onnx.precision.rounded import float32_twin, rounded_copy
from stof_onnx.precision.target import BFLOAT16, FLOAT16
from tests.precision.graphs import PRECISIONS, model, nodes, random, types_of

both = pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.short)


def weights(lowered: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in lowered.graph.initializer}


def run(built: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@both
def test_a_weight_of_both_kinds_of_nodes_is_kept_twice(precision):
    built = model(
        """g (float[4, 4] x) => (float[4, 4] y, float[4, 4] z)
        {
          y = MatMul(x, w)
          z = Softmax(w)
        }""",
        w=random(4, 4),
    )
    result = convert(built, precision).model
    assert sorted(weights(result).values()) == sorted([TensorProto.FLOAT, precision.elem_type])
    assert weights(result)["w"] == TensorProto.FLOAT
    assert nodes(result, "Softmax")[0].input[0] == "w"


@both
def test_a_lowered_output_that_is_read_on(precision):
    built = model(
        """g (float[4, 4] x) => (float[4, 4] hidden, float[4, 4] probabilities, float[4, 4] y)
        {
          hidden = MatMul(x, w)
          probabilities = Softmax(hidden)
          y = MatMul(hidden, w)
        }""",
        w=random(4, 4),
    )
    result = convert(built, precision).model
    assert nodes(result, "Softmax")[0].input[0] == "hidden"
    # x down; hidden up, once; y up.
    assert len(nodes(result, "Cast")) == 3


IF = """g (float[4, 4] x, bool choice) => (float[4, 4] y)
{
  hidden = MatMul(x, w)
  chosen = If (choice) <
    then_branch = yes () => (float[4, 4] a) { a = Add(hidden, w) },
    else_branch = no () => (float[4, 4] b) { b = Identity(hidden) }
  >
  y = MatMul(chosen, w)
}"""


@both
def test_graphs_inside_nodes_stay_in_float32(precision):
    built = model(IF, w=random(4, 4))
    result = convert(built, precision).model
    onnx.checker.check_model(result, full_check=True)
    assert types_of(result, "MatMul") == {precision.elem_type}
    twin = float32_twin(result, precision)
    for choice in (True, False):
        feed = {"x": random(4, 4), "choice": np.asarray(choice)}
        (expected,), (actual,) = run(built, **feed), run(twin, **feed)
        np.testing.assert_allclose(actual, expected, rtol=0.05, atol=0.05)


@both
def test_functions_are_inlined(precision):
    built = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
        g (float[4, 4] x) => (float[4, 4] y) <float[4, 4] w = {1.0}> { y = own.Twice(x) }
        <domain: "own", opset_import: ["" : 18]>
        Twice (a) => (c) { b = MatMul(a, a) c = MatMul(b, b) }""".replace(
            "<float[4, 4] w = {1.0}>", ""
        )
    )
    result = convert(built, precision).model
    assert not result.functions
    assert types_of(result, "MatMul") == {precision.elem_type}


def test_overridable_initializers_stay_as_they_are():
    built = model(
        "g (float[4, 4] x, float[4, 4] w) => (float[4, 4] y) { y = MatMul(x, w) }", w=random(4, 4)
    )
    result = convert(built, FLOAT16).model
    assert weights(result)["w"] == TensorProto.FLOAT
    assert len(nodes(result, "Cast")) == 3


@both
def test_types_in_attributes_are_lowered(precision):
    built = model(
        """g (float[4, 4] x) => (float[4, 4] y)
        {
          bits = Greater(x, x)
          ones = Cast<to = 1>(bits)
          big = CastLike(bits, x)
          sum = Add(x, ones)
          noise = RandomNormalLike<dtype = 1, seed = 1.0>(sum)
          y = Add(noise, big)
        }"""
    )
    result = convert(built, precision).model
    onnx.checker.check_model(result, full_check=True)
    # ONNX has no bfloat16 noise.
    noise = precision.elem_type if precision is FLOAT16 else TensorProto.FLOAT
    assert types_of(result, "RandomNormalLike") == {noise}
    assert types_of(result, "Add") == {precision.elem_type}


def test_single_operators_of_16_bits_are_no_objection():
    built = model(
        """g (float[4, 4] x) => (float[4, 4] y)
        {
          narrow = Cast<to = 16>(x)
          doubled = Add(narrow, narrow)
          wide = Cast<to = 1>(doubled)
          y = MatMul(wide, w)
        }""",
        w=random(4, 4),
    )
    result = convert(built, FLOAT16).model
    onnx.checker.check_model(result, full_check=True)
    assert types_of(result, "Add") == {TensorProto.BFLOAT16}
    assert types_of(result, "MatMul") == {TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("mask", "is_lowered"), [("", True), (", bool[8, 8] m", True), (", float[8, 8] m", False)]
)
def test_onnx_attention_is_lowered_unless_it_adds_a_mask(mask, is_lowered):
    operands = "q, q, q, m" if mask else "q, q, q"
    text = f"g (float[1, 2, 8, 4] q{mask}) => (float[1, 2, 8, 4] y) {{ y = Attention({operands}) }}"
    result = convert(model(text, opset=23), FLOAT16).model
    assert types_of(result, "Attention") == {FLOAT16.elem_type if is_lowered else TensorProto.FLOAT}
    (node,) = nodes(result, "Attention")
    assert [(a.name, a.i) for a in node.attribute] == [("softmax_precision", TensorProto.FLOAT)]


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "g (float16[4] x) => (float16[4] y) { y = Relu(x) }",
            "float16 weights, inputs or outputs",
        ),
        (
            "g (bfloat16[4] x) => (bfloat16[4] y) { y = Relu(x) }",
            "bfloat16 weights, inputs or outputs",
        ),
        ("g (int64[4] x) => (int64[4] y) { y = Add(x, x) }", "no float32 tensors"),
        ("g (double[4] x) => (double[4] y) { y = Relu(x) }", "no float32 tensors"),
    ],
)
@both
def test_models_that_are_not_float32_are_refused(text, message, precision):
    with pytest.raises(InputError, match=message) as caught:
        convert(model(text), precision)
    assert f"leave out --{precision.short}" in str(caught.value)


# ----------------------------------------------------------------------------------- numbers


# Halfway between two numbers, once the lower and once the upper one is even.
@example(np.float32([1 + 2**-8, 1 + 3 * 2**-8] * 8))
@given(arrays.arrays(np.float32, 16, elements=st.floats(width=32)))
def test_bfloat16_weights_are_rounded_to_nearest(values):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    built = model("g (float[16] x) => (float[16] y) { y = Mul(x, w) }", w=values)
    (tensor,) = convert(built, BFLOAT16).model.graph.initializer
    assert tensor.data_type == TensorProto.BFLOAT16
    rounded = np.frombuffer(tensor.raw_data, ml_dtypes.bfloat16).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    # A finite number never becomes infinite.
    largest = np.float32(BFLOAT16.largest)
    expected = np.where(np.isfinite(values), np.clip(expected, -largest, largest), expected)
    np.testing.assert_array_equal(rounded, expected)


def test_float16_weights_out_of_range_stay_finite():
    built = model("g (float[2] x) => (float[2] y) { y = Mul(x, w) }", w=np.float32([1e9, -np.inf]))
    (tensor,) = convert(built, FLOAT16).model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), np.float16([65504, -np.inf]))


CHAIN = "g (float[4] x) => (float[4] y) { a = Mul(x, x) b = Mul(a, a) y = Neg(b) }"


def test_the_rounding_copy_rounds_after_every_operator():
    x = np.float32([1.001, 300.3, 3.3, 1e-4])
    (y,) = run(rounded_copy(convert(model(CHAIN), FLOAT16).model, FLOAT16), x=x)
    half = x.astype(np.float16)
    with np.errstate(over="ignore"):
        exact = [np.float32(half) ** 2]
        squares = np.float32(np.float16(exact[0]))
        expected = -np.float32(np.float16(squares * squares))
    np.testing.assert_array_equal(y, expected)
    assert np.isinf(y[1])


def test_the_twin_does_not_round_between_operators():
    x = np.float32([1.001, 300.3, 3.3, 1e-4])
    (y,) = run(float32_twin(convert(model(CHAIN), FLOAT16).model, FLOAT16), x=x)
    np.testing.assert_allclose(y, -(x.astype(np.float64) ** 4), rtol=1e-5)


def test_the_result_is_checked_for_contradictions(monkeypatch):
    from stof_onnx.precision import convert as module

    def forget_casts(lowered: onnx.ModelProto) -> None:
        for node in nodes(lowered, "Cast"):
            node.CopyFrom(helper.make_node("Identity", node.input, node.output))

    monkeypatch.setattr(module, "_keep_softmax", forget_casts)
    with pytest.raises(InputError, match="can't be lowered to float16"):
        convert(model("g (float[4] x) => (float[4] y) { y = Relu(x) }"), FLOAT16)
