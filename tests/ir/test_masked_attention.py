"""StofMaskedAttention: its expansion, run by ONNX Runtime, against the fp64 oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from stof_onnx.expansion import expand_model
from stof_onnx.ir.expr import Expr
from stof_onnx.ir.expr.build import (
    FALSE,
)
from stof_onnx.ir.mask.program import (
    MaskProgram,
)
from stof_onnx.ir.operators.masked_attention import (
    MaskedAttention,
    TensorLayout,
    node_attributes,
)
from tests.ir.attention_cases import (
    FLOAT16_MIN,
    FLOAT32_MIN,
    MASKS,
    NODE,
    PLACES,
    Case,
    Sizes,
    check,
    model_of,
    node_of,
    run,
)

SHAPES = [
    Sizes(),
    Sizes(1, 1, 1, 1, 1, 1, 1),
    Sizes(batch=1, queries=1, keys=9),
    Sizes(batch=3, queries=5, keys=13, head_dim=3, value_head_dim=5),
    Sizes(batch=2, kv_heads=2, groups=3, queries=11, keys=4, head_dim=8, value_head_dim=1),
]


@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str, sizes: Sizes) -> None:
    check(Case(sizes, mask))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
def test_layouts_of_one_input(which: int, place: str) -> None:
    sizes = Sizes(groups=2, queries=5, keys=3, head_dim=4, value_head_dim=6)
    places = ["BHSD", "BHSD", "BHSD"]
    places[which] = place
    check(Case(sizes, "causal_end", (places[0], places[1], places[2])))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("output", [("BSHD", 3), ("BSHD", 4), ("BHSD", 4)], ids=str)
def test_layouts_of_inputs_and_output(place: str, output: tuple[str, int]) -> None:
    sizes = Sizes(groups=3, queries=3, keys=8, head_dim=2, value_head_dim=3)
    check(Case(sizes, "padding", (place, place, place), output))


@pytest.mark.parametrize("rank", [3, 5])
def test_one_packed_tensor_feeds_all_three(rank: int) -> None:
    case = Case(Sizes(queries=6, keys=6), "causal")
    node = node_of(case)
    (_, query), (_, key), (_, value) = node.inputs
    packed = np.concatenate([query, key, value], axis=2)
    if rank == 5:
        packed = packed.reshape(2, 6, 3, 2, 4)
    record = replace(
        node.record,
        query=TensorLayout("BSHD", 0, 4),
        key=TensorLayout("BSHD", 8, 4),
        value=TensorLayout("BSHD", 16, 4),
    )
    model = model_of(node._replace(record=record, inputs=[("packed", packed)]))
    model.graph.node[0].input[:] = ["packed"] * 3
    got = run(model, node._replace(inputs=[("packed", packed)]))
    np.testing.assert_allclose(got, node.wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mask", ["no_mask", "causal", "padding", "table", "alibi", "bias_by_head"])
@pytest.mark.parametrize(
    ("dtype", "score_dtype"),
    [("float16", "float32"), ("float16", "float16"), ("float32", "float16")],
)
def test_types(mask: str, dtype: str, score_dtype: str) -> None:
    sizes = Sizes(groups=2, queries=9, keys=5, head_dim=8, value_head_dim=8)
    check(Case(sizes, mask, dtype=dtype, score_dtype=score_dtype))


FILLS = [
    ("float32", "replace", -math.inf),
    ("float32", "add", -math.inf),
    ("float32", "replace", FLOAT32_MIN),
    ("float32", "add", FLOAT32_MIN),
    ("float32", "replace", -1e4),
    ("float32", "add", -1e4),
    ("float16", "replace", FLOAT16_MIN),
    ("float16", "add", FLOAT16_MIN),
    ("float16", "replace", FLOAT32_MIN),
    ("float16", "add", -math.inf),
]


@pytest.mark.parametrize(("dtype", "mode", "fill"), FILLS)
@pytest.mark.parametrize("mask", ["causal", "left_padding_causal"])
def test_fills_where_every_row_has_a_key(mask: str, dtype: str, mode: str, fill: float) -> None:
    program = {"fill": fill, "fill_mode": mode}
    sizes = Sizes(queries=8, keys=9)
    case = Case(sizes, mask, dtype=dtype, score_dtype=dtype, program=program)
    if mask == "left_padding_causal":
        assert not node_of(case).record.mask.is_empty
        case = replace(case, sizes=Sizes(batch=1, queries=1, keys=1))
    check(case)


@pytest.mark.parametrize(
    ("dtype", "mode", "fill", "is_guarded", "wanted"),
    [
        ("float32", "replace", -math.inf, False, "nan"),
        ("float32", "add", -math.inf, False, "nan"),
        ("float16", "replace", -math.inf, False, "nan"),
        ("float16", "replace", FLOAT32_MIN, False, "nan"),
        ("float32", "replace", -math.inf, True, "zero"),
        ("float32", "add", -math.inf, True, "zero"),
        ("float16", "add", -math.inf, True, "zero"),
        ("float32", "replace", FLOAT32_MIN, False, "mean"),
        ("float32", "add", FLOAT32_MIN, False, "mean"),
        ("float32", "add", FLOAT32_MIN, True, "mean"),
        ("float32", "replace", -1e4, False, "mean"),
        ("float16", "replace", FLOAT16_MIN, False, "mean"),
        ("float32", "add", -1e4, False, "softmax"),
        ("float32", "add", -1e4, True, "softmax"),
        # ONNX Runtime adds float16 numbers in float32: it doesn't round to multiples of 32.
        ("float16", "add", FLOAT16_MIN, False, "softmax"),
    ],
)
@pytest.mark.parametrize(
    ("mask", "sizes"),
    [
        ("causal_end", Sizes(queries=9, keys=4)),  # the first 5 queries
        ("left_padding_causal", Sizes(queries=8, keys=8)),  # the first queries of some batches
        ("window", Sizes(queries=11, keys=3)),  # the last 6 queries
    ],
    ids=["causal_end", "left_padding", "window"],
)
def test_rows_without_keys(
    *, mask: str, sizes: Sizes, dtype: str, mode: str, fill: float, is_guarded: bool, wanted: str
) -> None:
    program = {"fill": fill, "fill_mode": mode, "nan_to_zero": is_guarded}
    case = Case(sizes, mask, dtype=dtype, score_dtype=dtype, program=program)
    assert node_of(case).record.mask.empty_row(dtype) == wanted
    has_nan = bool(np.isnan(node_of(case).wanted).any())
    assert has_nan == (wanted == "nan")
    check(case, tolerance=2e-3 if wanted == "softmax" else 0.0)


def test_a_mask_that_keeps_nothing() -> None:
    node = node_of(Case(mask="causal"))
    nothing = MaskProgram(FALSE, fill=FLOAT32_MIN)
    got = run(model_of(node, mask=nothing.to_json()), node)
    value = node.inputs[2][1]
    np.testing.assert_allclose(got, np.broadcast_to(value.mean(1, keepdims=True), got.shape), 1e-6)


def test_added_fill_is_rounded_to_the_score_type() -> None:
    """In float16, score - 65504 is a multiple of 32: moderate scores all become the fill."""
    program = {"fill": FLOAT16_MIN, "fill_mode": "add"}
    case = Case(
        Sizes(batch=1, kv_heads=1, queries=6, keys=4, head_dim=16, value_head_dim=3),
        "causal_end",
        ("BHSD",) * 3,
        ("BHSD", 4),
        "float16",
        "float16",
        program,
        scale=8.0,
    )
    node = node_of(case)
    query, key, value = (x[0, 0].astype(np.float64) for _, x in node.inputs)
    with np.errstate(over="ignore"):
        rounded = (8.0 * query @ key.T).astype(np.float16)[:2] + np.float16(FLOAT16_MIN)
    assert len(np.unique(rounded)) > 1
    weights = np.exp(rounded.astype(np.float64) - rounded.max())
    wanted = weights / weights.sum(axis=1, keepdims=True) @ value
    # ONNX's reference implementation rounds after every operator; ONNX Runtime doesn't.
    expanded = expand_model(model_of(node))
    with np.errstate(over="ignore"):
        (got,) = ReferenceEvaluator(expanded).run(None, dict(node.inputs))
    np.testing.assert_allclose(got[0, 0, :2], wanted, rtol=3e-3, atol=3e-3)


def test_the_scale_is_a_float32_number() -> None:
    node = node_of(Case(scale=1 / math.sqrt(10)))
    proto = model_of(node).graph.node[0]
    again = MaskedAttention.from_attributes(node_attributes(proto), NODE)
    assert again == replace(node.record, scale=float(np.float32(1 / math.sqrt(10))))


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24])
@pytest.mark.parametrize("mask", ["arithmetic", "documents", "table_by_batch"])
def test_opsets(opset: int, mask: str) -> None:
    if opset > 23 and tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24):
        pytest.skip("this ONNX Runtime (the newest for Python 3.10) ends at opset 23")
    node = node_of(Case(Sizes(groups=2, queries=5, keys=4), mask))
    got = run(model_of(node, opset=opset), node)
    np.testing.assert_allclose(got, node.wanted, rtol=2e-6, atol=2e-6)


# ---------------------------------------------------------------------------------------
# Any configuration.


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = Sizes(
        batch=draw(st.integers(1, 3)),
        kv_heads=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 3)),
        queries=draw(st.integers(1, 9)),
        keys=draw(st.integers(1, 9)),
        head_dim=draw(st.integers(1, 6)),
        value_head_dim=draw(st.integers(1, 6)),
    )
    place = st.sampled_from(list(PLACES))
    dtype = draw(st.sampled_from(["float32", "float32", "float16"]))
    fill, mode = draw(
        st.sampled_from([(-math.inf, "replace"), (-math.inf, "add"), (-3e4, "replace")])
    )
    return Case(
        sizes,
        draw(st.sampled_from(list(MASKS))),
        (draw(place), draw(place), draw(place)),
        draw(st.sampled_from([("BSHD", 3), ("BSHD", 4), ("BHSD", 4)])),
        dtype,
        draw(st.sampled_from(["float32", dtype])),
        {"fill": fill, "fill_mode": mode, "nan_to_zero": draw(st.booleans())},
        draw(st.sampled_from([0.125, 0.5, 1.0, -0.25])),
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from([0.0, 0.0, 1.5, 30.0])),
        draw(st.sampled_from([None, None, 1.0, -3e4])),
    )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_configuration(case: Case) -> None:
    check(case)


def test_expressions_of_every_operation_were_run() -> None:
    """The masks above reach every operation that an expansion can hold."""
    used: set[str] = set()
    for make in MASKS.values():
        program = make(Sizes(), np.random.default_rng(0)).program
        for expr in (program.keep, program.bias):
            used |= operations(expr) if expr is not None else set()
    assert used >= {"add", "mul", "floordiv", "mod", "abs", "min", "ge0", "eq0", "and", "or"}
    assert used >= {"fadd", "fmul", "float"}


def operations(expr: Expr) -> set[str]:
    from stof_onnx.ir.expr import Op, walk

    return {node.name for node in walk(expr) if isinstance(node, Op)}
