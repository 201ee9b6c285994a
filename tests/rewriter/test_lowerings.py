"""Attention operators written out in standard operators: the same values, undone exactly.

The originals run in ONNX Runtime's CPU kernels, which define com.microsoft's operators, or in
ONNX's reference implementation, for forms that ONNX Runtime lacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stof_onnx.rewriter.export import export_model
from stof_onnx.rewriter.graph import ImportedGraph, import_graph
from stof_onnx.rewriter.lowerings.lower import Lowered, lower, lower_all
from stof_onnx.rewriter.symbolic import SymbolicGraph
from tests.rewriter.lowering_forms import In, build, changed, feeds
from tests.rewriter.lowering_forms_group_query import GROUP_QUERY
from tests.rewriter.lowering_forms_ms import MS_ATTENTION, MULTI_HEAD
from tests.rewriter.lowering_forms_standard import STANDARD
from tests.rewriter.running import relative_l2, session

# Older kernels and older reference implementations define rows without keys otherwise.
pytest.importorskip("onnx", minversion="1.23")
pytest.importorskip("onnxruntime", minversion="1.32")

FORMS = {
    f"{family}: {name}": form
    for family, forms in (
        ("Attention", STANDARD),
        ("ms Attention", MS_ATTENTION),
        ("MultiHeadAttention", MULTI_HEAD),
        ("GroupQueryAttention", GROUP_QUERY),
    )
    for name, form in forms.items()
}
_HALF_TOLERANCE = 3e-3
_NEWEST_OF_ORT = 24


def _imported(model: onnx.ModelProto) -> tuple[ImportedGraph, SymbolicGraph]:
    imported = import_graph(model)
    return imported, SymbolicGraph(imported.graph)


def _lowered(model: onnx.ModelProto) -> tuple[onnx.ModelProto, ImportedGraph, list[Lowered]]:
    """The model with every attention operator lowered."""
    imported, sym = _imported(model)
    lowered, refused = lower_all(imported, sym)
    assert not refused, refused
    return export_model(imported, model, []), imported, lowered


def _runner(model: onnx.ModelProto, oracle: str) -> Callable[..., Any]:
    return session(model).run if oracle == "ort" else ReferenceEvaluator(model).run


def _assert_equal(expected: list[Any], actual: list[Any], tolerance: float) -> None:
    assert len(expected) == len(actual)
    for left, right in zip(expected, actual, strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        np.testing.assert_array_equal(np.isnan(right), np.isnan(left))
        np.testing.assert_array_equal(np.isinf(right), np.isinf(left))
        allowed = tolerance if left.dtype == np.float32 else _HALF_TOLERANCE
        assert relative_l2(right, left) <= allowed


@pytest.mark.parametrize("name", FORMS)
def test_the_values_stay(name: str) -> None:
    form = FORMS[name]
    model = build(form)
    written, _, (lowered,) = _lowered(model)
    onnx.checker.check_model(written, full_check=True)
    types = [node.op_type for node in written.graph.node]
    assert types.count("Softmax") == 1
    assert not set(types) & {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
    assert lowered.softmax.op == "Softmax"
    original = _runner(model, form.oracle)
    new = _runner(written, "ort" if form.opset <= _NEWEST_OF_ORT else "reference")
    for sizes in form.sizes:
        for seed in (0, 1):
            given = feeds(form, sizes, seed)
            _assert_equal(original(None, given), new(None, given), form.tolerance)


@pytest.mark.parametrize("name", FORMS)
def test_undone_nothing_is_left(name: str) -> None:
    model = build(FORMS[name])
    imported, sym = _imported(model)
    before = export_model(imported, model, []).SerializeToString()
    nodes = list(imported.graph.nodes)
    types = [tensor.dtype for node in nodes for tensor in node.outputs]
    lowered = lower(imported, sym, nodes[-1])
    assert all(node is not nodes[-1] for node in imported.graph.nodes)
    lowered.undo()
    assert len(imported.graph.nodes) == len(nodes)
    assert all(a is b for a, b in zip(imported.graph.nodes, nodes, strict=True))
    assert [tensor.dtype for node in nodes for tensor in node.outputs] == types
    assert export_model(imported, model, []).SerializeToString() == before


# ---------------------------------------------------------------- several operators


def _two_layers() -> onnx.ModelProto:
    """Two MultiHeadAttention in a row with one padding mask."""
    nodes = [
        helper.make_node(
            "MultiHeadAttention",
            [source, source, source, "", "mask"],
            [result],
            name=f"layer_{result}",
            domain="com.microsoft",
            num_heads=2,
            unidirectional=1,
        )
        for source, result in (("X", "H"), ("H", "Y"))
    ]
    infos = [
        helper.make_tensor_value_info("X", TensorProto.FLOAT, ["B", "S", 8]),
        helper.make_tensor_value_info("mask", TensorProto.INT32, ["B", "S"]),
    ]
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["B", "S", 8])
    inner = helper.make_tensor_value_info("H", TensorProto.FLOAT, ["B", "S", 8])
    graph = helper.make_graph(nodes, "graph", infos, [output], value_info=[inner])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _two_layer_feeds() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    mask = np.ones((2, 5), np.int32)
    mask[0, 3:] = 0
    return {"X": rng.standard_normal((2, 5, 8)).astype(np.float32), "mask": mask}


def test_undone_outputs_have_the_types_they_had() -> None:
    model = _two_layers()
    del model.graph.value_info[:]
    imported, sym = _imported(model)
    inner = imported.graph.nodes[0].outputs[0]
    inner.dtype = None
    lowered = lower(imported, sym, imported.graph.nodes[0])
    assert inner.dtype == np.float32
    lowered.undo()
    assert inner.dtype is None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_undone_operators_are_where_they_were(order: tuple[int, int]) -> None:
    imported, sym = _imported(_two_layers())
    nodes = list(imported.graph.nodes)
    lowered, _ = lower_all(imported, sym)
    for i in order:
        lowered[i].undo()
    assert [node.name for node in imported.graph.nodes] == [node.name for node in nodes]


def test_layers_share_their_mask() -> None:
    model = _two_layers()
    written, imported, (first, second) = _lowered(model)
    by_type = [node.op_type for node in written.graph.node]
    for shared in ("Greater", "Range", "LessOrEqual", "Shape"):
        assert by_type.count(shared) == 1, shared
    assert by_type.count("Softmax") == 2
    of_second = {id(node) for node in second.nodes}
    assert any(id(node) in of_second for node in first.nodes)
    expected = session(model).run(None, _two_layer_feeds())
    _assert_equal(expected, session(written).run(None, _two_layer_feeds()), 1e-6)
    assert len({id(node) for node in imported.graph.nodes}) == len(imported.graph.nodes)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_undoing_one_layer_keeps_what_the_other_needs(order: tuple[int, int]) -> None:
    model = _two_layers()
    imported, sym = _imported(model)
    before = export_model(imported, model, []).SerializeToString()
    lowered, _ = lower_all(imported, sym)
    lowered[order[0]].undo()
    half = export_model(imported, model, [])
    onnx.checker.check_model(half)
    assert [n.op_type for n in half.graph.node].count("MultiHeadAttention") == 1
    expected = session(model).run(None, _two_layer_feeds())
    _assert_equal(expected, session(half).run(None, _two_layer_feeds()), 1e-6)
    lowered[order[1]].undo()
    assert export_model(imported, model, []).SerializeToString() == before


# ---------------------------------------------------------------- particulars


def test_padded_rows_of_a_windowed_prompt_are_unspecified_and_others_equal() -> None:
    form = changed(GROUP_QUERY["prompt, ragged"], attributes={"local_window_size": 2})
    model = build(form)
    written, _, _ = _lowered(model)
    given = feeds(form, {"B": 2, "S": 5, "T": 5})
    lengths = given["seqlens_k"] + 1
    assert lengths.min() < 5
    expected, actual = session(model).run(None, given), session(written).run(None, given)
    for b, length in enumerate(lengths):
        _assert_equal([expected[0][b, :length]], [actual[0][b, :length]], 1e-6)
    assert np.isfinite(actual[0]).all()


def _masked_in_the_graph(kind: str) -> onnx.ModelProto:
    """An Attention whose float mask hides with the lowest number, made in the graph."""
    g = STANDARD["4d"]
    model = build(changed(g, inputs={"mask": In((2, "S", "L"), "float32")}))
    lowest = np.asarray(np.finfo(np.float32).min)
    constants = {"lowest": lowest, "zero": np.asarray(0, np.float32)}
    nodes = {
        "where": [helper.make_node("Where", ["keep", "bias", "lowest"], ["made"])],
        "where not": [
            helper.make_node("Not", ["keep"], ["drop"]),
            helper.make_node("Where", ["drop", "lowest", "bias"], ["made"]),
        ],
        "add": [
            helper.make_node("Where", ["keep", "zero", "lowest"], ["hidden"]),
            helper.make_node("Add", ["bias", "hidden"], ["made"]),
        ],
        "alone": [helper.make_node("Where", ["keep", "zero", "lowest"], ["made"])],
        "zeros": [
            helper.make_node("Shape", ["bias"], ["shape"]),
            helper.make_node("Expand", ["zero", "shape"], ["zeros"]),
            helper.make_node("Where", ["keep", "zeros", "lowest"], ["some"]),
            helper.make_node("Add", ["some", "zeros"], ["made"]),
        ],
    }[kind]
    (attention,) = model.graph.node
    attention.input[3] = "made"
    del model.graph.node[:]
    model.graph.node.extend([*nodes, attention])
    del model.graph.input[3]
    model.graph.input.extend(
        [
            helper.make_tensor_value_info("keep", TensorProto.BOOL, ["S", "L"]),
            helper.make_tensor_value_info("bias", TensorProto.FLOAT, [2, "S", "L"]),
        ]
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    return model


@pytest.mark.parametrize("kind", ["where", "where not", "add", "alone", "zeros"])
def test_a_row_hidden_by_the_lowest_number_is_what_onnxruntime_makes_it(kind: str) -> None:
    model = _masked_in_the_graph(kind)
    written, _, (lowered,) = _lowered(model)
    # What hides became a boolean mask: nothing of it is added to the scores.
    added = [node for node in lowered.nodes if node.op == "Add"]
    assert len(added) == (0 if kind in ("alone", "zeros") else 1)
    rng = np.random.default_rng(1)
    keep = rng.integers(0, 2, (5, 7)).astype(bool)
    keep[0], keep[1:, 0] = False, True
    given = {
        **{
            n: rng.standard_normal((2, 2, s, 4), np.float32)
            for n, s in [("Q", 5), ("K", 7), ("V", 7)]
        },
        "keep": keep,
        "bias": rng.standard_normal((2, 5, 7), np.float32),
    }
    given = {name: given[name] for name in (i.name for i in model.graph.input)}
    expected = session(model).run(None, given)
    assert np.all(expected[0][:, :, 0] == 0)
    _assert_equal(expected, session(written).run(None, given), 1e-6)


def test_bfloat16_stays_bfloat16() -> None:
    form = STANDARD["causal and bool mask"]
    inputs = {
        name: dataclasses.replace(entry, dtype="bfloat16") if name in "QKV" else entry
        for name, entry in form.inputs.items()
        if entry is not None
    }
    model = build(dataclasses.replace(form, inputs=inputs))
    written, _, (lowered,) = _lowered(model)
    inferred = onnx.shape_inference.infer_shapes(written, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert types[lowered.softmax.outputs[0].name] == TensorProto.BFLOAT16
