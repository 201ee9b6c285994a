"""Float32 copies of a lowered model: one that rounds as it does, and one that doesn't.

ONNX Runtime runs float16 operators without a kernel for the CPU in float32, and leaves out the
rounding between two of them; it has no bfloat16 kernels at all. So neither shows what a GPU would
compute. In the rounding copy every operator runs in float32, as tensor cores accumulate, and a
pair of Casts rounds its result. Overflows appear as infinities, as they would on a GPU.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from stof_onnx.ir.nesting import all_names, subgraphs
from stof_onnx.ir.operators.registry import DOMAIN
from stof_onnx.precision.element_types import all_graphs, element_types
from stof_onnx.precision.shell import shell
from stof_onnx.precision.target import Precision

# Results that are some of the inputs' numbers, which are rounded already.
_MOVING = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
_FLOAT = TensorProto.FLOAT
# Attributes that hold a tensor type, in Cast, random generators, Attention and normalizations.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "softmax_precision", "stash_type", "output_dtype"})
# Those of stof nodes.
_STOF_TYPES = frozenset({"dtype", "score_dtype"})


def rounded_copy(model: ModelProto, precision: Precision) -> ModelProto:
    """A float32 model that rounds to a 16-bit type wherever ``model`` has a tensor of it.

    Args:
        model: of standard operators; not changed.
        precision: the 16-bit type that it uses in its main graph.
    """
    types = element_types(model)
    names = all_names(model.graph)
    result = shell(model)
    result.graph.initializer.extend(model.graph.initializer)
    result.graph.value_info.extend(model.graph.value_info)
    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        added = [node]
        for position, name in enumerate(original.output):
            if types.get(name) != precision.elem_type or original.op_type in _MOVING:
                continue
            exact, half = (_fresh(names, f"{name}/{what}") for what in ("exact", "half"))
            node.output[position] = exact
            added += [
                helper.make_node("Cast", [exact], [half], to=precision.elem_type),
                helper.make_node("Cast", [half], [name], to=_FLOAT),
            ]
        _widen_attributes(node, precision.elem_type)
        result.graph.node.extend(added)
    for graph in all_graphs(result.graph):
        _widen(graph, precision.elem_type)
    return result


def float32_twin(model: ModelProto, precision: Precision) -> ModelProto:
    """A lowered model with its 16-bit tensors, those of stof nodes too, in float32.

    Two models that differ by a rewrite alone have twins that agree to float32's rounding, which
    shows errors that 16-bit rounding would hide.

    Args:
        model: with or without stof nodes; not changed.
        precision: the 16-bit type that it uses.
    """
    result = shell(model)
    result.graph.initializer.extend(model.graph.initializer)
    result.graph.value_info.extend(model.graph.value_info)
    result.graph.node.extend(model.graph.node)
    for node in result.graph.node:
        _widen_attributes(node, precision.elem_type)
        if node.domain == DOMAIN:
            _widen_stof_node(node, precision)
    for graph in all_graphs(result.graph):
        _widen(graph, precision.elem_type)
    return result


def _widen_stof_node(node: NodeProto, precision: Precision) -> None:
    for attribute in node.attribute:
        if attribute.name in _STOF_TYPES and attribute.s == precision.name.encode():
            attribute.s = b"float32"


def _widen(graph: GraphProto, half: int) -> None:
    """Make everything in a graph float32 that was of a 16-bit type."""
    for tensor in graph.initializer:
        _widen_tensor(tensor, half)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = _FLOAT


def _widen_attributes(node: NodeProto, half: int) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _widen_tensor(attribute.t, half)
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == half:
            attribute.i = _FLOAT
    for graph in subgraphs(node):
        for inner in graph.node:
            _widen_attributes(inner, half)


def _widen_tensor(tensor: TensorProto, half: int) -> None:
    if tensor.data_type != half:
        return
    values = numpy_helper.to_array(tensor)
    if half == TensorProto.BFLOAT16 and values.dtype.itemsize == 2:
        # Older onnx returns the bits as integers; they are the upper half of a float32.
        bits = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << 16
        values = bits.view(np.float32).reshape(values.shape)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _fresh(names: set[str], name: str) -> str:
    while name in names:
        name += "'"
    names.add(name)
    return name
