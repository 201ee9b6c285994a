"""The precision a model computes in: what it means for running and comparing it.

ONNX Runtime has no bfloat16 kernels for the CPU, so such models are compared as
float32 copies. A copy proves the rewrite, not the rounding, of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper

_FLOAT = TensorProto.FLOAT
_BFLOAT16 = TensorProto.BFLOAT16
# Attributes that hold a tensor type, in Cast, random generators, Attention and normalizations.
_TYPE_ATTRIBUTES = frozenset(["to", "dtype", "softmax_precision", "stash_type", "output_dtype"])
# An operand's type is the type these compute in.
_ARITHMETIC = frozenset(
    ["Add", "Mul", "MatMul", "Gemm", "Conv", "LayerNormalization", "RMSNormalization"]
)


def runnable(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """A model that ONNX Runtime can run on the CPU, and what had to be changed.

    Args:
        model: an ONNX model; not modified.

    Returns:
        ``model`` itself and no notes, or a float32 copy of a bfloat16 model and a note.
    """
    if not _mentions_bfloat16(model):
        return model, ()
    copy = _copy(model)
    for graph in _graphs(copy.graph):
        _widen_graph(graph)
    for function in copy.functions:
        _widen_nodes(function.node)
    return copy, (
        "ONNX Runtime has no bfloat16 on the CPU: float32 copies of the models were compared",
    )


def computes_in_half(model: ModelProto) -> bool:
    """Whether a model computes in float16 somewhere, whatever the type of its outputs."""
    half = {
        tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16
    }
    for node in model.graph.node:
        if node.op_type == "Cast" and TensorProto.FLOAT16 in (a.i for a in node.attribute):
            return True
        if node.op_type in _ARITHMETIC and not half.isdisjoint(node.input):
            return True
    return False


def _copy(model: ModelProto) -> ModelProto:
    """Copy a model piece by piece: protobuf can't copy a message over 2 GiB whole."""
    copy = ModelProto()
    for source, target in ((model, copy), (model.graph, copy.graph)):
        for field, value in source.ListFields():
            if isinstance(value, GraphProto):
                continue
            if isinstance(value, (str, bytes, int)):
                setattr(target, field.name, value)
                continue
            for item in value:
                getattr(target, field.name).add().CopyFrom(item)
    return copy


def _mentions_bfloat16(model: ModelProto) -> bool:
    for graph in _graphs(model.graph):
        values = (*graph.input, *graph.output)
        if any(value.type.tensor_type.elem_type == _BFLOAT16 for value in values):
            return True
        if any(tensor.data_type == _BFLOAT16 for tensor in graph.initializer):
            return True
        if any(_node_mentions_bfloat16(node) for node in graph.node):
            return True
    return any(_node_mentions_bfloat16(node) for f in model.functions for node in f.node)


def _node_mentions_bfloat16(node: NodeProto) -> bool:
    return any(
        (attribute.HasField("t") and attribute.t.data_type == _BFLOAT16)
        or (attribute.name in _TYPE_ATTRIBUTES and attribute.i == _BFLOAT16)
        for attribute in node.attribute
    )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _widen_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(value.type)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == _BFLOAT16:
                attribute.i = _FLOAT


def _widen_type(value: TypeProto) -> None:
    if value.tensor_type.elem_type == _BFLOAT16:
        value.tensor_type.elem_type = _FLOAT


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == _BFLOAT16:
        array = numpy_helper.to_array(tensor)
        if array.dtype.itemsize == 2:
            # Older onnx returns the bits as integers; they are the upper half of a float32.
            bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
            array = bits.view(np.float32).reshape(array.shape)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
