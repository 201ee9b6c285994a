"""Element types behind com.microsoft operators, which ONNX's inference does not know.

For inference alone such a node is replaced by nodes that make outputs of the type, and of no
known shape, that the operator's outputs have:

    Y, Z = com.microsoft::Op(X, ...)   ->   Y = Reshape(X, unknown), Z = Reshape(X, unknown)
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

DOMAIN = "com.microsoft"
# The input whose type the outputs have, where it isn't the first.
_TYPED_BY = {"EmbedLayerNormalization": 2, "GatherBlockQuantized": 2}
# Outputs of a type of their own, by operator and position.
_FIXED = {("EmbedLayerNormalization", 1): TensorProto.INT32}
# Operators whose outputs have no input's type.
_UNKNOWN = frozenset({"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeMatMul"})
_SHAPE = "stof/unknown_shape"


def stand_ins(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, those of com.microsoft replaced; they need the input :func:`shape_input`."""
    result: list[onnx.NodeProto] = []
    for node in nodes:
        position = _TYPED_BY.get(node.op_type, 0)
        if node.domain != DOMAIN or node.op_type in _UNKNOWN or position >= len(node.input):
            result.append(node)
            continue
        source = node.input[position]
        for i, output in enumerate(node.output):
            if not output:
                continue
            fixed = _FIXED.get((node.op_type, i))
            typed = source
            if fixed is not None:
                typed = f"{_SHAPE}/{output}"
                result.append(helper.make_node("Cast", [source], [typed], to=fixed))
            result.append(helper.make_node("Reshape", [typed, _SHAPE], [output]))
    return result


def shape_input() -> onnx.ValueInfoProto:
    """The graph input that stands for unknown shapes."""
    return helper.make_tensor_value_info(_SHAPE, TensorProto.INT64, [None])
