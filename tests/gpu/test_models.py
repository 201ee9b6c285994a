"""Attention nodes of optimized models, run alone through the plugin on the models' own tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from stof_onnx.ir.expr.build import FALSE
from stof_onnx.ir.operators.masked_attention import (
    OP_TYPE,
    MaskedAttention,
    node_attributes,
)
from stof_onnx.ir.operators.registry import DOMAIN
from tests.ir.attention_cases import Array

pytestmark = pytest.mark.gpu

MODELS = Path(__file__).parents[1] / "models"
NAMES = (
    "bert_sdpa_dynamo",
    "bert_fp16_sdpa_dynamo",
    "gpt2_eager_torchscript",
    "modernbert_sdpa_dynamo",
    "bert_bigbird_sdpa_dynamo",
    "cross_attention_sdpa_dynamo",
    "causal_memory_sdpa_dynamo",
)
SIZES = (
    {"batch": 2, "sequence": 20, "memory_sequence": 33},
    {"batch": 3, "sequence": 65, "memory_sequence": 127},
)
# Of the largest value. ONNX Runtime's own float32 products round differently; with float16 the
# expanded node rounds weights to float16 as the kernel does, but sums them in another order.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 4e-3}


@pytest.mark.parametrize("name", NAMES)
def test_nodes_compute_what_their_expansion_does(name: str) -> None:
    from stof_onnx.api import optimize
    from stof_onnx.expansion import expand_model
    from tests.gpu.harness import device_target, make_cache

    model = optimize(
        MODELS / f"{name}.onnx", targets=[device_target().name], check=False, cache=make_cache()
    ).model
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    assert any(node.op_type == OP_TYPE for node in nodes)
    expanded = expand_model(model)
    for sizes in SIZES:
        feeds = _feeds(model, sizes, with_empty_rows=not _round_scores(nodes))
        _check_nodes(nodes, _tensors(model, expanded, nodes, feeds))


def _check_nodes(nodes: list[onnx.NodeProto], tensors: dict[str, Array]) -> None:
    """Run each node on the tensors; outputs that the expansion has no use for join them."""
    from tests.gpu.harness import Engine, to_device

    for node in nodes:
        inputs = [to_device(tensors[name]) for name in node.input]
        outputs = Engine(node.op_type, node_attributes(node)).run(inputs)
        for name, output in zip(node.output, outputs, strict=True):
            got = output.cpu().numpy()
            if node.op_type != OP_TYPE:
                tensors[name] = got
                continue
            wanted = tensors[name]
            assert got.dtype == wanted.dtype
            size = float(np.nanmax(np.abs(wanted)))
            np.testing.assert_allclose(
                got, wanted, rtol=0, atol=TOLERANCE[got.dtype] * size, err_msg=node.name
            )


def _round_scores(nodes: list[onnx.NodeProto]) -> bool:
    """Whether a row without keys yields the softmax of scores that float16 has rounded.

    ONNX Runtime adds float16 numbers as float32 on a CPU and keeps them so, which makes such a
    row another one; tests/gpu/test_masked_attention.py covers the rounding.
    """
    records = (
        MaskedAttention.from_attributes(node_attributes(node), node.name)
        for node in nodes
        if node.op_type == OP_TYPE
    )
    # Of pairs that are hidden twice nothing is left to round.
    once = (replace(record, mask=replace(record.mask, again=FALSE)) for record in records)
    return any(record.empty_row() == "softmax" for record in once)


def _feeds(
    model: onnx.ModelProto, sizes: Mapping[str, int], *, with_empty_rows: bool
) -> dict[str, Array]:
    """Ids, masks whose rows are padded right, left and wholly, and normal numbers."""
    rng = np.random.default_rng(7)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
        elif "mask" in value.name:
            mask = np.ones(shape, np.int64)
            mask[0, shape[1] * 2 // 3 :] = 0
            mask[1, : shape[1] // 3] = 0
            if with_empty_rows:
                mask[2:] = 0
            feeds[value.name] = mask
        else:
            feeds[value.name] = rng.integers(1, 100, shape)
    return feeds


def _tensors(
    model: onnx.ModelProto,
    expanded: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    feeds: Mapping[str, Array],
) -> dict[str, Array]:
    """What ONNX Runtime computes for the nodes' inputs and outputs, and the constants."""
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(expanded)
    computed = {name for node in exposed.graph.node for name in node.output}
    wanted = [n for node in nodes for n in (*node.input, *node.output) if n in computed]
    del exposed.graph.output[:]
    names = list(dict.fromkeys(wanted))
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    tensors = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    tensors.update((t.name, numpy_helper.to_array(t)) for t in model.graph.initializer)
    return {**feeds, **tensors}
