"""The tensors of a model: where they are, how large they are, and what they are without data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx
from onnx import ModelProto, TensorProto

from stof_onnx.model_io.serialize import content_of, copy_field, fields_of, serialize

# protobuf refuses messages of 2 GiB and more.
PROTOBUF_LIMIT = 2**31 - 1
# The margin is for the graph around the weights.
EMBED_LIMIT = PROTOBUF_LIMIT - 2**26
# Not from `onnx.helper`: what it says about bfloat16 and float8 changed between releases.
_ITEM_BYTES = {
    TensorProto.DataType.Value(name): size
    for size, names in (
        (1, "BOOL INT8 UINT8 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ"),
        (2, "INT16 UINT16 FLOAT16 BFLOAT16"),
        (4, "INT32 UINT32 FLOAT"),
        (8, "INT64 UINT64 DOUBLE COMPLEX64"),
        (16, "COMPLEX128"),
    )
    for name in names.split()
}
_TYPED_DATA = (
    *("float_data", "double_data"),
    *("int32_data", "int64_data", "uint64_data"),
    "string_data",
)
# Initializers up to this many bytes are in an outline.
_SMALL = 1024
_PLACE_OF_DATA = {"raw_data", "data_location", "external_data", *_TYPED_DATA}


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model: initializers and attributes, of subgraphs too."""
    yield from _graph_tensors(model.graph)
    yield from function_tensors(model)


def function_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor in the bodies of a model's functions."""
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def external_entries(tensor: TensorProto) -> dict[str, str]:
    """Where a tensor's data is; empty if it is in the tensor itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return {}
    return {entry.key: entry.value for entry in tensor.external_data}


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's data as stored; 0 where the type isn't made of whole bytes."""
    return math.prod(tensor.dims) * _ITEM_BYTES.get(tensor.data_type, 0)


def stored_bytes(tensor: TensorProto) -> int:
    """About how many bytes a tensor takes in its model's file."""
    if tensor.HasField("raw_data"):
        # Counted from the shape where possible: reading the field copies it.
        return tensor_bytes(tensor) or len(tensor.raw_data)
    return tensor.ByteSize()


def needs_external_data(model: ModelProto, embed_limit: int = EMBED_LIMIT) -> bool:
    """Whether a model's tensors are too large for one protobuf message."""
    return sum(stored_bytes(tensor) for tensor in tensors(model)) > embed_limit


def is_sound(tensor: TensorProto) -> bool:
    """Whether a tensor is external data alone, or raw bytes alone and as many as its shape says."""
    if any(getattr(tensor, name) for name in _TYPED_DATA):
        return False
    if external_entries(tensor):
        return not tensor.HasField("raw_data")
    size = 0 if any(dim < 0 for dim in tensor.dims) else tensor_bytes(tensor)
    return size > 0 and tensor.HasField("raw_data") and len(tensor.raw_data) == size


def without_data(tensor: TensorProto) -> TensorProto:
    """A tensor of the same name, type and shape (and all else) that holds no data."""
    result = TensorProto()
    for field in fields_of(TensorProto):
        if field.name not in _PLACE_OF_DATA:
            copy_field(tensor, result, field)
    return result


def outline(model: ModelProto) -> ModelProto:
    """A copy of a model without its weights, for what only looks at its nodes."""

    def light(tensor: TensorProto) -> TensorProto | None:
        return without_data(tensor) if stored_bytes(tensor) > _SMALL else None

    return ModelProto.FromString(b"".join(map(content_of, serialize(model, light))))
