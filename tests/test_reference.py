"""The oracle against ONNX Runtime: small graphs of standard operators, empty rows, Sq != Sk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.reference.attention import (
    attention,
    bigbird_keep,
    causal_keep,
    causal_window_keep,
    padding_keep,
    sliding_window_keep,
)

FLOAT_MIN = float(np.finfo(np.float32).min)
Array = NDArray[Any]


def run_attention_graph(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    *,
    is_guarded: bool = False,
    softcap: float = 0.0,
    sinks: Array | None = None,
) -> Array:
    """Run MatMul, Mul, Add or Where, Softmax, (IsNaN, Where,) MatMul in ONNX Runtime's fp32.

    ``mask`` is added to the scores. ``is_guarded`` writes 0 where a softmax gave NaN. ``softcap``
    and ``sinks`` are those of Gemma 2 and gpt-oss.
    """
    scale = np.float32(1.0 / math.sqrt(query.shape[-1]))
    bounds = ("start", "end", "axis")
    nodes = [
        helper.make_node("Transpose", ["key"], ["key_t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["query", "key_t"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["scores"]),
        helper.make_node("Div", ["scores", "cap"], ["ratio"]),
        helper.make_node("Tanh", ["ratio"], ["tanh"]),
        helper.make_node("Mul", ["tanh", "cap"], ["capped"]),
        helper.make_node("Add", ["capped" if softcap else "scores", "mask"], ["masked"]),
        helper.make_node("Concat", ["masked", "column"], ["joined"], axis=-1),
        helper.make_node("Softmax", ["joined"], ["softmax_and_sink"], axis=-1),
        helper.make_node("Slice", ["softmax_and_sink", *bounds], ["softmax"]),
        helper.make_node("IsNaN", ["softmax"], ["is_nan"]),
        helper.make_node("Where", ["is_nan", "zero", "softmax"], ["guarded"]),
        helper.make_node("MatMul", ["guarded" if is_guarded else "softmax", "value"], ["output"]),
    ]
    feeds = {"query": query, "key": key, "value": value, "mask": mask}
    shape = (*query.shape[:3], 0 if sinks is None else 1)
    column = np.broadcast_to(np.float32(0) if sinks is None else sinks[:, None, None], shape)
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in feeds.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array(scale), "scale"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
            numpy_helper.from_array(np.array(softcap, np.float32), "cap"),
            numpy_helper.from_array(np.ascontiguousarray(column, np.float32), "column"),
            *(
                numpy_helper.from_array(np.array([bound]), name)
                for name, bound in zip(bounds, (0, key.shape[2], 3), strict=True)
            ),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, feeds)[0])


def make_qkv(
    query_length: int, key_length: int, *, heads: int = 2, kv_heads: int = 2
) -> tuple[Array, Array, Array]:
    """Random fp32 arrays of batch 2 and head dim 8, with scores far from uniform."""
    rng = np.random.default_rng(query_length * 1000 + key_length)
    query = 2 * rng.standard_normal((2, heads, query_length, 8), np.float32)
    key = rng.standard_normal((2, kv_heads, key_length, 8), np.float32)
    value = rng.standard_normal((2, kv_heads, key_length, 8), np.float32)
    return query, key, value


def as_float_mask(keep: Array, fill: float) -> Array:
    return np.asarray(np.where(keep, np.float32(0), np.float32(fill)))


def keep_with_empty_rows(query_length: int, key_length: int) -> Array:
    """A causal mask, right-padded, whose query 3 sees nothing. [2, 1, Sq, Sk]."""
    causal = causal_keep(query_length, key_length)
    keep = causal & padding_keep([key_length, key_length - 2], key_length)
    keep[:, :, 3] = False
    return keep


LENGTHS = [(7, 7), (5, 9), (9, 5), (1, 13)]


@pytest.mark.parametrize(("query_length", "key_length"), LENGTHS)
def test_unmasked_attention_equals_onnxruntime(query_length: int, key_length: int) -> None:
    query, key, value = make_qkv(query_length, key_length)
    keep = np.ones((query_length, key_length), np.bool_)
    want = run_attention_graph(query, key, value, as_float_mask(keep, -np.inf))
    np.testing.assert_allclose(attention(query, key, value, keep), want, atol=1e-5)


@pytest.mark.parametrize(("query_length", "key_length"), LENGTHS)
def test_bias_is_added_to_the_scaled_scores(query_length: int, key_length: int) -> None:
    query, key, value = make_qkv(query_length, key_length)
    bias = np.random.default_rng(0).standard_normal((2, query_length, key_length), np.float32)
    keep = sliding_window_keep(query_length, key_length, window=key_length // 2)
    keep[:, 0] = True
    want = run_attention_graph(query, key, value, bias + as_float_mask(keep, -np.inf)[None])
    np.testing.assert_allclose(attention(query, key, value, keep, bias), want, atol=1e-5)


@pytest.mark.parametrize(("query_length", "key_length"), [(7, 7), (5, 9), (9, 5)])
@pytest.mark.parametrize(
    ("empty_row", "fill", "is_guarded"),
    [
        pytest.param("nan", -np.inf, False, id="nan"),
        pytest.param("zero", -np.inf, True, id="zero"),
        pytest.param("mean", FLOAT_MIN, True, id="mean"),
        # In fp32 the score survives in score + fill only where fill is small: its spacing at
        # -128 is 1.5e-5, and exp(-128) is small enough to be no key at all.
        pytest.param("softmax", -128.0, False, id="softmax"),
    ],
)
def test_empty_rows_equal_onnxruntime(
    query_length: int, key_length: int, empty_row: Any, fill: float, is_guarded: bool
) -> None:
    query, key, value = make_qkv(query_length, key_length)
    keep = keep_with_empty_rows(query_length, key_length)
    mask = as_float_mask(keep, fill)
    want = run_attention_graph(query, key, value, mask, is_guarded=is_guarded)
    got = attention(query, key, value, keep, empty_row=empty_row, fill=fill)
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_empty_rows_differ_between_modes() -> None:
    query, key, value = make_qkv(7, 7)
    keep = keep_with_empty_rows(7, 7)
    by_mode = {
        mode: attention(query, key, value, keep, empty_row=mode)
        for mode in ("nan", "zero", "mean", "softmax")
    }
    assert np.isnan(by_mode["nan"][:, :, 3]).all()
    assert not by_mode["zero"][:, :, 3].any()
    np.testing.assert_allclose(by_mode["mean"][:, :, 3], value.mean(2, dtype=np.float64))
    unmasked = attention(query, key, value, np.True_)
    np.testing.assert_array_equal(by_mode["softmax"][:, :, 3], unmasked[:, :, 3])
    rest = [row for row in range(7) if row != 3]
    for output in by_mode.values():
        np.testing.assert_array_equal(output[:, :, rest], by_mode["nan"][:, :, rest])


@pytest.mark.parametrize(("query_length", "key_length"), LENGTHS)
@pytest.mark.parametrize("softcap", [1.5, 4.0, 1000.0])
def test_softcap_is_applied_before_the_bias(
    query_length: int, key_length: int, softcap: float
) -> None:
    query, key, value = make_qkv(query_length, key_length)
    bias = np.random.default_rng(0).standard_normal((2, query_length, key_length), np.float32)
    keep = causal_keep(query_length, key_length)
    want = run_attention_graph(
        query, key, value, bias + as_float_mask(keep, -np.inf)[None], softcap=softcap
    )
    got = attention(query, key, value, keep, bias, softcap=softcap)
    np.testing.assert_allclose(got, want, atol=1e-5)


SINKS = np.float32([-1.5, 2.5])


@pytest.mark.parametrize(("query_length", "key_length"), LENGTHS)
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_sinks_join_the_softmax(query_length: int, key_length: int, softcap: float) -> None:
    query, key, value = make_qkv(query_length, key_length)
    keep = padding_keep([key_length, max(key_length - 3, 1)], key_length)
    mask = as_float_mask(keep, -np.inf)
    want = run_attention_graph(query, key, value, mask, softcap=softcap, sinks=SINKS)
    got = attention(query, key, value, keep, softcap=softcap, sinks=SINKS)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not np.allclose(attention(query, key, value, keep, softcap=softcap), want, atol=1e-2)


@pytest.mark.parametrize(
    ("empty_row", "fill", "sinks", "is_zero"),
    [
        ("nan", -np.inf, SINKS, True),
        ("zero", -np.inf, SINKS, True),
        ("mean", FLOAT_MIN, SINKS, True),
        ("softmax", -128.0, SINKS, True),
        # Sinks as low as the fill.
        ("mean", FLOAT_MIN, np.float32([FLOAT_MIN, FLOAT_MIN]), False),
        ("softmax", -128.0, SINKS - 128, False),
    ],
)
def test_rows_without_keys_give_their_weight_to_the_sink(
    empty_row: Any, fill: float, sinks: Array, is_zero: bool
) -> None:
    query, key, value = make_qkv(7, 9)
    keep = keep_with_empty_rows(7, 9)
    want = run_attention_graph(query, key, value, as_float_mask(keep, fill), sinks=sinks)
    got = attention(query, key, value, keep, empty_row=empty_row, fill=fill, sinks=sinks)
    np.testing.assert_allclose(got, want, atol=2e-4)
    assert np.allclose(got[:, :, 3], 0, atol=1e-20) == is_zero


def test_sinks_of_minus_infinity_are_none() -> None:
    query, key, value = make_qkv(7, 9)
    keep = keep_with_empty_rows(7, 9)
    for empty_row in ("nan", "zero", "mean", "softmax"):
        want = attention(query, key, value, keep, empty_row=empty_row)
        got = attention(query, key, value, keep, empty_row=empty_row, sinks=[-np.inf, -np.inf])
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 1)])
def test_sinks_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    query, key, value = make_qkv(2, 2)
    with pytest.raises(ValueError, match="one for each query head"):
        attention(query, key, value, np.True_, sinks=np.zeros(shape))


def mask_added_twice(keep: Array, again: Array, fill: float) -> Array:
    """Fill and fill, in float32, as [1, 1, Sq, Sk]."""
    once = np.where(keep, 0, np.float32(fill)).astype(np.float32)
    with np.errstate(over="ignore"):
        return (once + np.where(~keep & again, np.float32(fill), np.float32(0)))[None, None]


@pytest.mark.parametrize("sinks", [None, SINKS, np.float32([FLOAT_MIN, -np.inf])], ids=str)
@pytest.mark.parametrize("is_guarded", [False, True])
@pytest.mark.parametrize(
    ("empty_row", "fill", "fill_twice"),
    [("mean", FLOAT_MIN, -np.inf), ("softmax", -1000.0, -2000.0), ("softmax", -4.0, -8.0)],
)
def test_keys_hidden_twice(
    empty_row: Any, fill: float, fill_twice: float, *, is_guarded: bool, sinks: Array | None
) -> None:
    query, key, value = make_qkv(7, 9)
    keep = causal_keep(7, 9, query_offset=-4)  # rows 0 to 3 see nothing
    again = np.random.default_rng(3).random((7, 9)) < 0.5
    again[0], again[1] = True, False
    mask = mask_added_twice(keep, again, fill)
    want = run_attention_graph(query, key, value, mask, is_guarded=is_guarded, sinks=sinks)
    got = attention(
        query,
        key,
        value,
        keep,
        empty_row=empty_row,
        fill=fill,
        sinks=sinks,
        again=again,
        fill_twice=fill_twice,
        nan_to_zero=is_guarded,
    )
    np.testing.assert_allclose(got, want, atol=2e-4)
    # Row 0 is hidden twice as a whole, row 1 once.
    alone = sinks is None and np.isinf(fill_twice)
    assert np.isnan(got[:, :, 0]).all() == (alone and not is_guarded)
    if alone:
        np.testing.assert_allclose(got[:, :, 1], value.mean(axis=2), rtol=1e-5)
        once = value[:, :, ~again[2]].mean(axis=2)
        np.testing.assert_allclose(got[:, :, 2], once, rtol=1e-5)


def test_what_is_hidden_once_and_for_all_changes_nothing() -> None:
    query, key, value = make_qkv(7, 9)
    keep = keep_with_empty_rows(7, 9)
    for empty_row in ("nan", "zero", "mean", "softmax"):
        want = attention(query, key, value, keep, empty_row=empty_row, fill=FLOAT_MIN)
        # Of kept keys it means nothing.
        got = attention(
            query, key, value, keep, empty_row=empty_row, fill=FLOAT_MIN, again=keep, fill_twice=-9
        )
        np.testing.assert_array_equal(got, want)


def test_small_fill_lets_other_keys_through() -> None:
    query, key, value = make_qkv(6, 6)
    keep = causal_keep(6, 6)
    want = run_attention_graph(query, key, value, as_float_mask(keep, -2.0)[None, None])
    np.testing.assert_allclose(attention(query, key, value, keep, fill=-2.0), want, atol=1e-5)
    assert not np.allclose(attention(query, key, value, keep), want, atol=1e-2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
def test_grouped_queries_share_consecutive_heads(heads: int, kv_heads: int) -> None:
    query, key, value = make_qkv(5, 9, heads=heads, kv_heads=kv_heads)
    keep = padding_keep([9, 4], 9)
    each_key, each_value = (np.repeat(x, heads // kv_heads, axis=1) for x in (key, value))
    want = run_attention_graph(query, each_key, each_value, as_float_mask(keep, -np.inf))
    np.testing.assert_allclose(attention(query, key, value, keep), want, atol=1e-5)


def test_scale_replaces_the_default() -> None:
    query, key, value = make_qkv(5, 9)
    want = attention(2 * query, key, value, np.True_)
    got = attention(query, key, value, np.True_, scale=2 / math.sqrt(8))
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    ("key_shape", "message"),
    [
        ((2, 2, 9), "each must be"),
        ((2, 2, 9, 7), "head dim differ"),
        ((2, 3, 9, 8), "multiple of key/value heads"),
    ],
)
def test_wrong_shapes_are_refused(key_shape: tuple[int, ...], message: str) -> None:
    query = np.zeros((2, 4, 5, 8))
    with pytest.raises(ValueError, match=message):
        attention(query, np.zeros(key_shape), np.zeros(key_shape), np.True_)


def test_unknown_empty_row_is_refused() -> None:
    query, key, value = make_qkv(2, 2)
    with pytest.raises(ValueError, match='use "nan"'):
        attention(query, key, value, np.False_, empty_row="none")  # type: ignore[arg-type]


def as_picture(keep: Array) -> list[str]:
    return ["".join("x" if kept else "." for kept in row) for row in keep]


def test_masks_look_as_drawn() -> None:
    assert as_picture(causal_keep(3, 5)) == ["x....", "xx...", "xxx.."]
    assert as_picture(causal_keep(3, 5, query_offset=2)) == ["xxx..", "xxxx.", "xxxxx"]
    assert as_picture(causal_keep(3, 2, query_offset=-1)) == ["..", "x.", "xx"]
    assert as_picture(sliding_window_keep(4, 5, window=1)) == ["xx...", "xxx..", ".xxx.", "..xxx"]
    assert as_picture(sliding_window_keep(2, 5, window=1, query_offset=3)) == ["..xxx", "...xx"]
    assert as_picture(causal_window_keep(4, 4, window=2)) == ["x...", "xx..", ".xx.", "..xx"]
    assert as_picture(causal_window_keep(2, 4, window=1, query_offset=2)) == ["..x.", "...x"]
    assert as_picture(padding_keep([2, 0], 3)[:, 0, 0]) == ["xx.", "..."]
    assert as_picture(padding_keep([2, 0], 3, side="left")[:, 0, 0]) == [".xx", "..."]


def test_bigbird_joins_window_globals_and_random_blocks() -> None:
    random_blocks = np.zeros((3, 3), np.bool_)
    random_blocks[1, 2] = True
    keep = bigbird_keep(6, 5, window=0, global_tokens=1, block=2, random_blocks=random_blocks)
    assert as_picture(keep) == ["xxxxx", "xx...", "x.x.x", "x..xx", "x...x", "x...."]
