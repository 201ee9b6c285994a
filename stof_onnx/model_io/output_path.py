"""Where a model may be written."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from stof_onnx.ir.errors import InputError, OutputError
from stof_onnx.model_io.loading import parse_file
from stof_onnx.model_io.messages import PathLike
from stof_onnx.model_io.tensors import external_entries, tensors


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
    written = (target, data_file(target))
    for model_file in map(Path, inputs):
        for source in (model_file, *sorted(_external_files(model_file))):
            for file in written:
                if _same_file(file, source):
                    raise OutputError(
                        f"output '{file}' is the same file as input '{source}'",
                        "another path",
                        "give another --output",
                    )
    require_writable(target)


def _external_files(file: Path) -> set[Path]:
    """The external data files that a model file names; empty if it can't be read."""
    try:
        model = parse_file(file, weights=False)
    except InputError:
        return set()
    locations = {external_entries(tensor).get("location", "") for tensor in tensors(model)}
    return {file.parent / location for location in locations if location}


def _same_file(first: Path, second: Path) -> bool:
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def data_file(target: Path) -> Path:
    """Where the external data of a model file goes."""
    return target.with_name(target.name + ".data")


def require_writable(target: Path) -> None:
    """Refuse a path that can't be written, in words for each cause.

    Raises:
        OutputError: the path names something else than a file, or can't be written.
    """
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
