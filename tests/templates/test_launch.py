"""Launch records of masked_attention_mma: what kernels are told of tensors and shapes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from stof_onnx.ir.errors import InputError, MalformedNodeError
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TensorLayout
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import (
    Bucket,
    DataType,
    Int32,
    Int64,
    Kernel,
    Plan,
    Quantity,
    TensorPointer,
    Variant,
    decode,
    encode,
    launches,
)
from stof_onnx.ir.target import Target
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.templates import masked_attention_mma as template
from stof_onnx.templates.attention_node import ELEMENT_TYPES, AttentionNode
from stof_onnx.templates.integer_range import LARGEST_DIMENSION
from stof_onnx.templates.masked_attention_mma import Parameters
from stof_onnx.templates.signature import C_TYPES, SIZES
from tests.templates.attention_nodes import (
    MASKS,
    attention_node,
    compile_job,
)

TENSORS = ("query", "key", "value", "output")


def make_node(
    layouts=(None, None, None),
    dims=(None, None, None),
    *,
    dtype="float16",
    heads=4,
    kv_heads=2,
    head_dim=64,
    value_dim=64,
    output="BSHD",
):
    """A causal node; None stands for a dense [B, S, heads * dim] tensor."""
    sizes = ((heads, head_dim), (kv_heads, head_dim), (kv_heads, value_dim))
    layouts = [
        layout or TensorLayout("BSHD", 0, size)
        for layout, (_, size) in zip(layouts, sizes, strict=True)
    ]
    dims = [
        one or (None, None, count * size) for one, (count, size) in zip(dims, sizes, strict=True)
    ]
    record = MaskedAttention(
        heads, kv_heads, head_dim, value_dim, 0.125, *layouts, output, 3 if output == "BSHD" else 4,
        MASKS["causal"].program, dtype, dtype,
    )  # fmt: skip
    record.validate()
    return AttentionNode(record, tuple(TensorInfo(ELEMENT_TYPES[dtype], one) for one in dims))


def make_plan(node, parameters=None):
    """A sound plan around the launch, as the plugin reads it."""
    parameters = parameters or Parameters()
    shared = template.max_dynamic_shared(node, parameters)
    kernel = Kernel(template.NAME, template.ENTRY, "cubin", b"code", 100, 0, shared)
    launch = template.launch(node, parameters, kernel)
    workspace = template.workspace(node, parameters)
    bucket = Bucket((), parameters.tactic(), workspace, (launch,))
    variant = Variant.of(Target.parse("sm_80"), (bucket,))
    plan = Plan(
        node.operator, "test", node.input_types, node.output_types, template.symbols(node),
        node.checks, (variant,), template.covers(node),
    )  # fmt: skip
    assert decode(encode(plan)) == plan
    return plan


def launch_of(node, *shapes, parameters=None):
    """The one launch at these shapes of the inputs, or None."""
    shapes = [*shapes, *[(1,) * len(one.dims) for one in node.inputs[len(shapes) :]]]
    found = launches(make_plan(node, parameters), (8, 0), shapes, [(1, 1, 1)])
    return found[0] if found else None


def arguments_of(node, *shapes):
    """Value of each kernel parameter by its name."""
    names = [name for _, name in declared(node)]
    return dict(zip(names, launch_of(node, *shapes).arguments, strict=True))


def declared(node, parameters=None):
    """(type, name) of the parameters in the generated source."""
    source = template.source(node, parameters or Parameters())
    (text,) = re.findall(rf"{template.ENTRY}\((.*?)\) {{", source, re.DOTALL)
    return [tuple(part.strip().rsplit(" ", 1)) for part in text.split(",")]


# ---- signature ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "dtype"), [*product(MASKS, ["float16"]), ("bias", "float32")])
def test_arguments_are_the_parameters(mask, dtype):
    node = attention_node(mask, dtype)
    (launch,) = make_plan(node).variants[0].buckets[0].launches
    signature = declared(node)
    assert len({name for _, name in signature}) == len(signature) == len(launch.arguments)
    for (kind, name), argument in zip(signature, launch.arguments, strict=True):
        if isinstance(argument, TensorPointer):
            types = node.input_types if argument.source == "input" else node.output_types
            const = "const " if argument.source == "input" else ""
            assert kind == f"{const}{C_TYPES[types[argument.tensor]]}* __restrict__"
            assert argument.alignment % SIZES[types[argument.tensor]] == 0
        else:
            assert type(argument) is {"int": Int32, "long long": Int64}[kind]
        if name in ("B", "Sq", "Sk"):
            assert argument.value == Quantity.of(name)
    by_name = dict(zip([name for _, name in signature], launch.arguments, strict=True))
    assert by_name["H"].value == Quantity.of(4)
    places = [(by_name[name].source, by_name[name].tensor) for name in TENSORS]
    assert places == [("input", 0), ("input", 1), ("input", 2), ("output", 0)]


def test_operands_are_the_inputs_behind_the_first_three():
    places = [
        argument.tensor
        for argument in launch_of(
            attention_node("two tables"), *shapes_of(2, 9, 11), *[(1,)] * 5, (2, 11)
        ).arguments
        if argument.kind == "input"
    ]
    assert places == list(range(9))
    names = arguments_of(attention_node("padding"), *shapes_of(2, 9, 11), (2, 13))
    assert (names["operand0_size0"].value, names["operand0_size1"].value) == (2, 13)


CAPPED_WITH_SINKS = "softcap, sinks, run-time table"
TABLE_SHAPES = ((2, 1, 2), (2, 1, 1), (2, 1, 1, 128))


def test_sinks_are_the_input_between_operands_and_table():
    node = attention_node(CAPPED_WITH_SINKS)
    names = arguments_of(node, *shapes_of(2, 9, 11), (2, 11), (4,), *TABLE_SHAPES)
    arrays = ("sinks", "table_tile_counts", "table_tile_columns", "table_bitmaps")
    assert [(names[name].kind, names[name].tensor) for name in arrays] == [
        ("input", position) for position in (4, 5, 6, 7)
    ]
    assert names["sinks"].alignment == 4
    assert "sinks" not in arguments_of(attention_node("run-time table"), *shapes_of(2, 9, 11))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8])
def test_there_is_a_sink_for_each_query_head(size):
    node = attention_node("sinks")
    assert launch_of(node, *shapes_of(2, 9, 11), (2, 11), (4,)) is not None
    with pytest.raises(InputError, match=f"sinks_size = {size}"):
        launch_of(node, *shapes_of(2, 9, 11), (2, 11), (size,))


@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.BF16, DataType.INT32])
def test_sinks_of_another_type_are_refused(dtype):
    node = attention_node("sinks")
    node = replace(node, inputs=(*node.inputs[:-1], TensorInfo(dtype, (4,))))
    with pytest.raises(MalformedNodeError, match=f"sinks of type {dtype.name}; wanted FLOAT"):
        template.source(node, Parameters())


@pytest.mark.parametrize(
    ("mask", "constants"),
    [
        ("causal", ("kSoftcap = 0x0.0p+0f", "kHasSinks = false")),
        ("softcap", ("kSoftcap = 0x1.9000000000000p+5f", "kHasSinks = false")),
        ("sinks", ("kSoftcap = 0x0.0p+0f", "kHasSinks = true", "kFill = ", "kEmptyBelow = ")),
        (CAPPED_WITH_SINKS, ("kSoftcap = 0x1.f400000000000p+9f", "kHasSinks = true")),
    ],
)
def test_softcap_and_sinks_are_known_when_compiling(mask, constants):
    source = template.source(attention_node(mask, "float32"), Parameters(16, 16))
    assert all(constant in source for constant in constants)
    assert ("kFill" in source) == (mask == "sinks")  # the other fills are infinite


@pytest.mark.parametrize(
    ("mask", "dtype", "is_read"),
    [
        ("hidden twice", "float32", True),
        ("hidden twice", "float16", True),
        ("hidden twice, bias, sinks, run-time table", "bfloat16", True),
        ("causal", "float32", False),
        ("fill that doesn't hide", "float32", False),
    ],
)
def test_the_kernel_knows_of_pairs_that_are_hidden_twice(mask, dtype, is_read):
    source = template.source(attention_node(mask, dtype), Parameters(16, 16))
    assert ("bool again(" in source) == is_read
    assert f"kHasAgain = {'true' if is_read else 'false'}" in source
    if is_read:
        assert "kEmptyRow = stof::EmptyRow::kSoftmax" in source
        assert "kFill = -0x1.38800" in source


def test_where_the_fill_is_infinite_twice_is_once():
    node = attention_node("hidden twice", "float16")
    mask = replace(node.record.mask, fill=-1e5)
    node = replace(node, record=replace(node.record, mask=mask))
    assert "bool again(" not in template.source(node, Parameters(16, 16))


def test_a_constant_table_bounds_sizes_wherever_it_is_read():
    node = attention_node("hidden twice, bias, sinks, run-time table")
    bounds = {check.symbol: check.max for check in node.checks}
    assert (bounds["Sq"], bounds["Sk"]) == (4096, 4096)


def shapes_of(batch, queries, keys):
    """Of attention_node's first three inputs."""
    return (batch, queries, 256), (batch, keys, 128), (batch, keys, 128)


