"""What stays in float32, with a near miss for each rule."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from stof_onnx.precision.convert import convert
from stof_onnx.precision.target import FLOAT16
from tests.precision.graphs import double_casts, model, nodes, random, types_of

FLOAT, HALF = {TensorProto.FLOAT}, {TensorProto.FLOAT16}
LOWEST = float(np.finfo(np.float32).min)

MASK = """g (float[B, H, S, S] scores, bool[B, 1, 1, S] keep) => (float[B, H, S, S] weights)
{{
  zero = Constant<value_float = 0.0>()
  fill = Constant<value_float = {fill}>()
  eight = Constant<value_float = 8.0>()
  mask = Where(keep, zero, fill)
  product = MatMul(scores, scores)
  scaled = Div(product, eight)
  masked = Add(scaled, mask)
  found = {op}(masked)
  weights = MatMul(found, scores)
}}"""


def lower(text: str, **weights: np.ndarray):
    return convert(model(text, **weights), FLOAT16).model


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_masks_meet_the_scores_in_float32(op):
    result = lower(MASK.format(fill=LOWEST, op=op))
    assert [types_of(result, t) for t in ("Where", "Div", "Add", op)] == [FLOAT] * 4
    assert types_of(result, "MatMul") == HALF
    assert not nodes(result, "Clip")


def test_what_leads_elsewhere_is_lowered_and_its_fill_stays_finite():
    result = lower(MASK.format(fill=LOWEST, op="Relu"))
    assert [types_of(result, t) for t in ("Div", "Add", "Relu")] == [HALF] * 3
    # The mask is clipped before it is cast: -inf would make NaN of what was finite.
    assert types_of(result, "Where") == FLOAT
    assert len(nodes(result, "Clip")) == 1


def test_infinite_fills_stay_infinite():
    result = lower(MASK.format(fill=-10.0, op="Relu"))
    assert not nodes(result, "Clip")


def test_positions_stay_in_float32_and_their_cosines_are_cast():
    result = lower(
        """g (int64[S] positions, float[S, 16] data) => (float[S, 16] rotated)
        {
          numbers = Cast<to = 1>(positions)
          column = Unsqueeze(numbers, axes)
          angles = MatMul(column, frequencies)
          cosines = Cos(angles)
          scaled = Mul(cosines, factor)
          rotated = Mul(data, scaled)
        }""",
        axes=np.int64([1]),
        frequencies=random(1, 16),
        factor=np.float32([1.5]),
    )
    assert types_of(result, "Cos") == types_of(result, "MatMul") == FLOAT
    # The one that meets the data, and the one that makes the angles' factor.
    assert types_of(result, "Mul") == FLOAT | HALF
    kept = {tensor.name: tensor.data_type for tensor in result.graph.initializer}
    assert kept["frequencies"] == TensorProto.FLOAT


def test_positions_that_become_integers_again_stay_in_float32():
    # T5 computes the bucket of a distance by a logarithm; in float16 some fall into the next one.
    result = lower(
        """g (int64[S] distance, float[S] data) => (int64[S] bucket, bool[S] far, int64[S] other)
        {
          number = Cast<to = 1>(distance)
          scaled = Mul(number, factor)
          bucket = Cast<to = 7>(scaled)
          far = Greater(scaled, factor)
          lowered = Mul(data, factor)
          other = Cast<to = 7>(lowered)
        }""",
        factor=np.float32(0.1),
    )
    made_by = {name: node for node in result.graph.node for name in node.output}
    assert made_by["bucket"].input[0] == made_by["far"].input[0] == "scaled"
    assert types_of(result, "Mul") == FLOAT | HALF


@pytest.mark.parametrize(
    ("table", "is_lowered"),
    [
        (random(32, 16), True),
        (np.where(random(32, 16) > 0, np.float32(0), np.float32(LOWEST)), False),
        (np.where(random(32, 16) > 0, np.float32(0), np.float32(1)), False),
        (np.where(random(32, 16) > 0, random(32, 16), -np.inf).astype(np.float32), False),
        (np.arange(16, dtype=np.float32)[None], False),
    ],
    ids=["weight", "mask", "0 and 1", "bias with -inf", "vector"],
)
def test_a_constant_is_a_weight_or_a_table_of_index_arithmetic(table, is_lowered):
    result = lower(
        """g (int64[1] end, float[N, 16] data) => (float[N, 16] sum)
        {
          rows = Slice(table, start, end)
          sum = Mul(data, rows)
        }""",
        start=np.int64([0]),
        table=table,
    )
    assert types_of(result, "Slice") == (HALF if is_lowered else FLOAT)


NORMALISATIONS = {
    "layer": """
          mean = ReduceMean<keepdims = 1>(x, last)
          centred = Sub(x, mean)
          squares = Mul(centred, centred)
          variance = ReduceMean<keepdims = 1>(squares, last)
          safe = Add(variance, epsilon)
          deviation = Sqrt(safe)
          normal = Div(centred, deviation)
          scaled = Mul(normal, weight)""",
    "root mean square": """
          squares = Pow(x, two)
          mean = ReduceMean<keepdims = 1>(squares, last)
          safe = Add(mean, epsilon)
          root = Sqrt(safe)
          inverse = Reciprocal(root)
          normal = Mul(x, inverse)
          scaled = Mul(weight, normal)""",
    "unit length": """
          squares = ReduceSumSquare<keepdims = 1>(x, last)
          length = Sqrt(squares)
          safe = Max(length, epsilon)
          normal = Div(x, safe)
          scaled = Mul(normal, weight)""",
}


@pytest.mark.parametrize("body", NORMALISATIONS.values(), ids=NORMALISATIONS)
def test_a_normalisation_of_many_nodes_stays_whole(body):
    text = f"""g (float[N, 16] data) => (float[N, 16] result)
        {{
          x = MatMul(data, matrix)
          {body}
          result = MatMul(scaled, matrix)
        }}"""
    result = lower(
        text,
        matrix=random(16, 16),
        weight=random(16),
        last=np.int64([-1]),
        epsilon=np.float32(1e-12),
        two=np.float32(2),
    )
    inside = {node.op_type for node in result.graph.node} - {"Cast", "MatMul"}
    assert all(types_of(result, op_type) == FLOAT for op_type in inside)
    assert types_of(result, "MatMul") == HALF
    # Down for the first product, up before the norm, down behind it, up for the output.
    assert len(nodes(result, "Cast")) == 4
    assert double_casts(result) == []


def test_a_sum_that_meets_no_statistics_is_lowered():
    result = lower(
        """g (float[N, 16] a, float[N, 16] b) => (float[N, 16] sum)
        {
          product = MatMul(a, matrix)
          sum = Add(product, b)
        }""",
        matrix=random(16, 16),
    )
    assert types_of(result, "Add") == types_of(result, "MatMul") == HALF


def test_operators_without_the_type_stay_in_float32():
    # Resize takes its scales in float32 only; ONNX Runtime's list has TopK.
    result = lower(
        """g (float[1, 1, 4, 4] image) => (float[1, 1, 8, 8] sum, int64[1, 1, 8, 1] best)
        {
          large = Resize(image, , scales)
          value, best = TopK(large, one)
          sum = Relu(large)
        }""",
        scales=np.float32([1, 1, 2, 2]),
        one=np.int64([1]),
    )
    assert types_of(result, "Resize") == types_of(result, "TopK") == FLOAT
    assert types_of(result, "Relu") == HALF


def test_operators_of_unknown_domains_stay_in_float32_and_known_ones_do_not():
    result = lower(
        """g (float[N, 16] data) => (float[N, 16] out)
        {
          a = Relu(data)
          b = com.microsoft.FastGelu(a)
          c = Relu(b)
          d = com.microsoft.Unheard(c)
          out = Relu(d)
        }"""
    )
    assert types_of(result, "FastGelu") == HALF
    (foreign,) = nodes(result, "Unheard")
    made_by = {name: node for node in result.graph.node for name in node.output}
    assert made_by[foreign.input[0]].op_type == "Cast"
    assert double_casts(result) == []
