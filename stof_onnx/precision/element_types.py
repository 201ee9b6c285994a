"""The type of each tensor of a model, without its weights being copied."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from stof_onnx.ir.nesting import subgraphs

# Initializers up to this many bytes take part in inference with their values.
_SMALL = 1024
_DEFAULT_DOMAINS = ("", "ai.onnx")
# From this IR version on an initializer that is an input too is only a default.
_DEFAULTS_SINCE = 4


def is_standard(node: NodeProto) -> bool:
    """Whether a node's operator is one of ONNX itself."""
    return node.domain in _DEFAULT_DOMAINS


def default_opset(model: ModelProto) -> int:
    """Version of ONNX's own operators that a model imports."""
    return next(entry.version for entry in model.opset_import if entry.domain in _DEFAULT_DOMAINS)


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """The initializers that no caller can override, by name."""
    inputs = {value.name for value in model.graph.input}
    overridable = inputs if model.ir_version >= _DEFAULTS_SINCE else set()
    return {t.name: t for t in model.graph.initializer if t.name not in overridable}


def element_types(model: ModelProto) -> dict[str, int]:
    """The element type of each tensor of the main graph, as far as it is known.

    Outputs of operators that aren't ONNX's own are taken to be float32 where nothing declares
    them.
    """
    graph = infer(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.HasField("tensor_type")
    }
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def infer(model: ModelProto, *, strict: bool = False) -> ModelProto:
    """The model without large weights, with the types that ONNX infers.

    Args:
        model: not changed.
        strict: whether contradictions are errors.

    Raises:
        onnx.shape_inference.InferenceError: if strict, at the first contradiction.
    """
    light = _without_weights(model)
    try:
        return onnx.shape_inference.infer_shapes(light, check_type=strict, strict_mode=strict)
    except onnx.shape_inference.InferenceError:
        if strict:
            raise
        return light


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside its nodes, at any depth."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def _without_weights(model: ModelProto) -> ModelProto:
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "types"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    named = {tensor.name for tensor in model.graph.initializer}
    graph.value_info.extend(v for v in model.graph.value_info if v.name not in named)
    declared = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(_typed(tensor.name, tensor.data_type, list(tensor.dims)))
    foreign = (node for node in graph.node if not is_standard(node))
    for name in (name for node in foreign for name in node.output if name):
        if name not in declared:
            graph.value_info.append(_typed(name, TensorProto.FLOAT, None))
    return light


def _typed(name: str, elem_type: int, dims: list[int] | None) -> ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, elem_type, dims)