def test_the_compiled_parameters_have_the_widths_of_the_arguments():
    node = attention_node("run-time table")
    (done,) = compile_kernels(
        [compile_job(template.source(node, Parameters()), "portable")], cache=None
    )
    widths = [
        int(bits) for bits in re.findall(r"\.param \.[usb](\d\d)[^,)]*_param_", done.image.decode())
    ]
    (launch,) = make_plan(node).variants[0].buckets[0].launches
    assert widths == [32 if isinstance(one, Int32) else 64 for one in launch.arguments]


# ---- tensors ------------------------------------------------------------------------------------

PACKED = tuple(TensorLayout("BSHD", part * 256, 64) for part in range(3))
INTERLEAVED = tuple(TensorLayout("BSHD", part * 64, 192) for part in range(3))
PACKED_DIMS = ((None, None, 768),) * 3
PLANES = (TensorLayout("BHSD"),) * 3
LAYOUTS = {
    "dense": make_node(),
    "rank 4": make_node(dims=((None, None, 4, 64), (None, None, 2, 64), (None, None, 2, 64))),
    "planes": make_node(
        PLANES, ((None, 4, None, 64), (None, 2, None, 64), (None, 2, None, 64)), output="BHSD"
    ),
    "mixed": make_node((None, PLANES[0], None), (None, (None, 2, None, 64), None), output="BHSD"),
    "packed": make_node(PACKED, PACKED_DIMS, kv_heads=4),
    "packed, interleaved": make_node(INTERLEAVED, PACKED_DIMS, kv_heads=4),
    "packed, rank 5": make_node(PACKED, ((None, None, 3, 4, 64),) * 3, kv_heads=4),
    "unknown width": make_node(dims=((None,) * 3,) * 3),
    "odd": make_node(
        (TensorLayout("BSHD", 3, 41), TensorLayout("BSHD", 1, 35), None),
        ((None, None, 171), (None, None, 77), (None, None, 2, 7)),
        head_dim=33, value_dim=7,
    ),
    "one head": make_node(heads=1, kv_heads=1, dtype="float32", head_dim=10, value_dim=6),
}  # fmt: skip


