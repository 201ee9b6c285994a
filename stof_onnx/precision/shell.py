"""A model's surroundings, to put another body in."""

from __future__ import annotations

from google.protobuf.message import Message
from onnx import ModelProto


def shell(model: ModelProto) -> ModelProto:
    """A copy without nodes, weights, functions and the types of inner tensors.

    Field by field: protobuf can't copy a message over 2 GiB whole.
    """
    result = ModelProto()
    _copy_fields(model, result, ("graph", "functions"))
    _copy_fields(model.graph, result.graph, ("node", "initializer", "value_info"))
    return result


def _copy_fields(source: Message, target: Message, without: tuple[str, ...]) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name in without:
            continue
        field = getattr(target, descriptor.name)
        if hasattr(field, "MergeFrom"):
            field.MergeFrom(value)
        else:
            setattr(target, descriptor.name, value)
