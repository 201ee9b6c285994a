"""Ways to write attention that fuse, each beside near misses that must not."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper

from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import InputError
from stof_onnx.rewriter.attention import match
from stof_onnx.rewriter.attention.axes import split_axes
from stof_onnx.rewriter.rewrite import FusedBlock, RefusedBlock, rewrite
from tests.rewriter.graphs import TYPES, Attention, Graph, Value, add_block, build
from tests.rewriter.mask_terms import Bias, Mask, Term
from tests.rewriter.running import (
    DEFAULT_SIZES,
    assert_close,
    check_attention,
    check_graph,
    feeds_of,
    fused,
    refusals,
    run,
)

LOWEST = float(np.finfo(np.float32).min)
PADDING = Mask((Term("padding"),))
CAUSAL = Mask((Term("causal"),))
CAUSAL_AT_END = Mask((Term("causal", style="end"),))


def form(name: str, kind: str = "none", **fields):
    return pytest.param(Attention(**fields), kind, id=name)


def mul(*factor: float):
    """Multiply by a constant that broadcasts."""
    return lambda g, x: g.op("Mul", x, g.const(np.reshape(factor, (-1,)) if factor[1:] else factor))


def apply(op_type: str, **attributes):
    return lambda g, x: g.op(op_type, x, **attributes)


def into(dtype: str):
    return lambda g, x: g.cast(x, dtype)


def through(dtype: str):
    return lambda g, x: g.cast(g.cast(x, dtype), "float32")


def use(g: Graph, value: Value, op_type: str = "ReduceMax") -> Value:
    """Make something else read a tensor."""
    attributes = {"keepdims": 0} if op_type == "ReduceMax" else {}
    dims, dtype = ([4], "int64") if op_type == "Shape" else ([], "float32")
    g.output(g.op(op_type, value, **attributes), dims, dtype, "extra")
    return value


SELF = object()


def binary(op_type: str, left: object, right: object):
    """An operator on the tensor and a number, or on the tensor and itself."""

    def hook(g: Graph, x: Value) -> Value:
        return g.op(op_type, *(x if side is SELF else g.const(side) for side in (left, right)))

    return hook


def written(fill: float) -> tuple[Mask, ...]:
    return (Mask((Term("padding"),), "keep", fill),)


def add_second_product(g: Graph, scores: Value) -> Value:
    left = g.input("left", ["batch", 2, "sequence", 4], "float32")
    right = g.input("right", ["batch", 2, 4, "sequence"], "float32")
    return g.op("Add", scores, g.op("MatMul", left, right))


def times_keys(g: Graph, scores: Value) -> Value:
    keys = g.input("factors", ["batch", "sequence"], "float32")
    return g.op("Mul", scores, g.unsqueeze(keys, 1, 2))


def filled_from_a_tensor(g: Graph, scores: Value) -> Value:
    keep = g.input("keep", ["batch", 1, 1, "sequence"], "bool", "padding")
    fill = g.input("fill", ["batch", 1, 1, "sequence"], "float32")
    return g.op("Where", keep, scores, fill)


def masked_by_itself(g: Graph, scores: Value) -> Value:
    positive = g.op("Greater", scores, g.const(0.0))
    return g.op("Where", positive, scores, g.const(-math.inf))


def softcap(g: Graph, scores: Value) -> Value:
    return g.op("Mul", g.op("Tanh", g.op("Mul", scores, g.const(0.1))), g.const(10.0))


def with_sinks(*dims: object):
    """Sinks that arrive at run time, [*dims] behind the scores."""

    def hook(g: Graph, scores: Value) -> Value:
        sinks = g.input("sinks", list(dims), "float32")
        shape = g.op(
            "Concat", *(g.dim(scores, axis) for axis in range(3)), g.ints(dims[-1]), axis=0
        )
        return g.op("Concat", scores, g.op("Expand", sinks, shape), axis=-1)

    return hook


def constant_sinks(g: Graph, scores: Value) -> Value:
    """One for each of two heads."""
    shape = g.op("Concat", g.dim(scores, 0), g.ints(1), g.dim(scores, 2), g.ints(1), axis=0)
    sinks = g.const([[[0.5]], [[-1.5]]])
    return g.op("Concat", scores, g.op("Expand", sinks, shape), axis=-1)


def subtracted_padding(g: Graph, scores: Value) -> Value:
    """scores - (1 - padding) * 1e30"""
    padding = g.unsqueeze(g.input("padding", ["batch", "sequence"], "int64", "padding"), 1, 2)
    dropped = g.op("Sub", g.const(1.0), g.cast(padding, "float32"))
    return g.op("Sub", scores, g.op("Mul", dropped, g.const(1e30)))


def added_padding(fill: float):
    """Where(padding, 0, fill) added."""

    def hook(g: Graph, scores: Value) -> Value:
        keep = g.unsqueeze(g.input("padding", ["batch", "sequence"], "bool", "padding"), 1, 2)
        return g.op("Add", scores, g.op("Where", keep, g.const(0.0), g.const(fill)))

    return hook


def shifted(axis: int):
    """Less the maximum over an axis."""

    def hook(g: Graph, x: Value) -> Value:
        return g.op("Sub", x, g.op("ReduceMax", x, g.ints(axis), keepdims=1))

    return hook


def then(*hooks):
    """One hook after the other."""

    def hook(g: Graph, x: Value) -> Value:
        for each in hooks:
            x = each(g, x)
        return x

    return hook


def with_sink(g: Graph, scores: Value) -> Value:
    column = g.slice(scores, -1, 0, 1)
    sink = g.op("Add", g.op("Mul", column, g.const(0.0)), g.const(0.3))
    return g.op("Concat", scores, sink, axis=-1)


def guard_with(value: float):
    return lambda g, x: g.op("Where", g.op("IsNaN", x), g.const(value), x)


def cast_guard(to: str):
    """A guard whose condition is cast."""

    def hook(g: Graph, x: Value) -> Value:
        is_nan = g.cast(g.cast(g.op("IsNaN", x), to), "bool")
        return g.op("Where", is_nan, g.const(0.0), x)

    return hook


def limited_by_itself(g: Graph, scores: Value) -> Value:
    return g.op("Max", scores, g.op("Mul", scores, g.const(0.5)))


def pick(axis: int, *indices: int):
    return lambda g, x: g.op("Gather", x, g.ints(*indices), axis=axis)


def cut(axis: int, start: int, end: int = 2**62):
    return lambda g, x: g.slice(x, axis, start, end)


def train_dropout(g: Graph, weights: Value) -> Value:
    return g.op("Dropout", weights, g.const(0.5), g.const(True, "bool"))


def merge_heads(g: Graph, scores: Value) -> Value:
    return g.reshape(scores, -1, g.dim(scores, 2), g.dim(scores, 3))


def split_heads(g: Graph, weights: Value) -> Value:
    return g.reshape(weights, -1, 2, g.dim(weights, 1), g.dim(weights, 2))


FORMS = [
    # where query, key and value come from
    form("separate projections"),
    form("packed, split", packing="split"),
    form("packed, sliced", packing="slice"),
    form("packed, gathered from five axes", packing="gather"),
    form("packed by head", packing="interleaved"),
    form("no projections", packing="inputs"),
    form("another sequence for keys", keys="memory"),
    form("key transposed after its heads", key_path="late"),
    form("key transposed in three axes", key_path="flat"),
    form("value of another head dim", value_dim=6),
    form("grouped heads", heads=4, kv_heads=2),
    form("grouped heads, key in three axes", heads=4, kv_heads=2, key_path="flat"),
    form("grouped heads the other way round", heads=4, kv_heads=2, repeat="tile"),
    form("one key head", heads=4, kv_heads=1),
    form("one head", heads=1, kv_heads=1),
    form("head dim of one", head_dim=1),
    form("one query", queries=1, keys="memory"),
    form("cached keys", "causal", past="past", masks=(CAUSAL_AT_END,)),
    form("cached keys, three axes", "causal", past="past", key_path="flat", masks=(CAUSAL_AT_END,)),
    form("cached keys, grouped", past="past", heads=4, kv_heads=2),
    form("static", "causal", batch=2, queries=5, masks=(CAUSAL,)),
    form("static, batch of one", "padding", batch=1, queries=5, keys=9, masks=(PADDING,)),
    form("dynamic batch alone", "causal", queries=6, masks=(CAUSAL,)),
    # the scale
    form("not scaled", scale="none"),
    form("key scaled", scale="key"),
    form("both scaled", scale="both"),
    form("scores multiplied", scale="mul"),
    form("scores divided", scale="div"),
    form("scale computed from the shape", scale="runtime"),
    # masks: more in test_masks
    form("added mask", "padding", masks=(PADDING,)),
    form("written mask", "padding", masks=(Mask((Term("padding"),), "keep"),)),
    form("written mask, the other way", "padding", masks=(Mask((Term("padding"),), "drop"),)),
    form("NaN guard", "padding", masks=(Mask((Term("padding"),), "add", -math.inf),), guard=True),
    form("bias", "bias", masks=(Bias("input"),)),
    form("masked, then scaled", "padding", masks=(PADDING,), hooks={"masked": mul(0.5)}),
    form("masked, then scaled by one", "padding", masks=(PADDING,), hooks={"masked": mul(1.0)}),
    form("written, then scaled", "padding", masks=(Mask((Term("padding"),), "keep"),),
         hooks={"masked": mul(0.5)}),
    form("a number subtracted", "bias", hooks={"scores": binary("Sub", SELF, 1.0)}),
    form("mask subtracted", "padding", hooks={"scores": subtracted_padding}),
    form("bias, then scaled", "bias", masks=(Bias("input"),), hooks={"masked": mul(0.5)}),
    form("limited from below", "padding", masks=(PADDING,),
         hooks={"masked": binary("Max", SELF, -1e30)}),
    form("two masks, limited from below", "causal+padding", masks=(CAUSAL, PADDING),
         hooks={"masked": binary("Max", SELF, LOWEST)}),
    form("written, then added", "causal+padding",
         masks=(Mask((Term("causal"),), "keep", LOWEST), PADDING)),
    form("two masks added", "causal+padding", masks=(CAUSAL, PADDING)),
    form("softcap", hooks={"scores": softcap}),
    form("softcap, then masked", "causal", masks=(CAUSAL,), hooks={"scores": softcap}),
    form("sinks", "causal", masks=(CAUSAL,),
         hooks={"masked": constant_sinks, "weights": cut(-1, 0, -1)}),
    form("sinks, maximum subtracted", "causal", masks=(CAUSAL,), opset=18,
         hooks={"masked": then(constant_sinks, shifted(-1)), "weights": cut(-1, 0, -1)}),
    form("maximum subtracted", "causal", masks=(CAUSAL,), opset=18, hooks={"masked": shifted(-1)}),
    # where the scores' axes are
    form("heads merged into the batch", hooks={"masked": merge_heads, "weights": split_heads}),
    form("heads merged, masked", "causal+padding", masks=(Mask((Term("causal"), Term("padding"))),),
         hooks={"masked": merge_heads, "weights": split_heads}),
    form("scores transposed twice", "padding", masks=(PADDING,), hooks={"scores": then(
        lambda g, x: g.transpose(x, 0, 1, 3, 2), lambda g, x: g.transpose(x, 0, 1, 3, 2))}),
    form("scores transposed", keys="memory", queries="memory",
         hooks={"scores": lambda g, x: g.transpose(x, 0, 1, 3, 2)}),
    # operands that only a Transpose or Reshape brings into order
    form("batches of key swapped", batch=2, hooks={"key": pick(0, 1, 0)}),
    form("heads of key swapped", hooks={"key": pick(1, 1, 0)}),
    form("value multiplied", hooks={"value": mul(0.5)}),
    form("keys in reverse order", hooks={"key": lambda g, x: g.op(
        "Slice", x, g.ints(-1), g.ints(-(2**62)), g.ints(3), g.ints(-1))}),
    form("first key left out", keys="memory", hooks={"key": cut(3, 1), "value": cut(2, 1)}),
    # around the softmax
    form("last axis by its number", axis=3),
    form("NaN guard through a Cast", hooks={"weights": cast_guard("bool")}),
    form("dropout of scores", hooks={"scores": apply("Dropout")}),
    form("dropout", hooks={"weights": apply("Dropout")}),
    form("identities", hooks={"scores": apply("Identity"), "weights": apply("Identity")}),
    form("half", "padding", dtype="float16", masks=(PADDING,), guard=True),
    form("half, softmax in float", "padding", dtype="float16", masks=(PADDING,),
         softmax_dtype="float32", guard=True),
    # the output
    form("heads not merged", output="heads"),
    form("heads moved back", output="rows"),
    form("merged by a computed shape", output="merged_by_shape"),
    form("merged to two axes", output="flat"),
    form("heads not merged, last node", output="heads", projected=False),
    form("merged, last node", projected=False),
    form("context used twice", hooks={"context": use}),
]  # fmt: skip


@pytest.mark.parametrize(("attention", "kind"), FORMS)
def test_a_form_is_fused_and_computes_the_same(attention, kind):
    block = check_attention(attention)
    assert block.kind.name == kind
    assert block.attributes.num_heads == attention.heads
    assert block.attributes.head_dim == attention.head_dim
    assert block.attributes.value_head_dim == attention.out_dim


@pytest.mark.parametrize("opset", range(13, 24))
def test_every_supported_opset(opset):
    masks = (Mask((Term("causal"), Term("padding"))),)
    check_attention(Attention(opset=opset, masks=masks, guard=True, packing="split"))


def test_repeated_key_heads_are_read_once():
    block = check_attention(Attention(heads=4, kv_heads=2))
    assert block.attributes.kv_num_heads == 2
    assert (block.attributes.key.order, block.attributes.value.order) == ("BSHD", "BSHD")


def test_heads_repeated_the_other_way_round_are_read_as_they_are():
    # Query head h would read key head h % 2, which a stof node can't say.
    block = check_attention(Attention(heads=4, kv_heads=2, repeat="tile"))
    assert block.attributes.kv_num_heads == 4


def test_packed_projections_are_read_in_place():
    offsets = {"split": [0, 8, 16], "gather": [0, 8, 16], "interleaved": [0, 4, 8]}
    for packing, expected in offsets.items():
        node = check_attention(Attention(packing=packing)).attributes
        assert [x.offset for x in (node.query, node.key, node.value)] == expected
        strides = {x.head_stride for x in (node.query, node.key, node.value)}
        assert strides == {12 if packing == "interleaved" else 4}


@pytest.mark.parametrize("scale", ["none", "query", "key", "both", "mul", "div", "runtime"])
def test_factors_end_up_in_one_scale(scale):
    attributes = check_attention(Attention(scale=scale)).attributes
    assert attributes.scale == pytest.approx(1.0 if scale == "none" else 0.5)


def test_two_blocks_in_one_graph():
    g = Graph()
    add_block(g, Attention(masks=(PADDING,)), "first")
    add_block(g, Attention(masks=(CAUSAL,)), "second")
    done = check_graph(g, 1e-5)
    assert [block.kind.name for block in done.blocks] == ["padding", "causal"]


# ------------------------------------------------------------------------------------- near misses


def miss(name: str, node: str, reason: str, **fields):
    """``node``: operator of the node that must be named; ``reason``: a pattern."""
    return pytest.param(Attention(**fields), node, reason, id=name)


NEAR_MISSES = [
    miss("softmax over queries", "Softmax", "axis -2", axis=-2),
    miss("softmax over heads", "Softmax", "axis 1", axis=1),
    miss("weights read twice", "Softmax", "used by ReduceMax", hooks={"weights": use}),
    miss("scores read twice", "Softmax", "used elsewhere", hooks={"scores": use}),
    miss("masked scores read twice", "Softmax", "used elsewhere", masks=(PADDING,),
         hooks={"masked": use}),
    miss("a factor for each head", "Mul", "not one finite number",
         hooks={"scores": lambda g, x: g.op("Mul", x, g.const([[[0.5]], [[0.25]]]))}),
    miss("a factor for each key", "Mul", "not one finite number", hooks={"scores": times_keys}),
    miss("scores squared", "Mul", "not one finite number",
         hooks={"scores": binary("Mul", SELF, SELF)}),
    miss("a number divided by the scores", "Div", "not one finite number",
         hooks={"scores": binary("Div", 1.0, SELF)}),
    miss("shape of the scores needed", "Softmax", "needed elsewhere",
         hooks={"scores": lambda g, x: use(g, x, "Shape")}),
    miss("scaled by zero", "Mul", "", hooks={"scores": mul(0.0)}),
    miss("scaled by infinity", "Mul", "", hooks={"scores": mul(math.inf)}),
    miss("scaled by NaN", "Mul", "", hooks={"scores": mul(math.nan)}),
    miss("divided by zero", "Div", "", hooks={"scores": binary("Div", SELF, 0.0)}),
    miss("masked after the softmax", "Softmax", "used by Mul", hooks={"weights": times_keys}),
    miss("two products added", "Add", "two products", hooks={"scores": add_second_product}),
    miss("subtracted from a number", "Sub", "depends on the scores",
         hooks={"scores": binary("Sub", 1.0, SELF)}),
    miss("negated", "Neg", "Neg", hooks={"scores": apply("Neg")}),
    miss("limited by a number that scores reach", "Max", "from below by -5", masks=(PADDING,),
         hooks={"masked": binary("Max", SELF, -5.0)}),
    miss("limited by the scores", "Max", "not one number", hooks={"scores": limited_by_itself}),
    miss("limited before a bias", "Max", "limited from below", masks=(PADDING, Bias("input")),
         hooks={"masked": binary("Max", SELF, -1e30)}),
    miss("masked by a small number after the shift", "Add", "less their maximum", opset=18,
         hooks={"scores": then(shifted(-1), added_padding(-1e8))}),
    miss("scores show through the floor", "Max", "limited from below", dtype="float16",
         masks=(PADDING,), hooks={"masked": lambda g, x: g.op(
             "Max", x, g.const(-65504.0, "float16"))}),
    miss("limited from above", "Min", "Min", hooks={"scores": binary("Min", SELF, 1e30)}),
    miss("sinks made of the scores", "Concat", "used elsewhere",
         hooks={"masked": with_sink, "weights": cut(-1, 0, -1)}),
    miss("sinks for each query", "Concat", "more than the head",
         hooks={"masked": with_sinks("batch", 2, "sequence", 1), "weights": cut(-1, 0, -1)}),
    miss("sinks kept", "Softmax", "not cut off", keys="memory",
         hooks={"masked": with_sinks(1, 2, 1, 1), "weights": cut(-1, 1)}),
    miss("two columns of sinks", "Concat", "more than one column",
         hooks={"masked": with_sinks(1, 2, 1, 2), "weights": cut(-1, 0, -2)}),
    miss("capped twice", "Tanh", "capped twice",
         hooks={"scores": lambda g, x: softcap(g, softcap(g, x))}),
    miss("capped at a negative number", "Tanh", "capped at -10",
         hooks={"scores": lambda g, x: g.op("Mul", softcap(g, x), g.const(-1.0))}),
    miss("masked before the cap", "Add", "before they are capped", masks=(PADDING,),
         hooks={"masked": softcap}),
    miss("another maximum subtracted", "Sub", "used elsewhere",
         opset=18, hooks={"scores": shifted(-2)}),
    miss("weights transposed", "Softmax", "summed over another",
         hooks={"weights": lambda g, x: g.transpose(x, 0, 1, 3, 2)}),
    miss("weights through another function", "Softmax", "used by Relu",
         hooks={"weights": apply("Relu")}),
    miss("dropout in training", "Dropout", "Dropout", hooks={"weights": train_dropout}),
    miss("guard through another type", "Softmax", "IsNaN", hooks={"weights": cast_guard("int32")}),
    miss("NaN becomes one", "Softmax", "IsNaN", hooks={"weights": guard_with(1.0)}),
    miss("filled with -1e4", "Where", "hides nothing", masks=written(-1e4)),
    miss("filled with 0", "Where", "hides nothing", masks=written(0.0)),
    miss("filled with infinity", "Where", "hides nothing", masks=written(math.inf)),
    miss("filled from a tensor", "Where", "one number", hooks={"scores": filled_from_a_tensor}),
    miss("masked by its own scores", "Where", "used elsewhere", hooks={"scores": masked_by_itself}),
    miss("written with two numbers", "Where", "overwritten by",
         masks=(Mask((Term("causal"),), "keep", -1e9), Mask((Term("padding"),), "keep", -1e30))),
    miss("a bias added to written scores", "Add", "added after",
         masks=(Mask((Term("causal"),), "keep"), Bias("input"))),
    # operands that don't belong together
    miss("key of another batch", "MatMul", "", keys="memory", key_batch="other"),
    miss("key of one batch for all", "MatMul", "", keys="memory", batch=2, key_batch=1),
    miss("first batch of key", "MatMul", "layout of key", hooks={"key": cut(0, 0, 1)}),
    miss("one key head, two value heads", "MatMul", "heads", hooks={"key": cut(1, 0, 1)}),
    # types in between
    miss("scores rounded to integers", "Cast", "cast", hooks={"scores": through("int32")}),
    miss("weights rounded to half", "Cast", "Cast", hooks={"weights": through("float16")}),
    miss("weights rounded to integers", "Cast", "Cast", hooks={"weights": through("int32")}),
]  # fmt: skip


@pytest.mark.parametrize(("attention", "op_type", "reason"), NEAR_MISSES)
def test_a_near_miss_is_refused_with_the_node_and_the_reason(attention, op_type, reason):
    model = build(attention).model()
    (text,) = refusals(model)
    assert reason in text
    named = [node.op_type for node in model.graph.node if repr(node.name) in text]
    assert op_type in named, text
    assert rewrite(model).model is model


def test_heads_may_be_seen_as_a_part_of_the_batch(monkeypatch):
    # Not the first way to see the scores, but a right one.
    def batch_alone(shape, key_axis, hints=()):
        yield from (found for found in split_axes(shape, key_axis, hints) if found.heads == 1)

    monkeypatch.setattr(match, "split_axes", batch_alone)
    for attention in (Attention(), Attention(key_path="flat", packing="split")):
        assert check_attention(attention).attributes.num_heads == 1


@pytest.mark.parametrize(
    ("scores", "weights", "output"),
    [
        ("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "bqhd"),
        ("bqhd,bkhd->bqhk", "bqhk,bkhd->bqhd", "bqhd"),
        ("bqhd,bkhd->hbqk", "hbqk,bkhd->bhqd", "bhqd"),
        ("bqhd,bkhd->bhqk", "bhqk,bkhd->qbhd", "qbhd"),
        ("bqhd,bkhd->bhqk", "bhqk,bkhd->bhdq", "bhdq"),
        ("bkhd,bqhd->bhqk", "bkhd,bhqk->bqhd", "bqhd"),
    ],
)
def test_einsums_with_labels_in_any_order(scores, weights, output):
    g = Graph()
    dims = {"b": "batch", "q": "sequence", "k": "memory", "h": 2, "d": 4}
    at = {name: [dims[c] for c in labels] for name, labels in (("q", "bqhd"), ("k", "bkhd"))}
    query, key, value = (
        g.input(name, at["q" if name == "query" else "k"], "float32")
        for name in ("query", "key", "value")
    )
    swapped = scores.startswith("bk")
    product = g.op("Einsum", *((key, query) if swapped else (query, key)), equation=scores)
    softmax = g.op("Softmax", product, axis=-1)
    operands = (value, softmax) if swapped else (softmax, value)
    result = g.op("Einsum", *operands, equation=weights)
    g.output(result, [dims[c] for c in output], "float32", "output")
    (block,) = check_graph(g, 1e-5).blocks
    assert isinstance(block, FusedBlock), block.reason
    assert (block.attributes.num_heads, block.attributes.head_dim) == (2, 4)


def test_the_first_query_alone_is_not_all_queries():
    # A class token's attention: Sq is 1, but the projection holds every token.
    check_attention(Attention(queries="sequence", output="heads", hooks={"query": cut(2, 0, 1)}))


def test_the_first_sequence_of_a_batch_is_not_the_batch():
    first = {"key": cut(0, 0, 1), "value": cut(0, 0, 1)}
    g = build(Attention(batch=1, keys="memory", key_batch="other", hooks=first))
    check_graph(g, 1e-5, [{**size, "other": 3} for size in DEFAULT_SIZES])


def test_operands_of_different_types_keep_the_type_of_the_output():
    # Scores in float32 from half-precision tensors, weights cast back for value.
    casts = {"query": into("float32"), "key": into("float32"), "weights": into("float16")}
    done = check_graph(build(Attention(dtype="float16", hooks=casts)), 2e-3)
    declared = {v.name: v.type.tensor_type.elem_type for v in done.model.graph.value_info}
    for node in done.model.graph.node:
        if node.domain == "stof":
            assert declared[node.output[0]] == TYPES["float16"]


@pytest.mark.parametrize(
    "operation",
    [
        lambda g, x: g.op("Add", x, g.const(0.5)),
        lambda g, x: g.op("Mul", x, g.const([0.5, 0.25, 0.5, 1.0])),
        lambda g, x: g.op("Mul", x, g.weight(2, 1, 4)),
        lambda g, x: g.op("Mul", x, g.weight(1, 2, 1, 4)),
        lambda g, x: g.op("Add", g.op("Mul", x, g.const(0.5)), g.op("Neg", x)),
        lambda g, x: g.op("Concat", g.slice(x, 3, 2, 4), g.slice(x, 3, 0, 2), axis=-1),
        lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)),
        lambda g, x: g.op("LayerNormalization", x, g.weight(4)),
    ],
    ids=["shift", "channel", "head", "head4", "sum", "rotated", "gated", "norm"],
)
@pytest.mark.parametrize("station", ["query", "value"])
def test_an_operation_between_projection_and_product_is_computed(station, operation):
    # Norms, rotary embedding and the like; where possible, before the heads are moved.
    check_attention(Attention(opset=18, scale="none", hooks={station: operation}))


def test_scores_in_half_and_values_in_float():
    casts = {"value": into("float32"), "scores": into("float32"), "context": into("float16")}
    done = check_graph(build(Attention(dtype="float16", scale="none", hooks=casts)), 5e-3)
    (block,) = done.blocks
    assert isinstance(block, FusedBlock), block.reason
    assert block.attributes.dtype == "float32"


def test_the_heads_are_moved_below_elementwise_operations():
    shift = {"query": lambda g, x: g.op("Add", x, g.const(0.5))}
    g = build(Attention(key_path="late", hooks=shift))
    transposes = [n for n in check_graph(g, 1e-5).model.graph.node if n.op_type == "Transpose"]
    assert not transposes


# ----------------------------------------------------------------------------- the model around it


def test_scores_read_in_a_subgraph_are_read_twice():
    def hook(g: Graph, scores: Value) -> Value:
        branches = {}
        for branch, op_type in (("then_branch", "ReduceMax"), ("else_branch", "ReduceMin")):
            node = helper.make_node(op_type, [scores], [branch], keepdims=0)
            info = helper.make_tensor_value_info(branch, TYPES["float32"], [])
            branches[branch] = helper.make_graph([node], branch, [], [info])
        g.output(g.op("If", g.const(True, "bool"), **branches), [], "float32", "extra")
        return scores

    (reason,) = refusals(build(Attention(hooks={"scores": hook})).model())
    assert "used elsewhere" in reason


def test_model_local_functions_survive():
    g = build(Attention(masks=(PADDING,)))
    model = g.model()
    body = [helper.make_node("Add", ["x", "x"], ["y"])]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("local", "Twice", ["x"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    last = model.graph.node[-1]
    twice = helper.make_node("Twice", [last.input[0]], ["doubled"], domain="local")
    model.graph.node.insert(len(model.graph.node) - 1, twice)
    model.graph.node[-1].input[0] = "doubled"
    done = rewrite(model)
    onnx.checker.check_model(done.model)
    assert [f.name for f in done.model.functions] == ["Twice"]


def function_of(model: onnx.ModelProto, name: str) -> onnx.FunctionProto:
    """The whole graph of a model as a function; weights become Constant nodes."""
    graph = model.graph
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in graph.initializer
    ]
    return helper.make_function(
        "local",
        name,
        [value.name for value in graph.input],
        [value.name for value in graph.output],
        [*constants, *graph.node],
        [entry for entry in model.opset_import if not entry.domain],
    )


@pytest.mark.parametrize("depth", [1, 2])
def test_attention_in_a_function_is_fused_where_it_is_called(depth):
    inner = build(Attention(masks=(PADDING,))).model()
    inputs = [value.name for value in inner.graph.input]
    functions = [function_of(inner, "F0")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    for level in range(1, depth):
        call = helper.make_node(f"F{level - 1}", inputs, ["output"], domain="local")
        functions.append(
            helper.make_function("local", f"F{level}", inputs, ["output"], [call], opsets)
        )
    call = helper.make_node(f"F{depth - 1}", inputs, ["output"], domain="local", name="call")
    graph = helper.make_graph([call], "graph", inner.graph.input, inner.graph.output)
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    before = model.SerializeToString()
    done = rewrite(model)
    assert model.SerializeToString() == before
    assert not done.model.functions
    (block,) = done.blocks
    assert isinstance(block, FusedBlock), block.reason
    g = build(Attention(masks=(PADDING,)))
    sizes = {"batch": 2, "sequence": 7}
    for feeds in feeds_of(g.inputs.values(), sizes):
        assert_close(run(inner, feeds), run(expand_model(done.model), feeds), 1e-5)


def test_functions_of_another_opset_are_named():
    inner = build(Attention()).model()
    function = function_of(inner, "F0")
    function.opset_import[0].version = 17
    call = helper.make_node("F0", ["hidden"], ["output"], domain="local")
    graph = helper.make_graph([call], "graph", inner.graph.input, inner.graph.output)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    with pytest.raises(InputError, match="inline_local_functions"):
        rewrite(model)


def test_one_head_without_a_batch():
    g = Graph()
    query, key, value = (
        g.input(name, [dim, 4], "float32")
        for name, dim in (("query", "sequence"), ("key", "memory"), ("value", "memory"))
    )
    scores = g.op("MatMul", query, g.transpose(key, 1, 0))
    result = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
    g.output(result, ["sequence", 4], "float32", "output")
    (block,) = check_graph(g, 1e-5).blocks
    assert isinstance(block, FusedBlock), block.reason
    assert block.attributes.num_heads == 1


def test_attention_in_a_body_is_named():
    inner = build(Attention(masks=(PADDING,))).model().graph
    body = helper.make_graph(list(inner.node), "body", [], list(inner.output), inner.initializer)
    other = helper.make_graph(
        [helper.make_node("Identity", ["hidden"], ["same"])],
        "other",
        [],
        [helper.make_tensor_value_info("same", TYPES["float32"], None)],
    )
    choice = helper.make_node(
        "If", ["condition"], ["chosen"], name="choice", then_branch=body, else_branch=other
    )
    condition = helper.make_tensor_value_info("condition", TYPES["bool"], [])
    graph = helper.make_graph(
        [choice],
        "graph",
        [*inner.input, condition],
        [helper.make_tensor_value_info("chosen", TYPES["float32"], None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (reason,) = refusals(model)
    assert "in the body of If 'choice'" in reason


def test_the_declared_outputs_are_not_renamed():
    # The output of the block is the output of the graph, whose axes have their own names.
    g = build(Attention(projected=False))
    g.nodes.pop()  # the Identity
    g.nodes[-1].output[0] = "output"
    g.outputs[0] = helper.make_tensor_value_info("output", TYPES["float32"], ["n", None, 8])
    model = g.model()
    done = rewrite(model)
    assert len(done.blocks) == len(fused(model)) == 1
    assert list(done.model.graph.output) == list(model.graph.output)


def test_unnamed_nodes_are_reported_by_what_they_make():
    model = build(Attention(axis=2)).model()
    for node in model.graph.node:
        node.name = ""
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    (reason,) = refusals(model)
    assert softmax.output[0] in reason


def test_stof_nodes_of_unnamed_blocks_have_different_names(capfd):
    g = Graph()
    add_block(g, Attention(), "first")
    add_block(g, Attention(), "second")
    model = g.model()
    for node in model.graph.node:
        node.name = ""
    names = [node.name for node in rewrite(model).model.graph.node if node.domain == "stof"]
    assert len(set(names)) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dims", [("other_batch", "other_sequence"), (None, None)])
@pytest.mark.parametrize("how", ["add", "keep", "product"])
def test_a_mask_input_whose_axes_have_other_names(dims, how):
    # Exporters name the axes of each input separately, or not at all.
    mask = Mask((Term("causal"), Term("padding")), how)
    g = build(Attention(mask_dims=("other_batch", "other_sequence"), masks=(mask,)))
    model = g.model()
    if dims == (None, None):
        for value in model.graph.input:
            for dim in list(value.type.tensor_type.shape.dim)[:2]:
                dim.Clear()
    done = rewrite(model)
    expanded = expand_model(done.model)
    sizes = {"batch": 2, "sequence": 7, "other_batch": 2, "other_sequence": 7}
    for feeds in feeds_of(g.inputs.values(), sizes):
        assert_close(run(model, feeds), run(expanded, feeds), 1e-5)
    (block,) = done.blocks
    assert isinstance(block, FusedBlock)
    assert block.kind.name == "causal+padding"


def test_cached_keys_with_a_padding_mask_of_their_total_length():
    mask = Mask((Term("causal", style="end"), Term("padding")))
    block = check_attention(Attention(past="past", masks=(mask,)))
    assert block.kind.name == "causal+padding"


def attention_operator(**attributes: object) -> onnx.ModelProto:
    """One standard Attention operator; ``outputs`` of it are the model's."""
    names = ["query", "key", "value", "mask"]
    outputs = attributes.pop("outputs", ["output"])
    node = helper.make_node("Attention", names, outputs, name="attention", scale=0.5, **attributes)
    dims = ["batch", 2, "sequence", 4]
    inputs = [helper.make_tensor_value_info(name, TYPES["float32"], dims) for name in names[:3]]
    mask_dims = ["batch", 1, "sequence", "sequence"]
    inputs.append(helper.make_tensor_value_info("mask", TYPES["bool"], mask_dims))
    made = [
        helper.make_tensor_value_info(name, TYPES["float32"], [None] * 4)
        for name in outputs
        if name
    ]
    graph = helper.make_graph([node], "graph", inputs, made)
    opsets = [helper.make_opsetid("", 23)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def test_a_standard_attention_operator_is_fused_under_its_name():
    (block,) = fused(attention_operator())
    assert (block.block.name, block.block.nodes, block.kind.name) == ("attention", 1, "dense")


def test_an_attention_operator_that_is_not_fused_stays_as_it_was():
    model = attention_operator(outputs=["output", "", "", "scores"])
    (reason,) = refusals(model)
    assert "'attention'" in reason
    assert rewrite(model).model is model


def test_only_the_refused_operator_of_two_is_put_back():
    model = attention_operator()
    other = attention_operator(outputs=["output2", "", "", "scores"]).graph
    other.node[0].name = "with scores"
    model.graph.node.append(other.node[0])
    model.graph.output.extend(other.output)
    done = rewrite(model)
    assert [node.op_type for node in done.model.graph.node].count("Attention") == 1
    assert sum(isinstance(block, FusedBlock) for block in done.blocks) == 1
    assert done.model.graph.node[-1].name == "with scores" or any(
        node == other.node[0] for node in done.model.graph.node
    )


def test_an_operator_above_a_mask_is_the_reason():
    hooks = {"scores": apply("Neg")}
    done = rewrite(build(Attention(masks=(PADDING,), hooks=hooks)).model())
    (block,) = done.blocks
    assert isinstance(block, RefusedBlock)
    assert "operator Neg between the scores and the softmax" in block.reason
