"""Every exported test model: what is fused, what the result looks like, and its numbers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import helper

import stof_onnx
from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import InputError
from stof_onnx.ir.operators.masked_attention import OP_TYPE
from stof_onnx.rewriter.rewrite import FusedBlock, RefusedBlock, Rewrite, rewrite
from tests.rewriter.running import PADDINGS, assert_close, padding_values, session

MODELS = Path(__file__).parents[1] / "models"
MANIFEST = json.loads((MODELS / "manifest.json").read_text())
FILES = sorted(MANIFEST)
FUSED_FILES = [
    name for name in FILES if any(b["status"] == "fused" for b in MANIFEST[name]["blocks"])
]
VOCABULARY = 128
# One token, odd lengths, one beyond and one below the exported 2 x 20, the longest.
SIZES = ((1, 1), (2, 7), (3, 33), (1, 128))
# fp16 holds 11 bits: half a unit in the last place is 5e-4.
TOLERANCE = {"float32": 1e-5, "float16": 1e-3}


class Optimized(NamedTuple):
    original: onnx.ModelProto
    bytes_before: bytes
    done: Rewrite


@functools.cache
def optimized(name: str) -> Optimized:
    model = onnx.load(MODELS / name)
    before = model.SerializeToString(deterministic=True)
    return Optimized(model, before, rewrite(model))


def stof_nodes(name: str) -> list[onnx.NodeProto]:
    return [node for node in optimized(name).done.model.graph.node if node.op_type == OP_TYPE]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# -------------------------------------------------------------------------- blocks and their masks


@pytest.mark.parametrize("name", FILES)
def test_every_block_of_the_manifest_is_found_and_fused_or_refused(name):
    expected = MANIFEST[name]
    blocks = optimized(name).done.blocks
    found = ["fused" if isinstance(block, FusedBlock) else "refused" for block in blocks]
    assert found == [block["status"] for block in expected["blocks"]]
    assert len(blocks) == expected["attention_blocks"]
    assert len(stof_nodes(name)) == found.count("fused")


@pytest.mark.parametrize("name", FUSED_FILES)
def test_masks_heads_and_head_dims_are_those_of_the_manifest(name):
    expected = MANIFEST[name]
    blocks = optimized(name).done.blocks
    assert all(isinstance(block, FusedBlock) for block in blocks)
    assert [b.kind.name for b in blocks] == [b["mask"] for b in expected["blocks"]]
    for block in blocks:
        node = block.attributes
        assert node.num_heads == node.kv_num_heads == expected["num_heads"]
        assert node.head_dim == node.value_head_dim == expected["head_dim"]
        assert node.scale == pytest.approx(node.head_dim**-0.5, rel=1e-3)  # fp16


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sliding_window_sdpa_dynamo.onnx", {"window_left": 5, "window_right": 5}),
        ("causal_window_sdpa_dynamo.onnx", {"window_left": 8, "window_right": 0}),
        ("causal_memory_sdpa_dynamo.onnx", {"alignment": "end"}),
        ("gpt2_sdpa_dynamo.onnx", {"alignment": "start", "padding_input": "attention_mask"}),
        ("bert_bigbird_sdpa_dynamo.onnx", {"table": "128x128"}),
        ("cross_attention_sdpa_dynamo.onnx", {"padding_input": "memory_mask"}),
    ],
)
def test_parameters_of_masks(name, parameters):
    for block in optimized(name).done.blocks:
        assert parameters.items() <= block.kind.parameters.items()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_modernbert_windows_are_told_from_its_global_layer(attention, exporter):
    name = f"modernbert_{attention}_{exporter}.onnx"
    windows = [block.kind.parameters.get("window_left") for block in optimized(name).done.blocks]
    assert windows == [None, 8, 8]


@pytest.mark.parametrize("name", FUSED_FILES)
def test_masks_were_read_and_proven_not_taken_as_they_are(name):
    for block in optimized(name).done.blocks:
        assert block.proof.startswith(("equal to the original subgraph", "no mask in the graph"))


@pytest.mark.parametrize(
    ("name", "empty_row"),
    [
        ("bert_sdpa_dynamo.onnx", "mean"),
        ("bert_sdpa_torchscript.onnx", "zero"),
        ("bert_eager_torchscript.onnx", "mean"),
        ("bert_fp16_sdpa_dynamo.onnx", "softmax"),
    ],
)
def test_empty_rows_follow_the_constants_of_the_file(name, empty_row):
    for block in optimized(name).done.blocks:
        assert block.attributes.mask.empty_row(block.attributes.score_dtype) == empty_row


def test_attention_weights_that_are_outputs_are_refused_by_name():
    done = optimized("bert_attentions_eager_torchscript.onnx").done
    for block in done.blocks:
        assert isinstance(block, RefusedBlock)
        assert f"Softmax {block.name!r}" in block.reason
        assert "output of the model" in block.reason


# ---------------------------------------------------------------------------------- the new graph


@pytest.mark.parametrize("name", FILES)
def test_the_result_is_valid_and_nothing_of_a_fused_block_is_left(name):
    original, _, done = optimized(name)
    onnx.checker.check_model(done.model)
    fused = {b.block.name for b in done.blocks if isinstance(b, FusedBlock)}
    left = {node.name for node in done.model.graph.node}
    assert not fused & left
    refused = sum(isinstance(block, RefusedBlock) for block in done.blocks)
    assert operators(done.model).count("Softmax") == refused
    assert done.nodes_before == len(original.graph.node)
    assert done.nodes_after == len(done.model.graph.node)


@pytest.mark.parametrize("name", FILES)
def test_the_original_is_not_changed(name):
    original, before, _ = optimized(name)
    assert original.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", FUSED_FILES)
def test_inputs_and_outputs_keep_names_types_and_dynamic_axes(name):
    original, _, done = optimized(name)
    for before, after in (
        (original.graph.input, done.model.graph.input),
        (original.graph.output, done.model.graph.output),
    ):
        assert [value.name for value in after] == [value.name for value in before]
        for old, new in zip(before, after, strict=True):
            old_type, new_type = old.type.tensor_type, new.type.tensor_type
            assert new_type.elem_type == old_type.elem_type
            assert _dims(new_type) == _dims(old_type)


def _dims(tensor_type) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in tensor_type.shape.dim]


@pytest.mark.parametrize("name", FUSED_FILES)
def test_stof_outputs_declare_their_type_and_dynamic_axes(name):
    # ONNX's own inference stops at a stof node.
    graph = optimized(name).done.model.graph
    infos = {info.name: info for info in [*graph.value_info, *graph.output]}
    dynamic = "static" not in name
    for node in stof_nodes(name):
        declared = infos[node.output[0]].type.tensor_type
        expected = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}
        assert declared.elem_type == expected[MANIFEST[name]["dtype"]]
        batch, sequence, *_ = _dims(declared)
        assert [batch, sequence] == (["batch", "sequence"] if dynamic else [2, 20])


@pytest.mark.parametrize("name", FUSED_FILES)
def test_no_transpose_is_left(name):
    assert "Transpose" not in operators(optimized(name).done.model)


@pytest.mark.parametrize("name", [name for name in FUSED_FILES if name.startswith("bert")])
def test_bert_nodes_read_one_projection_at_three_places(name):
    producers = _producers(optimized(name).done.model)
    for node in stof_nodes(name):
        (tensor,) = set(node.input[:3])
        bias = producers[tensor]
        assert bias.op_type == "Add"
        assert {producers[t].op_type for t in bias.input if t in producers} == {"MatMul"}


@pytest.mark.parametrize("name", [name for name in FUSED_FILES if name.startswith("gpt2")])
def test_gpt2_nodes_read_the_packed_projection_three_times(name):
    producers = _producers(optimized(name).done.model)
    for node in stof_nodes(name):
        assert len(set(node.input[:3])) == 1
        projection = producers[node.input[0]]
        assert projection.op_type == "Reshape"
        assert producers[projection.input[0]].op_type == "Gemm"
    for block in optimized(name).done.blocks:
        node = block.attributes
        assert [x.offset for x in (node.query, node.key, node.value)] == [0, 64, 128]


@pytest.mark.parametrize("name", [name for name in FUSED_FILES if name.startswith("modernbert")])
def test_modernbert_nodes_read_rotated_rows_and_the_packed_value(name):
    producers = _producers(optimized(name).done.model)
    for node in stof_nodes(name):
        query, key, value = (producers[tensor].op_type for tensor in node.input[:3])
        assert (query, key, value) == ("Add", "Add", "MatMul")
    for block in optimized(name).done.blocks:
        node = block.attributes
        assert {x.order for x in (node.query, node.key, node.value)} == {"BSHD"}
        assert node.value.offset == 128


def _producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


@pytest.mark.parametrize("name", FUSED_FILES)
def test_layers_share_their_mask_operands(name):
    producers = _producers(optimized(name).done.model)
    masks = [node.input[3:] for node in stof_nodes(name)]
    operands = {operand for mask in masks for operand in mask}
    assert len(operands) == max(len(mask) for mask in masks)
    casts = [producers[operand] for operand in operands if operand in producers]
    assert len(casts) <= 1  # the padding mask becomes INT8 once


@pytest.mark.parametrize("name", [name for name in FUSED_FILES if "bigbird" in name])
def test_a_constant_mask_is_stored_once_as_a_block_table(name):
    graph = optimized(name).done.model.graph
    arrays = [tensor for tensor in graph.initializer if tensor.name.startswith("stof/table/")]
    assert len(arrays) == 5
    dense = [tensor.name for tensor in graph.initializer if list(tensor.dims)[-2:] == [128, 128]]
    assert not dense


@pytest.mark.parametrize("name", FUSED_FILES)
def test_unchanged_weights_are_kept_bit_for_bit(name):
    original, _, done = optimized(name)
    before = {tensor.name: tensor for tensor in original.graph.initializer}
    common = [t for t in done.model.graph.initializer if t.name in before]
    assert common
    for tensor in common:
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(tensor),
            onnx.numpy_helper.to_array(before[tensor.name]),
        )


# ----------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", FUSED_FILES)
def test_expanded_equals_the_original(name):
    original, _, done = optimized(name)
    expanded = expand_model(done.model)
    onnx.checker.check_model(expanded, full_check=True)
    assert not any(node.domain == "stof" for node in expanded.graph.node)
    left, right = session(original), session(expanded)
    sizes = ((2, 20),) if "static" in name else SIZES
    for batch, sequence in sizes:
        for padding in PADDINGS:
            feeds = _feeds(original, batch, sequence, padding)
            expected, actual = left.run(None, feeds), right.run(None, feeds)
            assert_close(expected, actual, TOLERANCE[MANIFEST[name]["dtype"]])


def _feeds(model: onnx.ModelProto, batch: int, sequence: int, padding: str):
    rng = np.random.default_rng(batch * sequence)
    # A memory is longer than the queries, except at the largest size, where it is as long.
    lengths = {"batch": batch, "sequence": sequence}
    lengths["memory_sequence"] = sequence + 5 if sequence < 128 else sequence
    feeds = {}
    for value in model.graph.input:
        shape = [lengths.get(d, d) for d in _dims(value.type.tensor_type)]
        if "mask" in value.name:
            feeds[value.name] = padding_values(shape, padding)
        elif value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            feeds[value.name] = rng.integers(0, VOCABULARY, shape)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


# -------------------------------------------------------------------------------------- public API


def test_an_optimized_model_is_not_optimized_again(tmp_path):
    done = optimized("sliding_window_sdpa_dynamo.onnx").done
    with pytest.raises(InputError, match="already contains stof nodes"):
        stof_onnx.optimize(done.model)
    path = tmp_path / "optimized.onnx"
    onnx.save(done.model, path)
    with pytest.raises(InputError, match="already contains stof nodes") as error:
        stof_onnx.optimize(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["causal_window_sdpa_dynamo.onnx", "gpt2_sdpa_dynamo.onnx", "bert_fp16_sdpa_dynamo.onnx"],
)
def test_an_expanded_model_can_be_optimized_again(name):
    # What the error above tells the user to do.
    first = optimized(name).done
    again = rewrite(expand_model(first.model))
    assert not [b.reason for b in again.blocks if isinstance(b, RefusedBlock)]
    assert [b.kind.name for b in again.blocks] == [b.kind.name for b in first.blocks]


def test_a_model_without_attention_is_returned_as_it_is():
    original, _, done = optimized("mlp_dynamo.onnx")
    assert done.model is original
    assert done.blocks == ()


def test_initializers_that_are_inputs_too_are_no_constants():
    # torch.onnx.export(keep_initializers_as_inputs=True): a caller may feed other weights.
    model = onnx.load(MODELS / "bert_sdpa_torchscript.onnx")
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)
    done = rewrite(model)
    assert [isinstance(block, FusedBlock) for block in done.blocks] == [True, True]
    expanded = expand_model(done.model)
    assert {i.name for i in expanded.graph.input} == {i.name for i in model.graph.input}
