"""Reading a model file, and the tests that it has to pass."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, external_data_helper

from stof_onnx.ir.errors import InputError
from stof_onnx.model_io.messages import PathLike, first_line
from stof_onnx.model_io.parse import parse_model
from stof_onnx.model_io.serialize import content_of, serialize
from stof_onnx.model_io.tensors import (
    PROTOBUF_LIMIT,
    external_entries,
    function_tensors,
    is_sound,
    tensor_bytes,
    tensors,
    without_data,
)

MIN_OPSET = 13
MAX_OPSET = 24

_DEFAULT_DOMAINS = ("", "ai.onnx")
# A serialized ModelProto starts with field 1 (ir_version) as a varint.
_FIRST_BYTE_OF_MODEL = 0x08
_GIT_LFS = b"version https://git-lfs"


def load_model(path: PathLike) -> ModelProto:
    """Load an ONNX model with all of its external data.

    Args:
        path: the ``.onnx`` file; external data files are looked up beside it.

    Returns:
        The model, with every tensor's bytes in memory.

    Raises:
        InputError: the file is missing, empty, truncated or not ONNX; its external
            data is missing or too short; its default opset isn't in 13..24; or the
            ONNX checker refuses it.
    """
    file = Path(path)
    model = parse_file(file)
    _require_unicode(file)
    _require_graph(model, file)
    _require_opset(model, file)
    _require_external_data(model, file)
    _require_checker(model, file)
    try:
        external_data_helper.load_external_data_for_model(model, str(file.parent))
    except Exception as error:  # onnx raises four unrelated types here, by version
        raise InputError(
            f"external data of '{file}' can't be read: {first_line(error)}",
            next_step="copy the model with all of its files (`cp -L` if they are links)",
        ) from error
    for tensor in tensors(model):
        # `onnx` leaves an explicit DEFAULT behind, which would change the digest of the model.
        if tensor.HasField("data_location") and tensor.data_location == TensorProto.DEFAULT:
            tensor.ClearField("data_location")
    return model


def parse_file(file: Path, *, weights: bool = True) -> ModelProto:
    """Parse a model file; external data isn't touched.

    Args:
        file: the file.
        weights: False to leave out the data of the graph's initializers.

    Raises:
        InputError: the file is missing, empty, truncated or not ONNX.
    """
    _require_file(file)
    try:
        with file.open("rb") as stream:
            return _parse(stream, file, weights=weights)
    except OSError as error:
        raise InputError(f"'{file}' can't be read: {error.strerror}", "an ONNX file") from error


def _require_file(file: Path) -> None:
    try:
        if file.is_dir():
            raise InputError(f"'{file}' is a directory", "an ONNX file")
        if not file.exists():
            raise InputError(f"'{file}' does not exist", "an ONNX file", "check the path")
    except OSError as error:  # a name that is too long
        raise InputError(f"'{file}' can't be read: {error.strerror}", "an ONNX file") from error


def _parse(stream: BinaryIO, file: Path, *, weights: bool) -> ModelProto:
    if not stream.seekable():  # a pipe
        stream = io.BytesIO(stream.read())
    size = stream.seek(0, os.SEEK_END)
    if size == 0:
        raise InputError(f"'{file}' is empty", "an ONNX file", "export or copy it again")
    if size > PROTOBUF_LIMIT:
        raise InputError(
            f"'{file}' has {size} bytes, more than protobuf can read (2 GiB)",
            "an ONNX file whose weights are external data",
            "export it again with external data",
        )
    try:
        return parse_model(stream, size, weights=weights)
    except DecodeError as error:
        stream.seek(0)
        start = stream.read(len(_GIT_LFS))
        if start == _GIT_LFS:
            raise InputError(
                f"'{file}' is a Git LFS pointer", "the ONNX file itself", "run `git lfs pull`"
            ) from error
        if start[0] == _FIRST_BYTE_OF_MODEL:
            raise InputError(
                f"'{file}' is truncated or damaged ({size} bytes)",
                "a complete ONNX file",
                "export or copy it again",
            ) from error
        raise InputError(f"'{file}' is not an ONNX file", "a serialized ModelProto") from error


def _require_unicode(file: Path) -> None:
    """ONNX's C++ code, which opens external data, takes paths as UTF-8 whatever the locale."""
    try:
        same = str(file).encode() == os.fsencode(file)
    except UnicodeEncodeError:
        same = False
    if not same:
        raise InputError(
            f"path '{file}' is not UTF-8 text in this locale",
            "a path that ONNX can open",
            "set LC_ALL=C.UTF-8, or rename the file",
        )


