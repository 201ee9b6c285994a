"""Input shapes in Polygraphy's and trtexec's notations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stof_onnx.ir.errors import InputError
from stof_onnx.ir.shapes import format_shape, parse_input_shapes


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ids:[8,512]", {"ids": (8, 512)}),
        ("ids:8x512", {"ids": (8, 512)}),
        ("ids:[ 8, 512 ]", {"ids": (8, 512)}),
        ("ids : 8x512", {"ids": (8, 512)}),
        ("onnx::ids:[8,512]", {"onnx::ids": (8, 512)}),
        ("a/b:0:8x512", {"a/b:0": (8, 512)}),
        ("model/layer.0/q:0:[1]", {"model/layer.0/q:0": (1,)}),
        ("past[0].key:1x12x8x64", {"past[0].key": (1, 12, 8, 64)}),
        ("8x512:8x512", {"8x512": (8, 512)}),
        ("'Input:0':1x3", {"Input:0": (1, 3)}),
        ("x:[]", {"x": ()}),
        ("x:[ ]", {"x": ()}),
        ("x:scalar", {"x": ()}),
        ("x:7", {"x": (7,)}),
        ("ids:8x512,mask:8x512", {"ids": (8, 512), "mask": (8, 512)}),
        ("ids:[8,512],mask:[8,512]", {"ids": (8, 512), "mask": (8, 512)}),
        (
            "ids:[8,512], mask:8x512,x:[],y:1",
            {"ids": (8, 512), "mask": (8, 512), "x": (), "y": (1,)},
        ),
        ("a[0]:[2,3],b[1]:4x5", {"a[0]": (2, 3), "b[1]": (4, 5)}),
        ("ids:9223372036854775807", {"ids": (2**63 - 1,)}),
    ],
)
def test_both_notations(text: str, wanted: dict[str, tuple[int, ...]]) -> None:
    assert parse_input_shapes([text]) == wanted


def test_arguments_are_joined_in_order() -> None:
    shapes = parse_input_shapes(["b:1x2", "a:[3],c:[]", "b:[1,2]"])
    assert list(shapes.items()) == [("b", (1, 2)), ("a", (3,)), ("c", ())]


def test_no_argument_gives_no_shape() -> None:
    assert parse_input_shapes([]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "input shape '' has no input name; wanted name:[8,512] or name:8x512"),
        ("8x512", "input shape '8x512' has no input name"),
        ("[8,512]", "input shape '[8,512]' has no input name"),
        (":8x512", "has no input name"),
        ("ids:8x512,", "input shape '' in 'ids:8x512,' has no input name"),
        ("ids,mask:8x512", "input shape 'ids' in 'ids,mask:8x512' has no input name"),
        ("ids:", "input 'ids' has no shape; wanted name:[8,512] or name:8x512; write a scalar"),
        ("ids:[8,512", "input 'ids' has shape '[8'"),
        ("ids:8,512]", "input 'ids' has shape '8,512]'"),
        ("ids:[8]x512", "input 'ids' has shape '[8]x512'"),
        ("ids:[[8]]", "input 'ids' has shape '[[8]]'"),
        ("ids:[8,,512]", "dimension '' in '[8,,512]'"),
        ("ids:8x", "dimension '' in '8x'"),
        ("ids:8X512", "dimension '8X512' in '8X512'; wanted a positive number"),
        ("ids:8*512", "dimension '8*512'"),
        ("ids:[8 512]", "dimension '8 512'"),
        ("ids:0x512", "dimension '0' in '0x512'; wanted a positive number"),
        ("ids:[8,0]", "dimension '0' in '[8,0]'"),
        ("ids:[8,-2]", "dimension '-2' in '[8,-2]'"),
        ("ids:[+8]", "dimension '+8'"),
        ("ids:[1_0]", "dimension '1_0'"),
        ("ids:[\u0663]", "dimension '\u0663'"),
        ("ids:[8.0]", "dimension '8.0'"),
        ("ids:[9223372036854775808]", "dimension '9223372036854775808'"),
        ("ids:[" + "9" * 5000 + "]", "wanted a positive number"),
    ],
)
def test_bad_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_input_shapes([text])
    assert message in str(caught.value)


@pytest.mark.parametrize("dim", ["-1", "?", "N", "batch", "batch_size", "'batch'", '"N"', "None"])
@pytest.mark.parametrize("form", ["ids:[{},512]", "ids:{}x512", "mask:8x8,ids:8x{}"])
def test_a_dynamic_dimension_is_refused(dim: str, form: str) -> None:
    with pytest.raises(InputError, match="in place of a dynamic dimension"):
        parse_input_shapes([form.format(dim)])


def test_one_name_with_two_shapes_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        parse_input_shapes(["ids:8x512,x:[]", "ids:[512,8]"])
    assert str(caught.value) == (
        "input 'ids' is given two shapes, [8,512] and [512,8]; wanted one shape"
    )


names = st.from_regex(r"[A-Za-z_:/.][A-Za-z0-9_:/.\-]*", fullmatch=True)
shapes = st.lists(st.integers(1, 2**63 - 1), max_size=6).map(tuple)


@given(st.dictionaries(names, shapes, max_size=5), st.data())
def test_round_trip(wanted: dict[str, tuple[int, ...]], data: st.DataObject) -> None:
    texts = []
    for name, shape in wanted.items():
        as_trtexec = "x".join(map(str, shape)) or "scalar"
        texts.append(f"{name}:{data.draw(st.sampled_from([format_shape(shape), as_trtexec]))}")
    assert parse_input_shapes(texts) == wanted
    if texts:
        assert parse_input_shapes([",".join(texts)]) == wanted


@given(st.text(alphabet="ab01x:[],-' ?", max_size=24))
def test_any_text_gives_positive_dimensions_or_an_input_error(text: str) -> None:
    try:
        parsed = parse_input_shapes([text])
    except InputError:
        return
    assert all(name and dim > 0 for name, shape in parsed.items() for dim in (1, *shape))
