"""Reading and writing ONNX files: one-line errors in, all or nothing out.

Reading checks everything that later code relies on (external data present and
long enough, a supported opset, the ONNX checker's verdict), so that nobody
downstream meets a half-broken model. Writing goes to a temporary file beside the
target and is published by a rename: the target is either the old file or the
complete new one, never a torn one.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper

from stof_onnx.ir.errors import InputError, OutputError

MIN_OPSET = 13
MAX_OPSET = 24

PathLike = str | os.PathLike[str]

_DEFAULT_DOMAINS = ("", "ai.onnx")
# protobuf refuses messages of 2 GiB and more; the margin is for the graph around the weights.
_PROTOBUF_LIMIT = 2**31 - 1
_EMBED_LIMIT = _PROTOBUF_LIMIT - 2**26
# Smaller initializers stay in the model file: shape arithmetic must be readable without the data.
_SMALLEST_EXTERNAL_TENSOR = 1024
# Aligned like `onnx` does it, so that a reader may map the file instead of copying it.
_EXTERNAL_ALIGNMENT = 4096
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
# A serialized ModelProto starts with field 1 (ir_version) as a varint.
_FIRST_BYTE_OF_MODEL = 0x08


# ---------------------------------------------------------------------------------- loading


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
    model = _parse(file)
    _require_unicode(file)
    _require_graph(model, file)
    _require_opset(model, file)
    _require_external_data(model, file)
    _require_checker(file)
    try:
        external_data_helper.load_external_data_for_model(model, str(file.parent))
    except Exception as error:  # onnx raises four unrelated types here, by version
        raise InputError(
            f"external data of '{file}' can't be read: {first_line(error)}",
            next_step="copy the model with all of its files (`cp -L` if they are links)",
        ) from error
    for tensor in _tensors(model):
        # `onnx` leaves an explicit DEFAULT behind, which would change the digest of the model.
        if tensor.HasField("data_location") and tensor.data_location == TensorProto.DEFAULT:
            tensor.ClearField("data_location")
    return model


def _require_unicode(file: Path) -> None:
    """ONNX's C++ code, which opens the file again, takes paths as UTF-8 whatever the locale."""
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


def _read_bytes(file: Path) -> bytes:
    try:
        return _read_regular(file)
    except OSError as error:
        raise InputError(f"'{file}' can't be read: {error.strerror}", "an ONNX file") from error


def _read_regular(file: Path) -> bytes:
    if file.is_dir():
        raise InputError(f"'{file}' is a directory", "an ONNX file")
    if not file.exists():
        raise InputError(f"'{file}' does not exist", "an ONNX file", "check the path")
    size = file.stat().st_size
    if size == 0 and file.is_file():
        raise InputError(f"'{file}' is empty", "an ONNX file", "export or copy it again")
    if size > _PROTOBUF_LIMIT:
        raise InputError(
            f"'{file}' has {size} bytes, more than protobuf can read (2 GiB)",
            "an ONNX file whose weights are external data",
            "export it again with external data",
        )
    return file.read_bytes()


def _parse(file: Path) -> ModelProto:
    content = _read_bytes(file)
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        if content.startswith(b"version https://git-lfs"):
            raise InputError(
                f"'{file}' is a Git LFS pointer", "the ONNX file itself", "run `git lfs pull`"
            ) from error
        if content[0] == _FIRST_BYTE_OF_MODEL:
            raise InputError(
                f"'{file}' is truncated or damaged ({len(content)} bytes)",
                "a complete ONNX file",
                "export or copy it again",
            ) from error
        raise InputError(f"'{file}' is not an ONNX file", "a serialized ModelProto") from error
    return model


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


def _require_checker(file: Path) -> None:
    # By path: a model with more than 2 GiB of external data can't be handed over in memory.
    try:
        onnx.checker.check_model(str(file))
    except Exception as error:  # ValidationError, or what the C++ parser throws, by version
        raise InputError(
            f"'{file}' is not a valid ONNX model: {first_line(error)}",
            next_step="export it again, or upgrade the `onnx` package if the file is newer",
        ) from error


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first non-empty line of an error's text, for one-line messages."""
    for line in str(error).splitlines():
        if line.strip():
            text = line.strip()
            return text if len(text) <= limit else text[: limit - 3] + "..."
    return type(error).__name__


# ---------------------------------------------------------------------------- external data


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model: initializers and attributes, of subgraphs too."""
    yield from _graph_tensors(model.graph)
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


def _external_entries(tensor: TensorProto) -> dict[str, str]:
    if tensor.data_location != TensorProto.EXTERNAL:
        return {}
    return {entry.key: entry.value for entry in tensor.external_data}


def _tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's data as stored; 0 where the type isn't made of whole bytes."""
    return math.prod(tensor.dims) * _ITEM_BYTES.get(tensor.data_type, 0)


def _require_external_data(model: ModelProto, file: Path) -> None:
    for tensor in _tensors(model):
        entries = _external_entries(tensor)
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
        needed = max(length, _tensor_bytes(tensor))
        if offset < 0 or offset + needed > size:
            raise InputError(
                f"external data file '{data}' has {size} bytes, too short for tensor"
                f" '{tensor.name}'",
                f"at least {offset + needed} bytes",
                "copy or export it again",
            )


def _external_files(file: Path) -> set[Path]:
    """The external data files that a model file names; empty if it can't be read."""
    try:
        model = _parse(file)
    except InputError:
        return set()
    locations = {_external_entries(tensor).get("location", "") for tensor in _tensors(model)}
    return {file.parent / location for location in locations if location}


# ----------------------------------------------------------------------------------- saving


