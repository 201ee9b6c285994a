"""Turn every stof node of a model back into standard ONNX operators."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.nesting import all_names, nested_nodes, reads
from stof_onnx.ir.operators.builder import Builder, ConstantPool
from stof_onnx.ir.operators.masked_attention import node_attributes
from stof_onnx.ir.operators.registry import DOMAIN, OPERATORS


def expand_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that runs anywhere and computes what the stof nodes are specified to.

    Args:
        model: not changed. Returned as it is if it has no stof node.

    Raises:
        MalformedNodeError: naming the stof node that breaks its specification.
    """
    _require_top_level(model.graph)
    if not any(node.domain == DOMAIN for node in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = _Constants({tensor.name: tensor for tensor in graph.initializer})
    prefix = _free_prefix(graph)
    pool = ConstantPool(prefix)
    nodes: list[onnx.NodeProto] = []
    for position, node in enumerate(graph.node):
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        builder = Builder(f"{prefix}{position}/", pool)
        _expand_node(node, builder, constants)
        nodes += builder.nodes
    kept = _needed(nodes, graph)
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(pool.initializers)
    _drop_unused_initializers(graph)
    entries = [entry for entry in result.opset_import if entry.domain != DOMAIN]
    del result.opset_import[:]
    result.opset_import.extend(entries)
    return result


class _Constants(Mapping[str, Array]):
    """Values of initializers, decoded when they are asked for."""

    def __init__(self, tensors: dict[str, onnx.TensorProto]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        array: Array = numpy_helper.to_array(self._tensors[name])
        return array

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def _expand_node(node: onnx.NodeProto, builder: Builder, constants: _Constants) -> None:
    name = node.name or f"{node.op_type} of {node.output[0]}"
    read = OPERATORS.get(node.op_type)
    if read is None:
        raise MalformedNodeError(
            f"node {name!r} has the unknown operator {node.op_type!r}",
            f"one of {sorted(OPERATORS)}",
            "use the release of stof-onnx that wrote the file, or a newer one",
        )
    operator = read(node_attributes(node), name)
    operator.expand(builder, list(node.input), list(node.output), constants, name)


def _require_top_level(graph: onnx.GraphProto) -> None:
    for node in nested_nodes(graph):
        if node.domain == DOMAIN:
            raise MalformedNodeError(
                f"node {node.name!r} of domain {DOMAIN} is inside an If, Loop or Scan",
                "stof nodes in the main graph only",
            )


def _free_prefix(graph: onnx.GraphProto) -> str:
    """A prefix that no name in the model has (it may have been expanded before)."""
    names = all_names(graph)
    prefix, count = "stof/expand/", 1
    while any(name.startswith(prefix) for name in names):
        count += 1
        prefix = f"stof/expand{count}/"
    return prefix


def _needed(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Without the nodes whose outputs nobody reads (tables that expansion ignores)."""
    wanted = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(reads(node))
    return kept[::-1]


def _drop_unused_initializers(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in reads(node)}
    # An initializer that is an input as well is the input's default.
    used |= {value.name for value in (*graph.input, *graph.output)}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) != len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
