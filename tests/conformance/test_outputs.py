"""Number, types and shapes of the outputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from stof_onnx.expansion import expand_model
from stof_onnx.ir.operators.registry import DOMAIN
from stof_onnx.ir.plan import DataType
from stof_onnx.plugin_host import PluginError, TensorDesc
from tests.conformance.nodes import ATTENTION, NODES, NodeCase, Shape, Sizes, case

sizes = st.builds(Sizes, st.integers(0, 9), st.integers(0, 5000), st.integers(0, 5000))


@pytest.mark.parametrize("node", NODES, ids=str)
def test_number_of_outputs(node: NodeCase) -> None:
    assert node.create().output_count == (1 if node.operator == ATTENTION else 3)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_output_types(node: NodeCase) -> None:
    plugin = node.create()
    types = plugin.output_types(node.input_types)
    assert types == node.output_types
    assert not {DataType.BOOL, DataType.UINT8} & set(types)
    # What is announced must be a type that the format combinations take.
    inputs, outputs = node.descs(Sizes(1, 2, 3))
    for i, dtype in enumerate(types):
        outputs[i] = dataclasses.replace(outputs[i], dtype=dtype)
        assert plugin.supports_format(len(inputs) + i, inputs, outputs)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_other_input_types_are_refused_and_named(node: NodeCase) -> None:
    plugin = node.create()
    for position in range(len(node.input_types)):
        types = list(node.input_types)
        types[position] = DataType.BF16 if types[position] != DataType.BF16 else DataType.HALF
        with pytest.raises(PluginError, match=f"input {position} has type {types[position]}"):
            plugin.output_types(types)
    assert plugin.output_types(node.input_types) == node.output_types


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("node", NODES, ids=str)
def test_another_number_of_inputs_is_refused(node: NodeCase, change: int) -> None:
    plugin = node.create()
    wanted = len(node.input_types)
    inputs = (node.input_descs(Sizes(1, 2, 3)) * 2)[: wanted + change]
    for ask in (plugin.output_shapes, lambda i: plugin.output_types([one.dtype for one in i])):
        with pytest.raises(PluginError, match=f"has {wanted + change} inputs.* for {wanted} and"):
            ask(inputs)


@settings(max_examples=40, deadline=None)
@given(at=sizes)
@pytest.mark.parametrize("node", NODES, ids=str)
def test_output_shapes_follow_from_the_inputs(node: NodeCase, at: Sizes) -> None:
    shapes = node.create().output_shapes(node.input_descs(at))
    assert shapes == node.outputs(at)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_shapes_do_not_depend_on_what_happened_before(node: NodeCase) -> None:
    plugin = node.create()
    first, second = Sizes(2, 100, 77), Sizes(1, 3, 5)
    for at in (first, second, first):
        assert plugin.output_shapes(node.input_descs(at)) == node.outputs(at)


NUMPY = {
    DataType.FLOAT: (TensorProto.FLOAT, np.float32),
    DataType.HALF: (TensorProto.FLOAT16, np.float16),
    DataType.INT32: (TensorProto.INT32, np.int32),
    DataType.INT8: (TensorProto.INT8, np.int8),
}
# ONNX Runtime multiplies no bfloat16 matrices; a constant table has to be an initializer.
RUNNABLE = [n for n in NODES if n.name not in ("split_rows_bfloat16", "constant_table")]


@pytest.mark.parametrize("at", [Sizes(2, 20, 37), Sizes(1, 1, 130)], ids=str)
@pytest.mark.parametrize("node", RUNNABLE, ids=str)
def test_output_shapes_are_those_of_the_definition(node: NodeCase, at: Sizes) -> None:
    descs = node.input_descs(at)
    assert node.create().output_shapes(descs) == shapes_of_definition(node, descs)


def shapes_of_definition(node: NodeCase, descs: list[TensorDesc]) -> tuple[Shape, ...]:
    """Shapes that `expand`ed standard operators yield in ONNX Runtime."""
    names = [f"input_{i}" for i in range(len(descs))]
    results = [f"output_{i}" for i in range(len(node.output_types))]
    made = helper.make_node(
        node.operator, names, results, "node", domain=DOMAIN, **node.attributes()
    )
    graph = helper.make_graph(
        [made],
        "graph",
        [
            helper.make_tensor_value_info(n, NUMPY[d.dtype][0], d.dims)
            for n, d in zip(names, descs, strict=True)
        ],
        [
            helper.make_tensor_value_info(n, NUMPY[t][0], None)
            for n, t in zip(results, node.output_types, strict=True)
        ],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = expand_model(helper.make_model(graph, opset_imports=imports, ir_version=9))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = {one.name for one in session.get_inputs()}
    feeds = {
        n: np.ones(d.dims, NUMPY[d.dtype][1])
        for n, d in zip(names, descs, strict=True)
        if n in wanted
    }
    return tuple(array.shape for array in session.run(results, feeds))


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_an_input_of_a_rank_that_its_layout_lacks_is_named(rank: int) -> None:
    node = case("heads_float")
    inputs = node.input_descs(Sizes(1, 2, 3))
    for i, name in enumerate(("query", "key", "value")):
        wrong = list(inputs)
        wrong[i] = TensorDesc(wrong[i].dtype, (1,) * rank)
        with pytest.raises(PluginError, match=f"{name} has rank {rank}, its layout wants 4"):
            node.create().output_shapes(wrong)


def test_a_row_layout_wants_a_rank_of_three_or_more() -> None:
    node = case("rows_half")
    inputs = node.input_descs(Sizes(1, 2, 3))
    inputs[1] = TensorDesc(inputs[1].dtype, (1, 3))
    with pytest.raises(PluginError, match="key has rank 2, its layout wants 3 or more"):
        node.create().output_shapes(inputs)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_table_names_the_axis_that_does_not_exist(rank: int) -> None:
    with pytest.raises(PluginError, match=f"axis {2 if rank == 2 else 3} of input 0"):
        case("dense_table").create().output_shapes([TensorDesc(DataType.INT8, (1,) * rank)])
