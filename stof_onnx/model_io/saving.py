"""Writing a model, all or nothing."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto, numpy_helper

from stof_onnx.ir.errors import OutputError
from stof_onnx.model_io.messages import PathLike, first_line
from stof_onnx.model_io.output_path import data_file, require_writable
from stof_onnx.model_io.serialize import Piece, content_of, serialize, size_of
from stof_onnx.model_io.tensors import (
    EMBED_LIMIT,
    PROTOBUF_LIMIT,
    needs_external_data,
    stored_bytes,
    without_data,
)

# Smaller initializers stay in the model file: shape arithmetic must be readable without the data.
_SMALLEST_EXTERNAL_TENSOR = 1024
# Aligned like `onnx` does it, so that a reader may map the file instead of copying it.
_EXTERNAL_ALIGNMENT = 4096


def save_model(model: ModelProto, path: PathLike, *, embed_limit: int = EMBED_LIMIT) -> None:
    """Write a model, all or nothing.

    The model goes to a temporary file in the target's directory and is renamed
    over the target at the end. If it is too large for one protobuf message, its
    initializers go to ``<path>.data``, written the same way.

    Args:
        model: the model; it is not changed.
        path: where to write. A symbolic link is followed, not replaced.
        embed_limit: bytes of tensor data above which external data is used.

    Raises:
        OutputError: the path can't be written. An existing file is then unchanged,
            and no temporary file stays behind.
    """
    require_writable(Path(path))
    target = Path(os.path.realpath(path))
    data = data_file(target)
    with contextlib.ExitStack() as cleanup:
        try:
            if not needs_external_data(model, embed_limit):
                new_model = _write_aside(serialize(model), target, cleanup)
                os.replace(new_model, target)
                return
            new_data = _temporary(data, cleanup)
            with new_data.open("wb") as stream:
                pieces = serialize(model, _Externaliser(stream, data.name).move)
                _flush(stream)
            new_model = _write_aside(pieces, target, cleanup)
            _publish_pair(new_data, data, new_model, target, cleanup)
        except (EncodeError, ValueError) as error:
            raise OutputError(
                f"the model can't be serialized: {first_line(error)}",
                "less than 2 GiB outside of its initializers",
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"'{path}' can't be written: {reason}") from error


def _temporary(target: Path, cleanup: contextlib.ExitStack) -> Path:
    """A new empty file beside ``target``, removed by ``cleanup`` unless renamed away.

    Its name is a short one, as a file system may have no room for the target's and more.
    Its permissions are those of the file that it is going to replace, or the ones
    that a plain ``open`` would give: ``mkstemp`` alone makes files private.
    """
    handle, name = tempfile.mkstemp(prefix=".stof-onnx.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    file = Path(name)
    cleanup.callback(file.unlink, missing_ok=True)
    if target.exists():
        mode = stat.S_IMODE(target.stat().st_mode)
    else:
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    file.chmod(mode)
    return file


def _write_aside(pieces: Iterable[Piece], target: Path, cleanup: contextlib.ExitStack) -> Path:
    pieces = list(pieces)
    size = sum(map(size_of, pieces))
    if size > PROTOBUF_LIMIT:
        raise EncodeError(f"it would have {size} bytes")
    file = _temporary(target, cleanup)
    with file.open("wb") as stream:
        for piece in pieces:
            stream.write(content_of(piece))
        _flush(stream)
    return file


def _flush(stream: BinaryIO) -> None:
    # Without this a power cut after the rename can leave an empty file.
    stream.flush()
    os.fsync(stream.fileno())


def _publish_pair(
    new_data: Path, data: Path, new_model: Path, target: Path, cleanup: contextlib.ExitStack
) -> None:
    """Rename data and model into place; if the second rename fails, undo the first."""
    old_data = None
    if data.exists():
        old_data = _temporary(data, cleanup)
        os.replace(data, old_data)
    try:
        os.replace(new_data, data)
        os.replace(new_model, target)
    except BaseException:
        data.unlink(missing_ok=True)
        if old_data is not None:
            os.replace(old_data, data)
        raise


class _Externaliser:
    """Writes the data of large initializers to a file, as they are serialized.

    Args:
        stream: the data file.
        location: its name, as the model file gives it.
    """

    def __init__(self, stream: BinaryIO, location: str) -> None:
        self._stream = stream
        self._location = location

    def move(self, tensor: TensorProto) -> TensorProto | None:
        """The tensor that refers to its data; None if it stays in the model file."""
        if stored_bytes(tensor) < _SMALLEST_EXTERNAL_TENSOR:
            return None
        content = _raw_data(tensor)
        if content is None:
            return None
        stream = self._stream
        stream.write(b"\0" * (-stream.tell() % _EXTERNAL_ALIGNMENT))
        place = {"location": self._location, "offset": stream.tell(), "length": len(content)}
        stream.write(content)
        moved = without_data(tensor)
        moved.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            moved.external_data.add(key=key, value=str(value))
        return moved


def _raw_data(tensor: TensorProto) -> bytes | None:
    """A tensor's data as bytes; None of strings, and where `onnx` can't keep the type."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    if tensor.data_type == TensorProto.STRING:
        return None
    # Data in a typed field (`float_data`): the same values as bytes.
    raw = numpy_helper.from_array(numpy_helper.to_array(tensor))
    return bytes(raw.raw_data) if raw.data_type == tensor.data_type else None
