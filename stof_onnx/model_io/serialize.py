"""Serialize a model in pieces.

``ModelProto.SerializeToString`` makes one bytes object of the whole model, and needs another
one while it does: three times the weights. Here the model becomes a list of pieces, where
each large tensor is only referred to until it is written. Joined they are an ordinary
serialized ModelProto: the same fields in the same order, with minimal lengths.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

# Larger pieces are made again when they are written instead of being kept.
_KEPT = 2**16
_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = 0, 1, 2, 3, 4, 5

Replace = Callable[[TensorProto], TensorProto | None]
"""What is written in the place of a tensor; None for the tensor itself."""


class Later(NamedTuple):
    """A stretch of the serialized model that is made when it is asked for.

    Attributes:
        size: bytes.
        make: makes them.
    """

    size: int
    make: Callable[[], bytes]


Piece = bytes | Later


class Field(NamedTuple):
    """A field of a message type."""

    name: str
    number: int
    is_repeated: bool
    is_message: bool


@functools.cache
def fields_of(message_type: Any) -> tuple[Field, ...]:
    """The fields of a message type, in the order in which they are serialized."""
    empty = message_type()
    return tuple(
        Field(
            entry.name,
            entry.number,
            hasattr(getattr(empty, entry.name), "extend"),
            entry.message_type is not None,
        )
        for entry in sorted(message_type.DESCRIPTOR.fields, key=lambda entry: entry.number)
    )


def copy_field(source: Any, target: Any, field: Field) -> None:
    """Copy a field from one message to another of its type that doesn't have it."""
    if field.is_repeated:
        getattr(target, field.name).extend(getattr(source, field.name))
    elif source.HasField(field.name):
        if field.is_message:
            getattr(target, field.name).CopyFrom(getattr(source, field.name))
        else:
            setattr(target, field.name, getattr(source, field.name))


def size_of(piece: Piece) -> int:
    """Bytes of a piece."""
    return piece.size if isinstance(piece, Later) else len(piece)


def content_of(piece: Piece) -> bytes:
    """The bytes of a piece."""
    return piece.make() if isinstance(piece, Later) else piece


def serialize(
    model: ModelProto, replace: Replace | None = None, fields: tuple[str, ...] = ("initializer",)
) -> list[Piece]:
    """The pieces of a serialized model, which must not change until they are written.

    Args:
        model: the model.
        replace: is asked for each tensor in ``fields`` of the graph and its subgraphs.
        fields: names among "initializer" (of a graph), "t" and "tensors" (of an attribute).
    """
    return _Serializer(replace, fields if replace else ()).pieces(model)


class _Serializer:
    def __init__(self, replace: Replace | None, fields: tuple[str, ...]) -> None:
        self._replace = replace
        self._fields = fields

    def pieces(self, message: Any) -> list[Piece]:
        """The pieces of a message's content."""
        result: list[Piece] = []
        message_type: Any = type(message)
        for field in fields_of(message_type):
            if field.is_message:
                for item in _items(message, field):
                    result += self._record(field, item)
            elif field.name == "raw_data":
                result += _raw_data(message, field)
            else:
                alone = message_type()
                copy_field(message, alone, field)
                result.append(alone.SerializeToString())
        result.append(_unknown(UnknownFieldSet(message)))
        return [piece for piece in result if size_of(piece)]

    def _record(self, field: Field, item: Any) -> list[Piece]:
        """The pieces of one message in a field, with its tag and length."""
        if field.name in self._fields and self._replace is not None:
            item = self._replace(item) or item
        body = self.pieces(item) if _may_be_large(item) else [_whole(item)]
        size = sum(map(size_of, body))
        return [_tag(field.number, _LENGTH) + _varint(size), *body]


def _items(message: Any, field: Field) -> list[Any]:
    if field.is_repeated:
        return list(getattr(message, field.name))
    return [getattr(message, field.name)] if message.HasField(field.name) else []


def _may_be_large(item: Any) -> bool:
    """Whether a message may hold a large tensor in a place where one may be replaced."""
    if isinstance(item, TensorProto):
        return item.HasField("raw_data")
    if isinstance(item, NodeProto):
        return any(_may_be_large(attribute) for attribute in item.attribute)
    if isinstance(item, AttributeProto):
        return bool(item.HasField("t") or item.HasField("g") or item.tensors or item.graphs)
    return isinstance(item, GraphProto)


def _raw_data(tensor: TensorProto, field: Field) -> list[Piece]:
    if not tensor.HasField("raw_data"):
        return []
    content = tensor.raw_data
    header = _tag(field.number, _LENGTH) + _varint(len(content))
    if len(content) <= _KEPT:
        return [header, content]
    return [header, Later(len(content), lambda: tensor.raw_data)]


def _whole(item: Message) -> Piece:
    content = item.SerializeToString()
    return content if len(content) <= _KEPT else Later(len(content), item.SerializeToString)


def _unknown(fields: Any) -> bytes:
    """Fields that a newer version of ONNX wrote, which the installed one passes on."""
    result = b""
    for entry in fields:
        number, wire_type, data = entry.field_number, entry.wire_type, entry.data
        result += _tag(number, wire_type)
        if wire_type == _VARINT:
            result += _varint(data)
        elif wire_type == _GROUP:
            result += _unknown(data) + _tag(number, _END_GROUP)
        elif wire_type == _LENGTH:
            result += _varint(len(data)) + data
        else:
            result += data.to_bytes(8 if wire_type == _FIXED64 else 4, "little")
    return result


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
