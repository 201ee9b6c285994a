"""Optimization profiles from the shapes that a user gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from stof_onnx.engine.profiles import ShapeRange, optimization_profiles
from stof_onnx.ir.errors import InputError


def model(**inputs: list[str | int | None]) -> ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.INT64, d) for n, d in inputs.items()]
    return helper.make_model(helper.make_graph([], "graph", values, values))


BERT = model(ids=["batch", "seq"], mask=["batch", "seq"])


def test_each_input_has_its_range():
    (profile,) = optimization_profiles(
        BERT, [{"ids": (1, 1)}], [{"ids": (4, 128)}], [{"ids": (8, 512), "mask": (8, 512)}]
    )
    shapes = ShapeRange((1, 1), (4, 128), (8, 512))
    assert profile == {"ids": shapes, "mask": shapes}


LOW, MID, HIGH = (1, 1), (2, 2), (3, 3)


@pytest.mark.parametrize(
    ("low", "usual", "high", "expected"),
    [
        (LOW, MID, HIGH, (LOW, MID, HIGH)),
        (None, MID, HIGH, (MID, MID, HIGH)),
        (LOW, None, HIGH, (LOW, HIGH, HIGH)),
        (LOW, MID, None, (LOW, MID, MID)),
        (LOW, None, None, (LOW, LOW, LOW)),
        (None, MID, None, (MID, MID, MID)),
        (None, None, HIGH, (HIGH, HIGH, HIGH)),
    ],
)
def test_what_is_left_out_is_filled_in_as_trtexec_does(low, usual, high, expected):
    given = [[{"ids": shape}] if shape else [] for shape in (low, usual, high)]
    assert optimization_profiles(BERT, *given)[0]["mask"] == ShapeRange(*expected)


def test_several_profiles():
    profiles = optimization_profiles(
        BERT, (), [{"ids": (1, 128)}, {"ids": (8, 128)}], [{"ids": (1, 512)}, {"mask": (8, 128)}]
    )
    assert [p["ids"].optimum for p in profiles] == [(1, 128), (8, 128)]
    assert [p["mask"].maximum for p in profiles] == [(1, 512), (8, 128)]


def test_static_inputs_need_none():
    assert optimization_profiles(model(x=[2, 3])) == ()
    assert optimization_profiles(model(x=[2, 3]), [{"x": (2, 3)}]) == ()
    (profile,) = optimization_profiles(model(x=[2, 3], y=["n"]), [{"y": (4,)}])
    assert list(profile) == ["y"]


def test_unnamed_dimensions_are_not_taken_for_one():
    two = model(a=[None, None], b=[None, 7])
    (profile,) = optimization_profiles(two, [{"a": (1, 5), "b": (2, 7)}])
    assert profile["b"].minimum == (2, 7)
    with pytest.raises(InputError, match="dynamic input 'b' of the model has no shape in --min"):
        optimization_profiles(two, [{"a": (1, 5)}])


def test_sums_of_dimensions_follow():
    cache = model(ids=["n", "new"], past=["n", "old"], mask=["n", "old + new"])
    (profile,) = optimization_profiles(cache, [{"ids": (1, 2), "past": (1, 30)}])
    assert profile["mask"].minimum == (1, 32)
    with pytest.raises(InputError, match="inputs 'past', 'mask' of the model have no shape"):
        optimization_profiles(cache, [{"ids": (1, 2)}])


def test_scalars():
    (profile,) = optimization_profiles(model(x=["n"], s=[]), [{"x": (4,), "s": ()}])
    assert list(profile) == ["x"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"dynamic inputs 'ids', 'mask' of the model have no shape; .* e.g. `go --min-shapes"),
        ({"min_shapes": [{"idz": (1, 1)}]}, "no input 'idz'.*did you mean 'ids'"),
        ({"min_shapes": [{"zzzz": (1, 1)}]}, "no input 'zzzz'.*correct the shapes"),
        ({"opt_shapes": [{"ids": (1, 1, 1)}]}, "has 3 dimensions; wanted 2"),
        ({"opt_shapes": [{"ids": (1, 2), "mask": (1, 3)}]}, "makes dimension 'seq' 3"),
        (
            {"min_shapes": [{"ids": (1, 9)}], "max_shapes": [{"ids": (2, 8)}]},
            "min 9, opt 8, max 8 in axis 1; wanted min <= opt <= max",
        ),
        (
            {"opt_shapes": [{"ids": (3, 8)}], "max_shapes": [{"ids": (2, 8)}]},
            "min 3, opt 3, max 2 in axis 0",
        ),
        (
            {"opt_shapes": [{"ids": (1, 1)}] * 2, "max_shapes": [{"ids": (2, 8)}]},
            "--max-shapes is given 1 times, another one 2 times",
        ),
        (
            {"min_shapes": [{"ids": (1, 1)}] * 2, "max_shapes": [{"ids": (2, 8)}, {}]},
            "no shape in --max-shapes in profile 1",
        ),
    ],
)
def test_refused(given, message):
    with pytest.raises(InputError, match=message):
        optimization_profiles(BERT, **given, command="go")


@given(*[st.tuples(st.integers(1, 4), st.integers(1, 4))] * 3)
def test_a_profile_is_ordered_or_refused(low, usual, high):
    ordered = all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
    try:
        (profile,) = optimization_profiles(BERT, [{"ids": low}], [{"ids": usual}], [{"ids": high}])
    except InputError:
        assert not ordered
    else:
        assert ordered
        assert profile["mask"] == ShapeRange(low, usual, high)