def input_shape(info, layout, batch, length, width):
    sizes = [batch, None, length, None] if layout.order == "BHSD" else [batch, length]
    known = [size or dim for size, dim in zip(sizes, info.dims, strict=False)]
    rest = [width if dim is None else dim for dim in info.dims[len(known) :]]
    return (*known, *rest)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_element_is_where_the_layout_says(name):
    node = LAYOUTS[name]
    record, batch, lengths = node.record, 2, (5, 3, 3)
    layouts = (record.query, record.key, record.value)
    counts = (record.num_heads, record.kv_num_heads, record.kv_num_heads)
    head_dims = (record.head_dim, record.head_dim, record.value_head_dim)
    shapes = [
        input_shape(info, layout, batch, length, 300)
        for info, layout, length in zip(node.inputs, layouts, lengths, strict=True)
    ]
    arguments = arguments_of(node, *shapes)
    places = zip(TENSORS, layouts, counts, head_dims, lengths, shapes, strict=False)
    for tensor, layout, heads, dim, length, shape in places:
        flat = np.arange(math.prod(shape)).reshape(shape)
        if layout.order == "BSHD":
            columns = (
                layout.offset + np.arange(heads)[:, None] * layout.head_stride + np.arange(dim)
            )
            wanted = flat.reshape(batch, length, -1)[:, :, columns].transpose(0, 2, 1, 3)
        else:
            wanted = flat
        np.testing.assert_array_equal(addresses(arguments, tensor, node, wanted.shape), wanted)
    queries, dim = lengths[0], record.value_head_dim
    size = (batch, queries, record.num_heads, dim)
    dense = np.arange(math.prod(size)).reshape(size).transpose(0, 2, 1, 3)
    if record.output == "BHSD":
        dense = np.arange(math.prod(size)).reshape(dense.shape)
    np.testing.assert_array_equal(addresses(arguments, "output", node, dense.shape), dense)


