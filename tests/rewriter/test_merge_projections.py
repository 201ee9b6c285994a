"""Projections of one tensor become one product where a stof node reads them directly."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from tests.rewriter.graphs import Attention, Graph, Value, add_block, build
from tests.rewriter.running import check_graph

OUTPUT_PROJECTION = 1


def products(attention: Attention) -> int:
    """Projections left in front of the stof node of a fused graph."""
    model = check_graph(build(attention), 1e-5).model
    assert any(node.domain == "stof" for node in model.graph.node)
    return operators(model)["MatMul"] - OUTPUT_PROJECTION


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def on_heads(g: Graph, x: Value) -> Value:
    return g.op("Sigmoid", x)


def use(g: Graph, x: Value) -> Value:
    g.output(g.op("ReduceMax", x, keepdims=0), [], "float32", "extra")
    return x


@pytest.mark.parametrize(
    ("attention", "left"),
    [
        pytest.param(Attention(), 1, id="all three"),
        pytest.param(Attention(heads=4, kv_heads=2), 1, id="of different widths"),
        pytest.param(Attention(value_dim=6), 1, id="value of another head dim"),
        pytest.param(Attention(heads=1, kv_heads=1), 1, id="one head"),
        pytest.param(Attention(keys="memory"), 2, id="key and value of a memory"),
        pytest.param(Attention(batch=2, queries=5), 1, id="static"),
        # near misses
        pytest.param(Attention(hooks={"key": on_heads}), 2, id="key goes through something"),
        pytest.param(
            Attention(hooks={"key": on_heads, "query": on_heads}), 3, id="value alone is left"
        ),
        pytest.param(Attention(packing="split"), 1, id="packed already"),
        pytest.param(Attention(packing="inputs"), 0, id="no projections"),
        pytest.param(Attention(hooks={"query": use}), 2, id="query is used elsewhere"),
    ],
)
def test_projections_that_are_left(attention, left):
    assert products(attention) == left


def test_layers_that_share_weights_share_the_joined_ones():
    g = Graph()
    attention = Attention()
    add_block(g, attention, "first")
    add_block(g, attention, "second")
    model = check_graph(g, 1e-5).model
    # Each block has weights of its own here, so each has its own joined ones.
    joined = [t for t in model.graph.initializer if t.name.endswith("query+key+value/weight")]
    assert len(joined) == 2
    names = {name for node in model.graph.node for name in node.input}
    assert all(tensor.name in names for tensor in model.graph.initializer)


def test_weights_that_were_joined_are_not_kept():
    graph = build(Attention())
    before = {tuple(t.dims) for t in graph.model().graph.initializer if len(t.dims) == 2}
    after = [
        tuple(t.dims) for t in check_graph(graph, 1e-5).model.graph.initializer if len(t.dims) == 2
    ]
    assert len(after) == 2
    assert max(columns for _, columns in after) == 3 * max(columns for _, columns in before)