def check_output_path(output: PathLike, inputs: Iterable[PathLike]) -> None:
    """Refuse an output path that can't or mustn't be written, before long work starts.

    Args:
        output: where a model is going to be written.
        inputs: model files that are being read.

    Raises:
        OutputError: ``output`` (or its data file ``<output>.data``) is one of the
            inputs or an external data file of one, through links too; or it can't
            be written.
    """
    target = Path(output)
    if not target.name:
        raise OutputError(f"output '{os.fspath(output)}' names no file", "a path like model.onnx")
    written = (target, _data_file(target))
    for model_file in map(Path, inputs):
        for source in (model_file, *sorted(_external_files(model_file))):
            for file in written:
                if _same_file(file, source):
                    raise OutputError(
                        f"output '{file}' is the same file as input '{source}'",
                        "another path",
                        "give another --output",
                    )
    _require_writable(target)


def _same_file(first: Path, second: Path) -> bool:
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _data_file(target: Path) -> Path:
    return target.with_name(target.name + ".data")


def _require_writable(target: Path) -> None:
    try:
        mode = target.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputError(
                f"the name of output '{target}' is too long for its file system", "a shorter one"
            ) from error
    else:
        if stat.S_ISDIR(mode):
            raise OutputError(f"output '{target}' is a directory", "a file name")
        # Of a pipe behind /dev/stdout, too, whose resolved path names nothing.
        if not stat.S_ISREG(mode):
            raise OutputError(f"output '{target}' is not a regular file", "a file name")
    real = Path(os.path.realpath(target))
    if not real.parent.is_dir():
        raise OutputError(
            f"directory '{real.parent}' does not exist", next_step="create it, or name another"
        )
    if real.exists() and not os.access(real, os.W_OK):
        raise OutputError(f"output '{target}' is write-protected", "a writable file")
    try:
        # The only test that also sees read-only mounts and full quotas; it leaves nothing behind.
        with tempfile.TemporaryFile(dir=real.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"directory '{real.parent}' can't be written: {error.strerror}",
            "a writable directory",
        ) from error


def save_model(model: ModelProto, path: PathLike, *, embed_limit: int = _EMBED_LIMIT) -> None:
    """Write a model, all or nothing.

    The model goes to a temporary file in the target's directory and is renamed
    over the target at the end. If it is too large for one protobuf message, its
    initializers go to ``<path>.data``, written the same way.

    Args:
        model: the model; it is unchanged when this returns or raises.
        path: where to write. A symbolic link is followed, not replaced.
        embed_limit: bytes of tensor data above which external data is used.

    Raises:
        OutputError: the path can't be written. An existing file is then unchanged,
            and no temporary file stays behind.
    """
    _require_writable(Path(path))
    target = Path(os.path.realpath(path))
    data = _data_file(target)
    with contextlib.ExitStack() as cleanup:
        try:
            if not needs_external_data(model, embed_limit):
                new_model = _write_aside(model, target, cleanup)
                os.replace(new_model, target)
                return
            new_data = _temporary(data, cleanup)
            with _externalised(model, new_data, data.name):
                new_model = _write_aside(model, target, cleanup)
            _publish_pair(new_data, data, new_model, target, cleanup)
        except (EncodeError, ValueError) as error:
            raise OutputError(
                f"the model can't be serialized: {first_line(error)}",
                "less than 2 GiB outside of its initializers",
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"'{path}' can't be written: {reason}") from error


def needs_external_data(model: ModelProto, embed_limit: int = _EMBED_LIMIT) -> bool:
    """Whether a model's tensors are too large for one protobuf message."""
    return sum(_stored_bytes(tensor) for tensor in _tensors(model)) > embed_limit


def _stored_bytes(tensor: TensorProto) -> int:
    if tensor.HasField("raw_data"):
        # Counted from the shape where possible: reading the field copies it.
        return _tensor_bytes(tensor) or len(tensor.raw_data)
    return tensor.ByteSize()


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


def _write_aside(model: ModelProto, target: Path, cleanup: contextlib.ExitStack) -> Path:
    file = _temporary(target, cleanup)
    content = model.SerializeToString()
    with file.open("wb") as stream:
        stream.write(content)
        # Without this a power cut after the rename can leave an empty file.
        stream.flush()
        os.fsync(stream.fileno())
    return file


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


@contextlib.contextmanager
def _externalised(model: ModelProto, data_file: Path, location: str) -> Iterator[None]:
    """Move large initializers of ``model`` to a file for the duration of the context.

    In place, because a second copy of the model may not fit in memory (and
    protobuf can't copy messages over 2 GiB); the bytes are read back on exit.
    """
    moved: list[tuple[TensorProto, int, int]] = []
    try:
        with data_file.open("wb") as stream:
            for tensor in external_data_helper._get_initializer_tensors(model):
                if _stored_bytes(tensor) < _SMALLEST_EXTERNAL_TENSOR:
                    continue
                if not tensor.HasField("raw_data"):
                    # Data in a typed field (`float_data`): the same values as bytes.
                    array = numpy_helper.to_array(tensor)
                    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
                raw = tensor.raw_data
                stream.write(b"\0" * (-stream.tell() % _EXTERNAL_ALIGNMENT))
                offset = stream.tell()
                stream.write(raw)
                external_data_helper.set_external_data(tensor, location, offset, len(raw))
                tensor.ClearField("raw_data")
                moved.append((tensor, offset, len(raw)))
            stream.flush()
            os.fsync(stream.fileno())
        yield
    finally:
        with data_file.open("rb") as stream:
            for tensor, offset, length in moved:
                stream.seek(offset)
                tensor.raw_data = stream.read(length)
                del tensor.external_data[:]
                tensor.ClearField("data_location")


# ----------------------------------------------------------------------------------- digest
