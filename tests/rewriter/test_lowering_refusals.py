"""What the lowerings refuse, and what is known behind operators that are not lowered."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from stof_onnx.ir.expr import to_text
from stof_onnx.rewriter import ms_types
from stof_onnx.rewriter.export import export_model
from stof_onnx.rewriter.graph import import_graph
from stof_onnx.rewriter.lowerings.lower import LOWERINGS, lower, lower_all
from stof_onnx.rewriter.lowerings.subgraph import NotLowered
from stof_onnx.rewriter.symbolic import SymbolicGraph
from tests.rewriter.lowering_forms import PRESENT, Form, In, build, changed
from tests.rewriter.lowering_forms_group_query import GROUP_QUERY
from tests.rewriter.lowering_forms_ms import MS_ATTENTION, MULTI_HEAD
from tests.rewriter.lowering_forms_standard import STANDARD

_PLAIN, _FLAT = STANDARD["4d"], STANDARD["3d"]
_MS, _MHA, _GQA = MS_ATTENTION["plain"], MULTI_HEAD["plain"], GROUP_QUERY["prompt"]
_CACHE = GROUP_QUERY["growing cache"]

REFUSED: dict[str, tuple[Form, str]] = {
    "scores used": (
        changed(_PLAIN, outputs=("Y", "", "", "scores")),
        "Attention 'attention': its output qk_matmul_output, the scores, is used",
    ),
    "heads that vary": (
        changed(_PLAIN, inputs={"Q": In(("B", "H", "S", 4))}),
        "the number of query heads is not fixed",
    ),
    "head dim that varies": (
        changed(_PLAIN, inputs={"Q": In(("B", 2, "S", "D"))}),
        "the head dim is not fixed",
    ),
    "no head count": (
        changed(_FLAT, attributes={"q_num_heads": 0}),
        "inputs of rank 3 need the attributes q_num_heads and kv_num_heads",
    ),
    "width no multiple": (
        changed(_FLAT, attributes={"q_num_heads": 3, "kv_num_heads": 3}),
        "the width of query (8) is not a multiple of 3",
    ),
    "heads no multiple": (
        changed(_PLAIN, inputs={"Q": In(("B", 3, "S", 4))}),
        "3 query heads are not a multiple of 2 key heads",
    ),
    "mixed ranks": (
        changed(_PLAIN, inputs={"K": In(("B", "L", 8))}),
        "query, key and value are not all of rank 3 or all of rank 4",
    ),
    "mixed types": (
        changed(_PLAIN, inputs={"V": In(("B", 2, "L", 4), "float16")}),
        "query, key and value have different types",
    ),
    "negative scale": (
        changed(_PLAIN, attributes={"scale": -0.5}),
        "attribute scale is -0.5, whose square root it takes",
    ),
    "negative softcap": (changed(_PLAIN, attributes={"softcap": -1.0}), "attribute softcap is -1"),
    "softmax in integers": (
        changed(_PLAIN, attributes={"softmax_precision": TensorProto.INT64}),
        "attribute softmax_precision is 7, no float type it may be",
    ),
    "half a past": (
        changed(STANDARD["past"], inputs={"past_value": None}),
        "one of past_key and past_value is given without the other",
    ),
    "nonpad beside past": (
        changed(
            STANDARD["past"],
            inputs={"nonpad": In(("B",), "int64")},
            opset=24,
        ),
        "nonpad_kv_seqlen is given beside past_key",
    ),
    "mask of rank 5": (
        changed(_PLAIN, inputs={"mask": In((1, 1, 1, "S", "L"), "bool")}),
        "attn_mask has rank 5",
    ),
    "window below -1": (
        changed(_PLAIN, attributes={"left_window_size": -2}, opset=25),
        "attribute left_window_size is -2",
    ),
    "ms: rotary": (
        changed(_MS, attributes={"do_rotary": 1}),
        "com.microsoft::Attention 'attention': attribute do_rotary is set",
    ),
    "ms: shared buffer": (
        changed(_MS, attributes={"past_present_share_buffer": 1}),
        "attribute past_present_share_buffer is set",
    ),
    "ms: past_sequence_length": (
        changed(
            _MS,
            inputs={"mask_index": None, "past": None, "b": None, "length": In((1,), "int32")},
        ),
        "input past_sequence_length is not supported",
    ),
    "ms: past without present": (
        changed(MS_ATTENTION["past"], outputs=("Y",)),
        "past is given without output present",
    ),
    "ms: mask of unknown length": (
        changed(_MS, inputs={"mask_index": In(("N",), "int32")}),
        "the length of its mask 'mask_index' is not known to be the batch size or twice that",
    ),
    "ms: mask of rank 4": (
        changed(_MS, inputs={"mask_index": In(("B", 1, "S", "S"), "int32")}),
        "its mask 'mask_index' has rank 4",
    ),
    "ms: widths": (
        changed(_MS, attributes={"qkv_hidden_sizes": [8, 6, 10]}),
        "widths [8, 6, 10] of query, key and value for 2 heads",
    ),
    "mha: packed": (
        changed(_MHA, inputs={"query": In(("B", "S", 2, 3, 4)), "key": None, "value": None}),
        "key is packed into another input",
    ),
    "mha: packed key and value": (
        changed(_MHA, inputs={"key": In(("B", "L", 2, 2, 4)), "value": None}),
        "value is packed into another input",
    ),
    "mha: causal cross attention": (
        changed(_MHA, attributes={"unidirectional": 1}),
        "unidirectional, and key is not known to be as long as query",
    ),
    "mha: lengths and starts": (
        changed(_MHA, inputs={"key_padding_mask": In((8,), "int32")}),
        "the length of its mask 'key_padding_mask' is not known to be the batch size",
    ),
    "mha: past without present": (
        changed(MULTI_HEAD["past"], outputs=("Y",)),
        "past_key is given without output present_key, and then ignored",
    ),
    "mha: key of rank 4 and bias": (
        changed(MULTI_HEAD["key of rank 4"], inputs={"bias": In((24,))}),
        "key of rank 4 is given beside past_key or bias",
    ),
    "mha: beams": (
        changed(
            MULTI_HEAD["past"],
            inputs={"length": None, "beams": In(("B", 1, "T"), "int32")},
        ),
        "input cache_indirection is not supported",
    ),
    "gqa: window of none": (
        changed(_GQA, attributes={"local_window_size": 0}),
        "attribute local_window_size is 0",
    ),
    "gqa: window, not causal": (
        changed(_GQA, attributes={"local_window_size": 2, "causal": 0}),
        "attribute local_window_size is given beside causal = 0",
    ),
    "gqa: quantized": (
        changed(_GQA, attributes={"k_quant_type": "PER_TENSOR"}),
        "attribute k_quant_type is 'PER_TENSOR' (a quantized cache)",
    ),
    "gqa: window-sized cache": (
        changed(_CACHE, attributes={"sliding_window_cache": 1, "local_window_size": 2}),
        "attribute sliding_window_cache is set",
    ),
    "gqa: normalised query": (
        changed(_GQA, inputs={"k_scale": None, "v_scale": None, "norm": In((16,))}),
        "input q_norm_weight is not supported",
    ),
    "gqa: scores used": (
        changed(_GQA, outputs=(*PRESENT, "scores"), attributes={"qk_output": 1}),
        "its output output_qk, the scores, is used",
    ),
    "gqa: rotary without caches": (
        changed(_GQA, attributes={"do_rotary": 1}),
        "do_rotary without cos_cache and sin_cache",
    ),
    "gqa: past without present": (
        changed(_CACHE, outputs=("Y",)),
        "past_key is given without output present_key",
    ),
    "gqa: heads no multiple": (
        changed(_GQA, attributes={"kv_num_heads": 3}),
        "4 query heads are not a multiple of 3 key heads",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_named_and_left(case: str) -> None:
    form, reason = REFUSED[case]
    model = build(form)
    imported = import_graph(model)
    sym = SymbolicGraph(imported.graph)
    before = export_model(imported, model, []).SerializeToString()
    with pytest.raises(NotLowered) as refusal:
        lower(imported, sym, imported.graph.nodes[-1])
    assert reason in str(refusal.value)
    assert refusal.value.name == "attention"
    lowered, refused = lower_all(imported, sym)
    assert not lowered
    assert [str(r) for r in refused] == [str(refusal.value)]
    assert export_model(imported, model, []).SerializeToString() == before


def test_operators_that_no_file_knows_are_named() -> None:
    node = _ms_node("QAttention", ["a"], ["y"], name="quantized", num_heads=2)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["S"]) for n in "ay"]
    graph = helper.make_graph([node], "graph", infos[:1], infos[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    imported = import_graph(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    lowered, (refused,) = lower_all(imported, SymbolicGraph(imported.graph))
    assert not lowered
    assert str(refused) == "com.microsoft::QAttention 'quantized': this operator is not read"


def _ms_node(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(op_type, inputs, outputs, domain="com.microsoft", **attributes)


_SHAPED: dict[str, tuple[Any, list[list[Any]], list[str]]] = {
    "MultiHeadAttention": (
        _ms_node("MultiHeadAttention", ["a", "b", "b"], ["y", "k", "v"], num_heads=2),
        [["B", "S", 8], ["B", "L", 8]],
        ["B, S, 8", "B, 2, L, 4", "B, 2, L, 4"],
    ),
    "GroupQueryAttention": (
        _ms_node(
            "GroupQueryAttention", ["a", "", "", "", "", "b", "b"], ["y", "k"],
            num_heads=4, kv_num_heads=2,
        ),
        [["B", "S", 64], ["B"]],
        ["B, S, 32", "B, 2, S, 8"],
    ),
    "Attention": (
        _ms_node("Attention", ["a", "b", "", "", "c"], ["y", "present"], num_heads=2),
        [["B", "S", 8], [8, 24], [2, "B", 2, "P", 4]],
        ["B, S, 8", "2, B, 2, P + S, 4"],
    ),
    "SkipLayerNormalization": (
        _ms_node("SkipLayerNormalization", ["a", "a", "b"], ["y", "", "", "sum"]),
        [["B", "S", 8], [8]],
        ["B, S, 8", "B, S, 8"],
    ),
    "EmbedLayerNormalization": (
        _ms_node("EmbedLayerNormalization", ["a", "", "b", "b", "", "c", "c"], ["y", "mask"]),
        [["B", "S"], [100, 8], [8]],
        ["B, S, 8", "B"],
    ),
    "FusedMatMul": (
        _ms_node("FusedMatMul", ["a", "b"], ["y"], transB=1),
        [["B", "S", 8], ["B", "L", 8]],
        ["B, S, L"],
    ),
    "MatMulNBits": (
        _ms_node("MatMulNBits", ["a", "b", "c"], ["y"], K=8, N=24, bits=4, block_size=32),
        [["B", "S", 8], [24, 1, 16], [24]],
        ["B, S, 24"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _SHAPED)
def test_shapes_are_known_behind_operators_of_onnxruntime(name: str) -> None:
    node, dims, expected = _SHAPED[name]
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, d)
        for n, d in zip("abc", dims, strict=False)
    ]
    wanted = [output for output in node.output if output]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in wanted]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "graph", infos, outputs)
    imported = import_graph(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    sym = SymbolicGraph(imported.graph)
    found = {t.name: t for t in imported.graph.nodes[-1].outputs}
    shapes = [", ".join(to_text(dim) for dim in sym.shape(found[name])) for name in wanted]
    assert shapes == expected


def test_types_are_known_behind_operators_of_onnxruntime() -> None:
    nodes = [
        _ms_node("EmbedLayerNormalization", ["ids", "", "table", "table"], ["x", "mask"]),
        _ms_node("SkipLayerNormalization", ["x", "x", "w"], ["y", "", "", "sum"]),
        helper.make_node("Mul", ["y", "sum"], ["z"]),
        _ms_node("QuantizeLinear", ["z", "w", "w"], ["q"]),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT32, ["B", "S"]),
        helper.make_tensor_value_info("table", TensorProto.FLOAT16, [9, 8]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT16, [8]),
        ms_types.shape_input(),
    ]
    graph = helper.make_graph(ms_types.stand_ins(nodes), "types", inputs, [])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets))
    found = {v.name: v.type.tensor_type for v in inferred.graph.value_info}
    assert found["mask"].elem_type == TensorProto.INT32
    for name in "xyz":
        assert found[name].elem_type == TensorProto.FLOAT16
        assert not found[name].HasField("shape")
    assert "q" not in found


def test_the_registry_names_operators_as_the_graph_does() -> None:
    assert {op.rpartition("::")[0] for op in LOWERINGS} == {"", "com.microsoft"}