def addresses(arguments, tensor, node, shape):
    """Number of each element that the kernel reads as (b, h, s, d)."""
    size = SIZES[node.element_type]
    start, misaligned = divmod(arguments[tensor].value, size)
    assert not misaligned
    strides = [arguments[f"{tensor}_{axis}"].value for axis in ("batch", "head", "row")]
    index = np.indices(shape)
    return start + sum(i * stride for i, stride in zip(index, [*strides, 1], strict=True))


@pytest.mark.parametrize(
    ("dtype", "layout", "dims", "dim", "wanted"),
    [
        ("float16", ("BSHD", 0, 64), (None, None, 256), 64, 16),
        ("bfloat16", ("BSHD", 0, 40), (None, None, 160), 40, 16),
        ("float16", ("BSHD", 0, 36), (None, None, 144), 36, 8),
        ("float16", ("BSHD", 0, 34), (None, None, 136), 34, 4),
        ("float16", ("BSHD", 0, 33), (None, None, 132), 33, 2),
        ("float32", ("BSHD", 0, 33), (None, None, 132), 33, 4),
        ("float32", ("BSHD", 0, 34), (None, None, 136), 34, 8),
        ("float32", ("BSHD", 0, 36), (None, None, 144), 36, 16),
        # Each number alone can lower it.
        ("float16", ("BSHD", 4, 64), (None, None, 264), 64, 8),
        ("float16", ("BSHD", 2, 64), (None, None, 264), 64, 4),
        ("float16", ("BSHD", 1, 64), (None, None, 264), 64, 2),
        ("float16", ("BSHD", 0, 66), (None, None, 264), 64, 4),
        ("float16", ("BSHD", 0, 64), (None, None, 260), 64, 8),
        ("float16", ("BSHD", 0, 64), (None, None, 257), 64, 2),
        ("float16", ("BSHD", 0, 64), (None, None, 4, 66), 64, 16),
        ("float16", ("BSHD", 0, 66), (None, None, 4, 66), 64, 4),
        # The width of a row isn't known.
        ("float16", ("BSHD", 0, 64), (None, None, None), 64, 2),
        ("float32", ("BSHD", 0, 64), (None, None, None, 64), 64, 4),
        ("float16", ("BHSD", 0, 0), (None, 4, None, 64), 64, 16),
        ("float16", ("BHSD", 0, 0), (None, 4, None, 6), 6, 4),
        ("float16", ("BHSD", 0, 0), (None, 4, None, 5), 5, 2),
    ],
)
def test_copies_are_as_wide_as_rows_are_aligned(dtype, layout, dims, dim, wanted):
    layout = TensorLayout(*layout)
    node = make_node((layout, None, None), (dims, None, None), dtype=dtype, head_dim=dim)
    tensor = node.strided()[0]
    assert tensor.copy_bytes == wanted
    assert tensor.parameters[0].argument.alignment == wanted
    assert f"kQueryCopyBytes = {wanted};" in template.source(node, Parameters())


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_copy_is_wider_than_its_alignment(name):
    node = LAYOUTS[name]
    layouts = (node.record.query, node.record.key, node.record.value)
    for batch, length, width in product((1, 3), (1, 2, 7), (256, 257, 301)):
        shapes = [
            input_shape(info, layout, batch, length, width)
            for info, layout in zip(node.inputs, layouts, strict=True)
        ]
        arguments = arguments_of(node, *shapes)
        for tensor in node.strided():
            starts = addresses(arguments, tensor.name, node, (batch, 2, length, 1))
            assert not (starts * SIZES[node.element_type] % tensor.copy_bytes).any()


