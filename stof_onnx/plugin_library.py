"""The TensorRT plugin library that is installed with this package.

It is found, not linked: the same file is what ``trtexec --dynamicPlugins`` loads. A second
one registers its creators when it is loaded, for tools that only load libraries. A process
must load one of them, never both.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.resources
from pathlib import Path

from stof_onnx.ir.errors import MissingDependencyError

FILE_NAME = "libstof_plugins.so"
AUTOLOAD_FILE_NAME = "libstof_plugins_autoload.so"


def path() -> Path:
    """Where the plugin library is.

    Beside the package, where a wheel and an editable install put it. Python run in
    a source tree sees the tree's package, which has no library, before the
    installed one: then the library of the installed package is the answer.

    Raises:
        MissingDependencyError: it was never built.
    """
    for candidate in (_beside_package(), _of_installed_package()):
        if candidate is not None and candidate.is_file():
            return candidate
    raise MissingDependencyError(
        f"{FILE_NAME} is not installed",
        "the plugin library that installing stof-onnx builds",
        "run `pip install .` in the source tree",
    )


def autoload_path() -> Path:
    """Where the library is that registers its creators when it is loaded: beside the other.

    It is for Polygraphy's ``--plugins`` and ``trtexec --staticPlugins``.

    Raises:
        MissingDependencyError: it was never built.
    """
    file = path().with_name(AUTOLOAD_FILE_NAME)
    if not file.is_file():
        raise MissingDependencyError(
            f"{file} does not exist",
            "the plugin library that installing stof-onnx builds",
            "run `pip install .` in the source tree",
        )
    return file


def _beside_package() -> Path | None:
    resource = importlib.resources.files("stof_onnx").joinpath("lib").joinpath(FILE_NAME)
    # A package inside a zip file has no path; such an installation holds no library either.
    return resource if isinstance(resource, Path) else None


def _of_installed_package() -> Path | None:
    try:
        files = importlib.metadata.distribution("stof-onnx").files or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == FILE_NAME:
            return Path(str(file.locate()))
    return None


def load() -> ctypes.CDLL:
    """The plugin library, loaded once a process.

    Raises:
        MissingDependencyError: the library is missing or can't be loaded.
    """
    return _load(path())


@functools.cache
def _load(file: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(file))
        library.stof_version.restype = ctypes.c_char_p
        library.stof_plugin_count.restype = ctypes.c_int32
    except (OSError, AttributeError) as error:
        raise MissingDependencyError(
            f"{file} can't be loaded: {error}",
            next_step="run `pip install --force-reinstall --no-deps .` in the source tree",
        ) from error
    library.stof_version.argtypes = ()
    library.stof_plugin_count.argtypes = ()
    return library


def version() -> str:
    """Version of the plugin library, to be compared with the package's.

    Raises:
        MissingDependencyError: the library is missing or can't be loaded.
    """
    text: bytes = load().stof_version()
    return text.decode("ascii")


def plugin_count() -> int:
    """Number of TensorRT plugin creators in the library.

    Raises:
        MissingDependencyError: the library is missing or can't be loaded.
    """
    return int(load().stof_plugin_count())