def _require_graph(model: ModelProto, file: Path) -> None:
    if not model.HasField("graph") or not model.graph.output:
        raise InputError(
            f"'{file}' holds no graph with outputs", "an ONNX model", "export or copy it again"
        )


def _require_opset(model: ModelProto, file: Path) -> None:
    wanted = f"a version in {MIN_OPSET}..{MAX_OPSET}"
    versions = [o.version for o in model.opset_import if o.domain in _DEFAULT_DOMAINS]
    if not versions:
        raise InputError(
            f"'{file}' imports no opset of the default domain", wanted, "the file may be truncated"
        )
    if not MIN_OPSET <= versions[0] <= MAX_OPSET:
        raise InputError(
            f"'{file}' uses opset {versions[0]}",
            wanted,
            f"export it again with opset_version={min(max(versions[0], 18), MAX_OPSET)}",
        )


def _require_external_data(model: ModelProto, file: Path) -> None:
    for tensor in tensors(model):
        entries = external_entries(tensor)
        if not entries:
            continue
        location = entries.get("location", "")
        data = file.parent / location
        if not location or not data.is_file():
            raise InputError(
                f"external data file '{data}' of tensor '{tensor.name}' does not exist",
                f"it beside '{file.name}'",
                "copy the model with all of its files",
            )
        if data.is_symlink():
            # Current onnx refuses to follow links (GHSA-538c-55jv-c5g9), older ones don't.
            raise InputError(
                f"external data file '{data}' is a symbolic link",
                "a regular file beside the model",
                "copy both with `cp -L` (links are common in download caches)",
            )
        size = data.stat().st_size
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", max(size - offset, 0)))
        except ValueError as error:
            raise InputError(
                f"tensor '{tensor.name}' of '{file}' has a malformed external data record"
            ) from error
        needed = max(length, tensor_bytes(tensor))
        if offset < 0 or offset + needed > size:
            raise InputError(
                f"external data file '{data}' has {size} bytes, too short for tensor"
                f" '{tensor.name}'",
                f"at least {offset + needed} bytes",
                "copy or export it again",
            )


def _require_checker(model: ModelProto, file: Path) -> None:
    """The ONNX checker's verdict.

    It wants the serialized model, of which it makes another copy, but says nothing about the
    values of weights. So they are left out where there is nothing to find fault with.
    """
    pieces = serialize(model, _without_checked_data, ("initializer", "t", "tensors"))
    try:
        if any(external_entries(tensor) for tensor in function_tensors(model)):
            onnx.checker.check_model(str(file))  # the only way to say where the data is
        else:
            onnx.checker.check_model(b"".join(map(content_of, pieces)))
    except Exception as error:  # ValidationError, or what the C++ parser throws, by version
        raise InputError(
            f"'{file}' is not a valid ONNX model: {first_line(error)}",
            next_step="export it again, or upgrade the `onnx` package if the file is newer",
        ) from error


def _without_checked_data(tensor: TensorProto) -> TensorProto | None:
    """An empty tensor of the same name and type, where there is nothing wrong with the data.

    External data has passed :func:`_require_external_data` when this is called.
    """
    if not is_sound(tensor):
        return None
    empty = without_data(tensor)
    del empty.dims[:]
    empty.dims.append(0)
    return empty
