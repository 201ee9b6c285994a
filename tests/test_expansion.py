"""expand_model: stof nodes become standard operators, and nothing else of the model changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stof_onnx.expansion import expand_model
from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import Load
from stof_onnx.ir.expr.build import and_, ge0, integer, sub
from stof_onnx.ir.mask.program import B_INDEX, K_INDEX, Q_INDEX, MaskProgram, Operand
from stof_onnx.ir.operators import mask_table, masked_attention
from stof_onnx.ir.operators.mask_table import MaskTable
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TensorLayout
from stof_onnx.ir.operators.registry import DOMAIN
from tests.reference.attention import attention, causal_keep

Array = npt.NDArray[Any]
Model = onnx.ModelProto

HEADS, DIM, LENGTH = 2, 4, 6
CAUSAL = MaskProgram(ge0(sub(Q_INDEX, K_INDEX)))
DENSE = np.random.default_rng(5).random((1, 8, 8)) < 0.5
DENSE[:, :, 0] = True
TABLE = BlockTable.from_dense(DENSE, (8, 8))
TABLE_NAMES = [f"table.{name}" for name in TABLE.arrays()]
BY_TABLE = MaskProgram(
    Load("table", (integer(0), Q_INDEX, K_INDEX), "bool"),
    operands=(Operand("table", "block_table", 3, TABLE.shape, TABLE.tile),),
)
PADDED = MaskProgram(
    and_(CAUSAL.keep, Load("padding", (B_INDEX, K_INDEX), "bool")),
    operands=(Operand("padding", "tensor", 2),),
)


def attention_node(source: str, output: str, program: MaskProgram, *operands: str) -> Any:
    """Self-attention of one tensor [B, S, H*D]."""
    layout = TensorLayout("BSHD", 0, DIM)
    record = MaskedAttention(
        HEADS, HEADS, DIM, DIM, 0.5, layout, layout, layout, "BSHD", 3, program
    )
    return helper.make_node(
        masked_attention.OP_TYPE,
        [source, source, source, *operands],
        [output],
        name=f"attention to {output}",
        domain=DOMAIN,
        **record.attributes(),
    )


def table_node(prefix: str) -> Any:
    """The run-time table of the padding, which expansion has no use for."""
    record = MaskTable(PADDED, 1, ((0, 0), (0, 1), (0, 1)), (8, 8))
    outputs = [f"{prefix}.{name}" for name in ("tile_counts", "tile_columns", "bitmaps")]
    return helper.make_node(
        mask_table.OP_TYPE, ["padding"], outputs, name=prefix, domain=DOMAIN, **record.attributes()
    )


def initializers() -> list[onnx.TensorProto]:
    tensors = [numpy_helper.from_array(x, f"table.{n}") for n, x in TABLE.arrays().items()]
    weight = np.random.default_rng(6).standard_normal(HEADS * DIM).astype(np.float32)
    return [*tensors, numpy_helper.from_array(weight, "weight")]


def value(name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(nodes: list[Any], outputs: list[str], *, stof: bool = True) -> Model:
    graph = helper.make_graph(
        nodes,
        "two layers",
        [value("x", "B", "S", HEADS * DIM), value("padding", "B", "S", dtype=TensorProto.INT8)],
        [value(name, "B", "S", HEADS * DIM) for name in outputs],
        initializers(),
    )
    opsets = [helper.make_opsetid("", 17)] + [helper.make_opsetid(DOMAIN, 1)] * stof
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=8, producer_name="a test", doc_string="a text"
    )
    helper.set_model_props(model, {"author": "somebody"})
    return model


def two_layers() -> Model:
    """Causal attention, Mul, attention by a block table and one by padding; a table unread."""
    nodes = [
        helper.make_node("Mul", ["x", "weight"], ["scaled"], name="first"),
        attention_node("scaled", "a", CAUSAL),
        helper.make_node("Mul", ["a", "weight"], ["b"], name="between"),
        attention_node("b", "c", BY_TABLE, *TABLE_NAMES),
        table_node("unread"),
        attention_node("c", "d", PADDED, "padding"),
        attention_node("d", "e", BY_TABLE, *TABLE_NAMES),
        helper.make_node("Add", ["e", "x"], ["out"], name="last"),
    ]
    return model_of(nodes, ["out"])


def run(model: Model) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(x) for x in session.run(None, feeds(model))]


def feeds(model: Model) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, LENGTH, HEADS * DIM)).astype(np.float32)
    padding = np.asarray([[1] * LENGTH, [1, 1, 1, 0, 0, 0]], np.int8)
    everything = {"x": x, "padding": padding, "choose": np.asarray(True)}
    return {tensor.name: everything[tensor.name] for tensor in model.graph.input}


def names(model: Model) -> set[str]:
    """Initializers of the model."""
    return {tensor.name for tensor in model.graph.initializer}


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from all_nodes(inner)


def test_a_model_without_stof_nodes_is_returned_as_it_is() -> None:
    nodes = [helper.make_node("Mul", ["x", "weight"], ["out"])]
    for model in (model_of(nodes, ["out"], stof=False), model_of(nodes, ["out"])):
        before = model.SerializeToString(deterministic=True)
        assert expand_model(model) is model
        assert model.SerializeToString(deterministic=True) == before


def test_the_input_is_not_changed() -> None:
    model = two_layers()
    before = model.SerializeToString(deterministic=True)
    result = expand_model(model)
    assert model.SerializeToString(deterministic=True) == before
    assert result is not model


def test_expansion_is_deterministic() -> None:
    first, second = (expand_model(two_layers()) for _ in range(2))
    assert first == second


def test_the_result_is_a_standard_model() -> None:
    result = expand_model(two_layers())
    onnx.checker.check_model(result, full_check=True)
    assert [(o.domain, o.version) for o in result.opset_import] == [("", 17)]
    assert all(node.domain == "" for node in result.graph.node)
    assert expand_model(result) is result


def test_the_result_computes_the_attention() -> None:
    model = two_layers()
    (got,) = run(expand_model(model))
    given = feeds(model)
    weight = numpy_helper.to_array(model.graph.initializer[-1])
    real = given["padding"].astype(np.bool_)[:, None, None]
    causal = causal_keep(LENGTH, LENGTH)
    by_table = DENSE[:, :LENGTH, :LENGTH]

    def attend(x_BSH: Array, keep: Array) -> Array:
        split = x_BSH.reshape(2, LENGTH, HEADS, DIM).transpose(0, 2, 1, 3)
        mixed = attention(split, split, split, keep, scale=0.5)
        return mixed.transpose(0, 2, 1, 3).reshape(2, LENGTH, -1)

    layer = attend(attend(given["x"] * weight, causal) * weight, by_table)
    wanted = attend(attend(layer, causal & real), by_table) + given["x"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_rest_of_the_model_stays() -> None:
    model = two_layers()
    result = expand_model(model)
    for part in ("input", "output", "name"):
        assert getattr(result.graph, part) == getattr(model.graph, part)
    for part in ("ir_version", "producer_name", "doc_string", "metadata_props"):
        assert getattr(result, part) == getattr(model, part)
    kept = [node for node in result.graph.node if node.name in ("first", "between", "last")]
    assert kept == [model.graph.node[i] for i in (0, 2, 7)]


def test_names_are_unique() -> None:
    result = expand_model(two_layers())
    outputs = [name for node in result.graph.node for name in node.output]
    assert len(outputs) == len(set(outputs))
    node_names = [node.name for node in result.graph.node]
    assert len(node_names) == len(set(node_names))
    assert all(node_names)
    assert len(names(result)) == len(result.graph.initializer)
    assert names(result).isdisjoint(outputs)
    assert names(result).isdisjoint(tensor.name for tensor in result.graph.input)


def test_equal_constants_are_stored_once() -> None:
    result = expand_model(two_layers())
    contents = [
        (tensor.data_type, tuple(tensor.dims), tensor.raw_data)
        for tensor in result.graph.initializer
    ]
    assert len(contents) == len(set(contents))
    masks = [t for t in result.graph.initializer if t.data_type == TensorProto.BOOL]
    assert [tuple(mask.dims) for mask in masks] == [(1, 1, 8, 8)]  # of both layers
    np.testing.assert_array_equal(numpy_helper.to_array(masks[0])[0], DENSE)


def test_what_only_stof_nodes_read_is_dropped() -> None:
    result = expand_model(two_layers())
    assert names(result).isdisjoint(TABLE_NAMES)
    assert "weight" in names(result)
    used = {name for node in result.graph.node for name in node.input}
    used |= {output.name for output in result.graph.output}
    assert all(set(node.output) & used for node in result.graph.node)
    assert not any(name.startswith("unread") for node in result.graph.node for name in node.output)


def test_what_others_read_too_is_kept() -> None:
    nodes = [
        helper.make_node("Cast", ["table.full_counts"], ["count"], to=TensorProto.FLOAT),
        attention_node("x", "a", BY_TABLE, *TABLE_NAMES),
        helper.make_node("Add", ["a", "count"], ["out"]),
    ]
    result = expand_model(model_of(nodes, ["out"]))
    assert names(result) & set(TABLE_NAMES) == {"table.full_counts"}
    assert len(run(result)) == 1


def test_an_initializer_that_is_an_output_is_kept() -> None:
    model = model_of([attention_node("x", "out", CAUSAL)], ["out"])
    model.graph.output.append(value("weight", HEADS * DIM))
    result = expand_model(model)
    assert "weight" in names(result)
    onnx.checker.check_model(result, full_check=True)


def test_a_read_table_is_expanded() -> None:
    nodes = [table_node("counted"), attention_node("x", "out", CAUSAL)]
    model = model_of(nodes, ["out"])
    model.graph.output.append(value("counted.bitmaps", "G", "R", "C", 2, dtype=TensorProto.INT32))
    result = expand_model(model)
    onnx.checker.check_model(result, full_check=True)
    _, bitmaps = run(result)
    assert bitmaps.shape == (2, 1, 1, 2)
    # Six causal rows of one 8x8 sub-tile, of which the second batch sees three keys.
    rows = bitmaps.view(np.uint8).reshape(2, 8)
    assert rows[0].tolist() == [1, 3, 7, 15, 31, 63, 0, 0]
    assert rows[1].tolist() == [1, 3, 7, 7, 7, 7, 0, 0]


def test_another_domain_stays() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
        attention_node("g", "out", CAUSAL),
    ]
    model = model_of(nodes, ["out"])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    result = expand_model(model)
    assert [o.domain for o in result.opset_import] == ["", "com.microsoft"]
    assert result.graph.node[0] == model.graph.node[0]
    assert len(run(result)) == 1


def branch(*nodes: Any, output: str) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "branch", [], [value(output, "B", "S", HEADS * DIM)])


def chosen(*nodes: Any, output: str, name: str = "if") -> Any:
    """If, with these nodes as both branches."""
    return helper.make_node(
        "If",
        ["choose"],
        [name],
        name=name,
        then_branch=branch(*nodes, output=output),
        else_branch=branch(*nodes, output=output),
    )


def with_choice(nodes: list[Any], outputs: list[str]) -> Model:
    model = model_of(nodes, outputs)
    model.graph.input.append(value("choose", dtype=TensorProto.BOOL))
    return model


def test_what_a_subgraph_reads_is_kept() -> None:
    inner = helper.make_node("Mul", ["a", "weight"], ["inner"])
    nodes = [attention_node("x", "a", CAUSAL), chosen(inner, output="inner")]
    result = expand_model(with_choice(nodes, ["if"]))
    assert "weight" in names(result)
    onnx.checker.check_model(result, full_check=True)
    assert len(run(result)) == 1


def test_what_a_subgraph_of_a_subgraph_reads_is_kept() -> None:
    inner = helper.make_node("Mul", ["a", "weight"], ["inner"])
    nodes = [
        attention_node("x", "a", CAUSAL),
        chosen(chosen(inner, output="inner", name="second"), output="second"),
    ]
    result = expand_model(with_choice(nodes, ["if"]))
    assert "weight" in names(result)
    assert len(run(result)) == 1


def test_a_stof_node_in_a_subgraph_is_expanded_or_refused() -> None:
    model = with_choice([chosen(attention_node("x", "a", CAUSAL), output="a")], ["if"])
    try:
        result = expand_model(model)
    except MalformedNodeError:
        return
    assert all(node.domain == "" for node in all_nodes(result.graph))


def test_names_of_an_earlier_expansion_do_not_collide() -> None:
    """Another layer is added to an expanded model, as optimizing it again may do."""
    model = expand_model(model_of([attention_node("x", "out", CAUSAL)], ["out"]))
    model.graph.node.insert(0, attention_node("x", "other", BY_TABLE, *TABLE_NAMES))
    model.graph.initializer.extend(initializers())
    model.graph.output.append(value("other", "B", "S", HEADS * DIM))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    wanted = run(expand_model(model_of([model.graph.node[0]], ["other"])))
    result = expand_model(model)
    outputs = [name for node in result.graph.node for name in node.output]
    assert len(outputs) == len(set(outputs))
    assert len(names(result)) == len(result.graph.initializer)
    onnx.checker.check_model(result, full_check=True)
    np.testing.assert_allclose(run(result)[1], wanted[0], rtol=1e-6)


def test_an_optional_input_stays_optional() -> None:
    model = model_of([attention_node("x", "out", CAUSAL)], ["out"])
    model.graph.input.append(value("weight", HEADS * DIM))
    result = expand_model(model)
    assert "weight" in names(result)


def unknown_operator(model: Model) -> None:
    model.graph.node[1].op_type = "StofSomething"


def missing_attribute(model: Model) -> None:
    del model.graph.node[1].attribute[0]


def missing_input(model: Model) -> None:
    del model.graph.node[1].input[2]


@pytest.mark.parametrize(
    "damage",
    [unknown_operator, missing_attribute, missing_input],
    ids=lambda damage: str(damage.__name__),
)
def test_errors_name_the_node(damage: Callable[[Model], None]) -> None:
    model = two_layers()
    damage(model)
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(MalformedNodeError, match="node 'attention to a'"):
        expand_model(model)
    assert model.SerializeToString(deterministic=True) == before
