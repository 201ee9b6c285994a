"""Plans to bytes, to JSON, to the node's attribute, and back (docs/plan.md)."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.plan.documents import from_document, to_document
from stof_onnx.ir.plan.layout import REBUILD, Cursor, unsound
from stof_onnx.ir.plan.payload import PLAN
from stof_onnx.ir.plan.records import Plan
from stof_onnx.ir.plan.soundness import check_document

MAGIC = b"STOFPLAN"
VERSION = 1
ATTRIBUTE = "plan"
"""Name of the node's attribute."""

_HEADER = struct.Struct("<8sIIQII")  # magic, version, compression, size, CRC-32, 0
_RAW_DEFLATE = 1
_MAX_SIZE = 2**30
_MAX_RATIO = 1032  # 258 bytes from 2 bits is the most that DEFLATE can do
_WINDOW_BITS = -15  # zlib's way to say: raw, the largest window


def encode(plan: Plan) -> bytes:
    """The content of a node's `plan` attribute; the same for equal plans.

    Raises:
        MalformedNodeError: the plan isn't sound.
    """
    document = to_document(plan)
    check_document(document)
    payload = bytearray()
    PLAN.write(document, payload)
    if len(payload) > _MAX_SIZE:
        raise MalformedNodeError(f"a plan of {len(payload)} bytes", f"at most {_MAX_SIZE}")
    return pack(bytes(payload))


def decode(data: bytes) -> Plan:
    """The plan of a node's `plan` attribute.

    Images and kernels that no launch uses are dropped.

    Raises:
        MalformedNodeError: damaged, of another version, or not sound.
    """
    cursor = Cursor(unpack(data))
    document = PLAN.read(cursor, "")
    if cursor.left:
        raise unsound("", f"followed by {cursor.left} bytes", "nothing after it")
    check_document(document)
    return from_document(document)


def pack(payload: bytes) -> bytes:
    """The payload in its envelope."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, _WINDOW_BITS)
    compressed = compressor.compress(payload) + compressor.flush()
    checksum = zlib.crc32(payload)
    header = _HEADER.pack(MAGIC, VERSION, _RAW_DEFLATE, len(payload), checksum, 0)
    return header + compressed


def unpack(data: bytes) -> bytes:
    """The payload of an envelope.

    Raises:
        MalformedNodeError: not an envelope of this version, or damaged.
    """
    # Magic and version come first in every version, so that they are looked at first.
    if not data.startswith(MAGIC) or len(data) < 12:
        raise MalformedNodeError(
            f"a plan of {len(data)} bytes that starts with {data[:8]!r}", f"{MAGIC!r}", REBUILD
        )
    (version,) = struct.unpack_from("<I", data, 8)
    if version != VERSION:
        raise MalformedNodeError(f"plan of version {version}", f"{VERSION}", REBUILD)
    if len(data) < _HEADER.size:
        raise unsound("the header", f"of {len(data)} bytes", f"{_HEADER.size}")
    _, _, compression, size, checksum, reserved = _HEADER.unpack_from(data)
    compressed = data[_HEADER.size :]
    if compression != _RAW_DEFLATE:
        raise unsound("compression", f"{compression}", f"{_RAW_DEFLATE} (raw DEFLATE)")
    if reserved:
        raise unsound("the last word of the header", f"{reserved}", "0")
    if size > min(_MAX_SIZE, _MAX_RATIO * len(compressed)):
        came = f"of {size} bytes, compressed to {len(compressed)}"
        raise unsound("a payload", came, f"at most {_MAX_SIZE} and {_MAX_RATIO} to 1")
    payload = _inflate(compressed, size)
    if zlib.crc32(payload) != checksum:
        raise unsound("", f"of CRC-32 {zlib.crc32(payload):#010x}", f"{checksum:#010x}")
    return payload


def _inflate(compressed: bytes, size: int) -> bytes:
    decompressor = zlib.decompressobj(_WINDOW_BITS)
    try:
        # One byte more than allowed tells a stream that is too long from one that is right.
        payload = decompressor.decompress(compressed, size + 1)
    except zlib.error as error:
        raise unsound("compressed bytes", f"that are damaged ({error})") from error
    if len(payload) > size or not decompressor.eof:
        came = f"that yield {'more' if len(payload) > size else 'less'} than {size} bytes"
        raise unsound("compressed bytes", came, "what the header says")
    if len(payload) < size:
        raise unsound("compressed bytes", f"that yield {len(payload)} bytes", f"{size}")
    if decompressor.unused_data:
        came = f"followed by {len(decompressor.unused_data)} others"
        raise unsound("compressed bytes", came, "nothing after them")
    return payload


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as values that JSON can write: the payload of docs/plan.md, field by field.

    Images are base64, floats are text; equal plans give equal values.

    Raises:
        MalformedNodeError: the plan isn't sound.
    """
    document = to_document(plan)
    check_document(document)
    images = [base64.b64encode(image).decode("ascii") for image in document["images"]]
    return {"version": VERSION, **document, "images": images}


def from_json(record: Mapping[str, Any]) -> Plan:
    """The plan that :func:`to_json` wrote.

    Raises:
        MalformedNodeError: another version, or not a sound plan.
    """
    document = dict(record)
    version = document.pop("version", None)
    if version != VERSION:
        raise MalformedNodeError(f"plan of version {version}", f"{VERSION}", REBUILD)
    images = document.get("images")
    if not isinstance(images, list):
        raise unsound("images", f"{images!r}", "a list of base64 texts")
    try:
        document["images"] = [base64.b64decode(image, validate=True) for image in images]
    except (TypeError, ValueError, binascii.Error) as error:
        raise unsound("images", f"that can't be read ({error})", "base64 texts") from error
    check_document(document)
    return from_document(document)


def as_array(data: bytes) -> npt.NDArray[np.int8]:
    """What :func:`encode` returned as INT8 [bytes]; a copy, so that it can be written to."""
    return np.frombuffer(data, np.int8).copy()


def as_tensor(data: bytes) -> TensorProto:
    """What :func:`encode` returned as the tensor of a node's attribute: INT8 [bytes]."""
    return numpy_helper.from_array(as_array(data), ATTRIBUTE)


def plan_bytes_of(value: TensorProto | npt.NDArray[Any]) -> bytes:
    """The bytes of a node's `plan` attribute, for :func:`decode`.

    Args:
        value: INT8 [bytes], as ONNX's tensor or as an array.

    Raises:
        MalformedNodeError: another type or rank.
    """
    if isinstance(value, TensorProto):
        if value.data_type != TensorProto.INT8 or len(value.dims) != 1:
            kind = onnx.helper.tensor_dtype_to_string(value.data_type)
            came = f"attribute {ATTRIBUTE!r} of type {kind}, shape {list(value.dims)}"
            raise MalformedNodeError(came, "INT8 of rank 1", REBUILD)
        try:
            value = numpy_helper.to_array(value)
        except ValueError as error:
            came = f"attribute {ATTRIBUTE!r} that can't be read ({error})"
            raise MalformedNodeError(came, "INT8 of rank 1", REBUILD) from error
    if not isinstance(value, np.ndarray) or value.dtype != np.int8 or value.ndim != 1:
        kind = getattr(value, "dtype", type(value).__name__)
        came = f"attribute {ATTRIBUTE!r} of type {kind}, shape {list(np.shape(value))}"
        raise MalformedNodeError(came, "INT8 of rank 1", REBUILD)
    return value.tobytes()
