"""Names and nodes in nested ONNX graphs (bodies of If, Loop and Scan)."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, also those that its subgraphs take from outside."""
    yield from node.input
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from reads(inner)
        yield from (output.name for output in graph.output)


def nested_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node inside the subgraphs of a graph, at any depth."""
    for node in graph.node:
        for inner in subgraphs(node):
            yield from inner.node
            yield from nested_nodes(inner)


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a tensor or node, subgraphs included."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    names |= {tensor.name for tensor in graph.initializer}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
        for inner in subgraphs(node):
            names |= all_names(inner)
    return names
