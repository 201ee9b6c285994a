"""The file format of a cached kernel.

Magic, length of the header (uint32, little-endian), header (JSON), image, and the SHA-256 of
all of it. The checksum is for damage, not for malice: whoever can write into the cache can
write a checksum, so :mod:`stof_onnx.jit.cache` also looks at who could have.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, fields
from typing import Any

from stof_onnx.jit.job import CompiledKernel, Resources

_MAGIC = b"STOFKRN1"
_PREFIX = struct.Struct("<8sI")
_DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedEntryError(ValueError):
    """Bytes that are not the entry they should be; the message says in what."""


def encode(kernel: CompiledKernel) -> bytes:
    """The file of a kernel; the same bytes for the same kernel."""
    record = asdict(kernel)
    del record["image"]
    header = json.dumps(record, sort_keys=True).encode("ascii")
    body = _PREFIX.pack(_MAGIC, len(header)) + header + kernel.image
    return body + hashlib.sha256(body).digest()


def decode(data: bytes, key: str) -> CompiledKernel:
    """The kernel of a file.

    Args:
        data: the whole file.
        key: what the kernel was looked up by.

    Raises:
        DamagedEntryError: the file is truncated, altered, of another format or of another key.
    """
    if len(data) < _PREFIX.size + _DIGEST_BYTES:
        raise DamagedEntryError("it is too short")
    magic, header_bytes = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise DamagedEntryError("it is not a cached kernel")
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise DamagedEntryError("its checksum does not fit")
    image_at = _PREFIX.size + header_bytes
    try:
        record = json.loads(body[_PREFIX.size : image_at])
        kernel = _kernel(record, body[image_at:])
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedEntryError("its header has another form") from error
    if kernel.key != key:
        raise DamagedEntryError("it is the entry of another kernel")
    return kernel


def _kernel(record: dict[str, Any], image: bytes) -> CompiledKernel:
    """Raises ValueError, TypeError or KeyError if the header isn't one of :func:`encode`."""
    resources = record.pop("resources")
    texts = {field.name for field in fields(CompiledKernel)} - {"image", "resources"}
    if set(record) != texts or not all(isinstance(text, str) for text in record.values()):
        raise ValueError
    if record["kind"] not in {"cubin", "ptx"} or not image:
        raise ValueError
    if resources is not None:
        resources = Resources(**resources)
        if not all(type(number) is int for number in asdict(resources).values()):
            raise ValueError
    if (resources is None) != (record["kind"] == "ptx"):
        raise ValueError
    return CompiledKernel(image=image, resources=resources, **record)
