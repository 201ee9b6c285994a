"""Between ONNX and onnx-graphsurgeon: import, export and walking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

# gs.Node and gs.Tensor carry no type information.
Node = Any
Tensor = Any


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """The model as a graph whose constants are all gs.Constant, in topological order.

    The model is not changed; large initializers are shared, not copied.
    """
    graph = gs.import_onnx(model)
    _apply_types(graph, _inferred_types(model))
    for node in list(graph.nodes):
        if node.op == "Constant" and node.domain in (None, "", "ai.onnx"):
            _fold_constant_node(node)
    graph.nodes = [n for n in graph.nodes if n.op != "Constant" or n.outputs]
    _resolve_constant_identities(graph)
    return graph.toposort()


# Initializers up to this many bytes take part in type inference with their values.
_SMALL = 1024


def _inferred_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each tensor, by ONNX's own inference.

    Large initializers enter as typed inputs, so that nothing big is copied.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "types"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            graph.initializer.append(tensor)
        else:
            info = onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(tensor.dims)
            )
            graph.input.append(info)
    inferred = onnx.shape_inference.infer_shapes(light, strict_mode=False)
    return {
        info.name: info.type.tensor_type.elem_type
        for info in inferred.graph.value_info
        if info.type.HasField("tensor_type")
    }


def _apply_types(graph: gs.Graph, types: dict[str, int]) -> None:
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, gs.Variable) and tensor.dtype is None and types.get(name):
            try:
                tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(types[name])
            except KeyError:
                continue


def _fold_constant_node(node: Node) -> None:
    """Turn the output of a Constant node into a gs.Constant with its users kept."""
    (name, value), *_ = node.attrs.items()
    output = node.outputs[0]
    values = value.values if name == "value" else np.asarray(value, _CONSTANT_DTYPES[name])
    node.outputs.clear()
    output.to_constant(values)


_CONSTANT_DTYPES = {
    "value_int": "int64",
    "value_ints": "int64",
    "value_float": "float32",
    "value_floats": "float32",
}


def _resolve_constant_identities(graph: gs.Graph) -> None:
    """TorchScript shares equal weights through Identity nodes; read the weight itself."""
    for node in graph.nodes:
        if node.op != "Identity" or not isinstance(node.inputs[0], gs.Constant):
            continue
        output, source = node.outputs[0], node.inputs[0]
        if output in graph.outputs:
            continue
        for user in list(output.outputs):
            for position, tensor in enumerate(user.inputs):
                if tensor is output:
                    user.inputs[position] = source


def export_model(graph: gs.Graph, original: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as a model with the original's IR version, producer and metadata.

    Nodes and tensors without users disappear.
    """
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = original.ir_version
    model.producer_name = original.producer_name
    model.producer_version = original.producer_version
    model.model_version = original.model_version
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    return model


def producer(tensor: Tensor) -> Node | None:
    """The node that makes a tensor; None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(graph: gs.Graph, tensor: Tensor) -> Iterator[Node]:
    """The nodes that read a tensor, each once."""
    seen: set[int] = set()
    for node in tensor.outputs:
        if id(node) not in seen:
            seen.add(id(node))
            yield node


def is_graph_output(graph: gs.Graph, tensor: Tensor) -> bool:
    """Whether a tensor is an output of the graph."""
    return any(tensor is output for output in graph.outputs)
