"""Which TensorRT builds: what is installed, and how to get it where nothing is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from stof_onnx.ir.errors import InputError, MissingDependencyError

Backend = Literal["tensorrt", "tensorrt-rtx"]

BACKENDS: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx")

# The bindings' own name, and that of the package that wraps them.
_MODULES: dict[Backend, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_INSTALL: dict[Backend, str] = {
    "tensorrt": "pip install tensorrt-cu13",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
}


def choose_backend(name: str | None) -> Backend:
    """The backend to use.

    Args:
        name: "tensorrt" or "tensorrt-rtx"; None for "tensorrt". The other has no plugins, so
            its engines are never what somebody gets who didn't ask for them.

    Raises:
        InputError: there is no backend of that name.
        MissingDependencyError: it isn't installed.
    """
    if name is None:
        if module_name("tensorrt") is not None:
            return "tensorrt"
        other = "--backend tensorrt-rtx"
        if module_name("tensorrt-rtx") is None:
            other += f" (`{_INSTALL['tensorrt-rtx']}`)"
        raise MissingDependencyError(
            "TensorRT is not installed",
            next_step=f"run `{_INSTALL['tensorrt']}` (the extra stof-onnx[tensorrt]); or, for an"
            f" engine without stof-onnx's kernels, use {other}; --print-commands shows how to"
            " build with a TensorRT elsewhere",
        )
    for backend in BACKENDS:
        if name == backend:
            if module_name(backend) is None:
                raise missing(backend, f"backend {backend} is not installed")
            return backend
    raise InputError(f"unknown backend '{name}'", f"one of {', '.join(BACKENDS)}")


def tensorrt_folder() -> Path | None:
    """Folder of the libraries that pip's TensorRT comes with; None without it."""
    found = importlib.util.find_spec("tensorrt_libs")
    return Path(found.origin).parent if found is not None and found.origin is not None else None


def module_name(backend: Backend) -> str | None:
    """The Python module of a backend; None if it isn't installed. Nothing is imported."""
    for name in _MODULES[backend]:
        if importlib.util.find_spec(name) is not None:
            return name
    return None


def missing(backend: Backend, came: str) -> MissingDependencyError:
    """The error that says how to install a backend."""
    return MissingDependencyError(came, next_step=f"run `{_INSTALL[backend]}`")