# ---- the launch ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "queries", "tile_q", "blocks"),
    [(1, 1, 64, 4), (1, 64, 64, 4), (1, 65, 64, 8), (3, 129, 32, 60), (2, 47, 16, 24)],
)
def test_there_is_a_block_for_each_tile_of_queries(batch, queries, tile_q, blocks):
    launch = launch_of(
        attention_node(), *shapes_of(batch, queries, 77), parameters=Parameters(tile_q, 16)
    )
    assert launch.grid == (blocks, 1, 1)
    assert launch.block == (2 * tile_q, 1, 1)
    assert launch.shared == template.shared_bytes(attention_node(), Parameters(tile_q, 16))


@pytest.mark.parametrize("shape", [(0, 9, 11), (2, 0, 11)])
def test_nothing_is_launched_for_an_empty_output(shape):
    assert launch_of(attention_node(), *shapes_of(*shape)) is None


def test_no_keys_are_a_launch():
    assert launch_of(attention_node(), *shapes_of(2, 9, 0)).grid == (8, 1, 1)


def test_strides_of_large_tensors_are_not_cut():
    arguments = arguments_of(attention_node(), *shapes_of(2, 2**24, 2**24))
    assert arguments["query_batch"].value == 2**24 * 256


@pytest.mark.parametrize(
    ("node", "good", "bad", "symbol"),
    [
        (make_node(), (2, 5, 256), (2, 5, 264), "query_width"),
        (make_node(), (2, 5, 256), (2, LARGEST_DIMENSION + 1, 256), "Sq"),
        (make_node(), (2, 5, 256), (LARGEST_DIMENSION + 1, 5, 256), "B"),
        # Of unknown width: wide enough for the last head.
        (LAYOUTS["unknown width"], (2, 5, 256), (2, 5, 255), "query_width"),
        (LAYOUTS["planes"], (2, 4, 5, 64), (2, 3, 5, 64), "query_heads"),
        (LAYOUTS["planes"], (2, 4, 5, 64), (2, 4, 5, 72), "query_dim"),
        (LAYOUTS["packed"], (2, 5, 768), (2, 5, 256), "query_width"),
    ],
)
def test_shapes_that_the_kernel_can_not_run_are_refused(node, good, bad, symbol):
    layouts = (node.record.query, node.record.key, node.record.value)
    others = [
        input_shape(info, layout, 2, 3, 300)
        for info, layout in zip(node.inputs, layouts, strict=True)
    ][1:]
    assert launch_of(node, good, *others) is not None
    with pytest.raises(InputError, match=f"{symbol} = "):
        launch_of(node, bad, *others)
