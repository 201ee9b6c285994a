"""Parse a model file in pieces.

``ModelProto.ParseFromString`` wants the whole file as one bytes object beside the model
that it makes of it: twice the weights. A serialized message is a sequence of records, and
parsing them a few at a time gives the same message (protobuf's "last one wins, repeated
fields are appended, messages are merged"), so only the largest tensor is in memory twice.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, TensorProto

# Records are parsed together up to this many bytes.
_RUN = 2**22
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10

# What to do inside a message, by field number: look inside the field too, or leave it out (None).
Inside = Mapping[int, "Inside | None"]


def _number(message: type[Message], field: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[field].number)


_GRAPH = _number(ModelProto, "graph")
_WHOLE: Inside = {_GRAPH: {}}
_WITHOUT_WEIGHTS: Inside = {
    _GRAPH: {_number(GraphProto, "initializer"): {_number(TensorProto, "raw_data"): None}}
}


class _Record(NamedTuple):
    """One record of a message: where it is in the file, and what."""

    start: int
    payload: int
    end: int
    field: int
    wire_type: int


def parse_model(stream: BinaryIO, size: int, *, weights: bool = True) -> ModelProto:
    """Parse the first ``size`` bytes of a seekable stream.

    Args:
        stream: at its start.
        size: bytes of the serialized model.
        weights: False to leave the graph's initializers without their ``raw_data``, which is
            then not even read.

    Raises:
        DecodeError: the bytes are not a complete message.
        OSError: the stream can't be read.
    """
    model = ModelProto()
    _merge(model, stream, 0, size, _WHOLE if weights else _WITHOUT_WEIGHTS)
    return model


def _merge(message: Any, stream: BinaryIO, start: int, end: int, inside: Inside) -> None:
    """Merge the records between two offsets into a message."""
    position = start
    while position < end:
        record = _record(stream, position, end)
        is_apart = record.wire_type == _LENGTH and record.field in inside
        if is_apart or record.end - start > _RUN:
            _merge_run(message, stream, start, record.start)
            start = record.start
        if is_apart:
            rules = inside[record.field]
            if rules is not None:
                child = _child(message, record.field)
                _merge(child, stream, record.payload, record.end, rules)
            start = record.end
        position = record.end
    _merge_run(message, stream, start, end)


def _child(message: Any, number: int) -> Any:
    """The message to merge a record of this field into."""
    field = message.DESCRIPTOR.fields_by_number[number]
    value = getattr(message, field.name)
    if hasattr(value, "add"):
        return value.add()
    value.SetInParent()
    return value


def _merge_run(message: Any, stream: BinaryIO, start: int, end: int) -> None:
    if start == end:
        return
    stream.seek(start)
    content = stream.read(end - start)
    if len(content) != end - start:
        raise DecodeError("the file became shorter while it was read")
    message.MergeFromString(content)


def _record(stream: BinaryIO, start: int, end: int) -> _Record:
    """The record at an offset, whose payload isn't read."""
    stream.seek(start)
    key, header = _varint(stream)
    length = 0
    wire_type = key & 7
    if wire_type == _VARINT:
        length = _varint(stream)[1]
    elif wire_type == _FIXED64:
        length = 8
    elif wire_type == _FIXED32:
        length = 4
    elif wire_type == _LENGTH:
        length, more = _varint(stream)
        header += more
    else:
        # A group, or no record at all: protobuf itself looks at what is left.
        length = end - start - header
    payload = start + header
    if payload + length > end:
        raise DecodeError(f"a record at byte {start} ends after its message")
    return _Record(start, payload, payload + length, key >> 3, wire_type)


def _varint(stream: BinaryIO) -> tuple[int, int]:
    """(value, bytes read) of a varint."""
    value = 0
    for count in range(_LONGEST_VARINT):
        byte = stream.read(1)
        if not byte:
            raise DecodeError("the message ends inside a number")
        value |= (byte[0] & 0x7F) << (7 * count)
        if byte[0] < 0x80:
            return value, count + 1
    raise DecodeError("a number has too many bytes")
