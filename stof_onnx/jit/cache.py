"""Compiled kernels on disk, found again by what made them.

``<directory>/kernels/<first two digits of the key>/<key>.kernel``. An entry is written aside
and renamed, so that readers and writers of any number of processes see whole entries only.

An entry is code that will run, so one is used only if nobody else could have written it: the
folder ``kernels`` and the file belong to this user (or to root, for a cache that an
administrator fills) and nobody else may write to them. What fails this or is damaged is as
good as absent; the cache never makes a compilation fail.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from stof_onnx.jit.entry import DamagedEntryError, decode, encode
from stof_onnx.jit.errors import CacheWarning
from stof_onnx.jit.job import CompiledKernel

DIRECTORY_VARIABLE = "STOF_ONNX_CACHE"

_PRIVATE_DIRECTORY = 0o700
_ROOT = 0


def default_directory() -> Path:
    """``$STOF_ONNX_CACHE``, ``$XDG_CACHE_HOME/stof-onnx`` or ``~/.cache/stof-onnx``.

    Raises:
        RuntimeError: the user has no home directory.
    """
    own = os.environ.get(DIRECTORY_VARIABLE)
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification wants a relative path to be ignored.
    root = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return root / "stof-onnx"


@dataclass(frozen=True)
class CacheSurvey:
    """Where kernels are kept, and whether they can be.

    Attributes:
        directory: None if there is no place for one.
        problem: why nothing can be read from it, or stored in it; "" if all is well.
    """

    directory: Path | None
    problem: str


def survey_cache() -> CacheSurvey:
    """Look at the default directory; makes nothing, warns of nothing."""
    try:
        root = default_directory().absolute()
    except RuntimeError as error:
        return CacheSurvey(None, _no_place(error))
    kernels = root / "kernels"
    return CacheSurvey(root, _reading_problem(kernels) or _writing_problem(kernels))


class KernelCache:
    """Compiled kernels in a directory.

    Args:
        directory: made when the first kernel is stored; :func:`default_directory` if None.

    Attributes:
        hits: how many kernels were found.
        misses: how many were looked for in vain.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        # Without a usable place the cache is empty and stays so.
        self._kernels: Path | None = None
        self._writable = True
        self.hits = 0
        self.misses = 0
        try:
            root = default_directory() if directory is None else Path(directory)
        except RuntimeError as error:
            _warn(_no_place(error))
            return
        kernels = root.absolute() / "kernels"
        problem = _reading_problem(kernels)
        if problem:
            _warn(problem)
        else:
            self._kernels = kernels

    @property
    def directory(self) -> Path | None:
        """Where entries are; None if no place can be used."""
        return None if self._kernels is None else self._kernels.parent

    def load(self, key: str) -> CompiledKernel | None:
        """The kernel of a key, or None; warns (CacheWarning) of an entry that can't be used."""
        kernel = self._load(key)
        if kernel is None:
            self.misses += 1
        else:
            self.hits += 1
        return kernel

    def _load(self, key: str) -> CompiledKernel | None:
        if self._kernels is None:
            return None
        path = self._path(self._kernels, key)
        try:
            return decode(_read_own_file(path), key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, DamagedEntryError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            _warn(f"cached kernel {path} is not used: {reason}; it is compiled again")
            return None

    def store(self, kernel: CompiledKernel) -> None:
        """Keep a kernel; warns (CacheWarning) once if that isn't possible."""
        if self._kernels is None or not self._writable:
            return
        path = self._path(self._kernels, kernel.key)
        try:
            self._kernels.parent.mkdir(_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            self._kernels.mkdir(_PRIVATE_DIRECTORY, exist_ok=True)
            path.parent.mkdir(_PRIVATE_DIRECTORY, exist_ok=True)
            _publish(encode(kernel), path)
        except OSError as error:
            # What is there can still be read.
            self._writable = False
            _warn(_cannot_store(self._kernels, str(error.strerror)))

    @staticmethod
    def _path(kernels: Path, key: str) -> Path:
        return kernels / key[:2] / f"{key}.kernel"


def _no_place(error: RuntimeError) -> str:
    return f"there is no place for a kernel cache ({error}); set {DIRECTORY_VARIABLE}"


def _cannot_store(kernels: Path, reason: str) -> str:
    return (
        f"kernels can't be cached in {kernels}: {reason}; set {DIRECTORY_VARIABLE} to a directory"
        " of your own"
    )


def _reading_problem(kernels: Path) -> str:
    """Why no entry of a folder may be used; "" for one that isn't there yet."""
    try:
        status = kernels.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""  # It is made, or can't be made, by the first `store`.
    except OSError as error:
        return f"kernel cache {kernels} can't be used: {error.strerror}"
    if _others_may_write(status):
        return (
            f"kernel cache {kernels} is not used, as other users can write to it;"
            f" remove it, or set {DIRECTORY_VARIABLE} to a directory of your own"
        )
    return ""


def _writing_problem(kernels: Path) -> str:
    """Why `store` would fail, as far as that can be seen without making anything."""
    for folder in (kernels, *kernels.parents):
        if not folder.exists():
            continue
        if not folder.is_dir():
            return _cannot_store(kernels, f"{folder} is not a directory")
        if not os.access(folder, os.W_OK | os.X_OK):
            return _cannot_store(kernels, f"{folder} can't be written")
        return ""
    return ""


def _others_may_write(status: os.stat_result) -> bool:
    """Whether a user other than this one and root may write to a file or folder."""
    owned = status.st_uid in {os.geteuid(), _ROOT}
    return not owned or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _read_own_file(path: Path) -> bytes:
    """Read a file that nobody else can have written.

    Raises:
        OSError: it can't be read, or is a symbolic link.
        DamagedEntryError: it is no ordinary file, or others may write to it.
    """
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedEntryError("it is not an ordinary file")
        if _others_may_write(status):
            raise DamagedEntryError("other users can write to it")
        return file.read()


def _publish(data: bytes, path: Path) -> None:
    """Write a file, readable by this user alone, so that nobody ever sees a part of it."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


def _warn(text: str) -> None:
    # The level of compile_kernels' caller, roughly: whoever filters does so by category.
    warnings.warn(text, CacheWarning, stacklevel=4)
