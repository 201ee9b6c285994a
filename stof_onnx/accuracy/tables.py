"""Lengths that a model's constants suggest, for models that run at few others.

A vision tower takes images of one size, an audio encoder recordings of one length: that of its
table of positions, times the strides of the convolutions before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from stof_onnx.accuracy.domains import graph_inputs

# Weights of products: their axes are features.
_WEIGHTED = frozenset(["MatMul", "Gemm", "Conv", "ConvTranspose", "LayerNormalization"])
_SHAPED = frozenset(["Reshape", "Expand"])
_LONGEST = 4096
# Without a convolution in front, longer ones are rather vocabularies and features than positions.
_LONGEST_PLAIN = 1024
# Tokens in front of the patches: class and distillation tokens, and registers.
_EXTRA_TOKENS = (0, 1, 2, 5)
_MOST = 24


def suggested_lengths(model: ModelProto) -> tuple[int, ...]:
    """Lengths at which ``model`` may run if it refuses usual ones, the likeliest first.

    Args:
        model: of standard operators.
    """
    rows = sorted(set(_table_axes(model)))
    strides = {stride for stride in _strides(model) if stride > 1}
    found: dict[int, None] = {}
    for stride in sorted(strides, reverse=True):
        for count in rows:
            for extra in _EXTRA_TOKENS:
                side = math.isqrt(max(count - extra, 0))
                if side > 1 and side * side == count - extra:
                    found[side * stride] = None
            found[count * stride] = None
    found.update(dict.fromkeys(count for count in rows if count <= _LONGEST_PLAIN))
    return tuple(length for length in found if length <= _LONGEST)[:_MOST]


def _table_axes(model: ModelProto) -> Iterator[int]:
    """The sizes of constant tables, without those of weights, and of shapes left by tracing."""
    weights = {
        name for node in model.graph.node if node.op_type in _WEIGHTED for name in node.input[1:]
    }
    targets = {node.input[1] for node in model.graph.node if node.op_type in _SHAPED}
    for name, tensor in _constants(model):
        if name in targets:
            yield from (int(size) for size in numpy_helper.to_array(tensor).flat if size > 1)
        elif len(tensor.dims) > 1 and name not in weights:
            # The last axis of a table of embeddings holds features; that of a mask is like
            # the one before it.
            yield from (dim for dim in tensor.dims[:-1] if dim > 1)


def _constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    yield from ((tensor.name, tensor) for tensor in model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def _strides(model: ModelProto) -> Iterator[int]:
    """How much shorter each chain of convolutions makes an input."""
    strides = {value.name: 1 for value in graph_inputs(model)}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] in strides:
            stride = strides[node.input[0]] * _stride(node)
            yield stride
            strides[node.output[0]] = stride
        elif node.input and node.input[0] in strides and len(node.output) == 1:
            strides[node.output[0]] = strides[node.input[0]]


def _stride(node: NodeProto) -> int:
    return next((int(a.ints[0]) for a in node.attribute if a.name == "strides" and a.ints), 1)
