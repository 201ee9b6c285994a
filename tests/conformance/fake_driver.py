"""Python's view of plugins/tests/fake_cuda.h: the driver that records calls and runs nothing."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from stof_onnx.ir.plan import Float32, Int32, Int64, Kernel, Launch, Plan

SOURCES = Path(__file__).parents[2] / "plugins" / "tests"

QUERIES = {"cuCtxGetCurrent", "cuCtxGetDevice", "cuCtxGetId", "cuDeviceGetAttribute"}
"""What a plugin may ask at any time, also during capture."""


def build(directory: Path) -> Path:
    """Compile the driver with any C++ compiler; skips where there is none."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler to build the recording CUDA driver with")
    path = directory / "libfake_cuda.so"
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-pthread"]
    subprocess.run([*command, str(SOURCES / "fake_cuda.cpp"), "-o", str(path)], check=True)
    return path


@dataclass(frozen=True)
class Call:
    """One line of the driver's log.

    Attributes:
        name: the driver's function.
        values: what it was called with, as text.
        error: CUresult; 0 if the call succeeded.
    """

    name: str
    values: dict[str, str]
    error: int = 0

    @staticmethod
    def parse(line: str) -> Call:
        text, _, error = line.partition(" -> ")
        name, _, rest = text.partition(" ")
        # The beginning of an image, last on its line, may hold anything.
        rest, has_image, image = rest.partition("image=")
        values = dict(word.split("=", 1) for word in rest.split())
        if has_image:
            values["image"] = image
        return Call(name, values, int(error or 0))

    def numbers(self, key: str) -> tuple[int, ...]:
        return tuple(int(number, 0) for number in self.values[key].split(","))


class FakeDriver:
    """The loaded driver; `stof_set_driver_library` was given the same file."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        library.fake_cuda_log.restype = ctypes.c_char_p
        for name in ("fake_cuda_create_context", "fake_cuda_default_context"):
            getattr(library, name).restype = ctypes.c_void_p
        for name in ("fake_cuda_set_current", "fake_cuda_destroy_context"):
            getattr(library, name).argtypes = (ctypes.c_void_p,)
            getattr(library, name).restype = None
        self._library = library

    def reset(self) -> None:
        self._library.fake_cuda_reset()

    def calls(self) -> list[Call]:
        text: bytes = self._library.fake_cuda_log()
        return [Call.parse(line) for line in text.decode("ascii", "replace").splitlines()]

    def names(self) -> list[str]:
        return [call.name for call in self.calls()]

    def launches(self) -> list[Call]:
        return [call for call in self.calls() if call.name == "cuLaunchKernel"]

    def clear_log(self) -> None:
        self._library.fake_cuda_clear_log()

    def count(self, function: str) -> int:
        return int(self._library.fake_cuda_call_count(function.encode()))

    def live_modules(self) -> int:
        return int(self._library.fake_cuda_live_modules())

    def set_capability(self, major: int, minor: int) -> None:
        self._library.fake_cuda_set_capability(major, minor)

    def create_context(self, major: int = 9, minor: int = 0) -> int:
        return int(self._library.fake_cuda_create_context(major, minor))

    @property
    def default_context(self) -> int:
        return int(self._library.fake_cuda_default_context())

    def set_current(self, context: int | None) -> None:
        self._library.fake_cuda_set_current(context)

    def destroy_context(self, context: int) -> None:
        self._library.fake_cuda_destroy_context(context)

    def fail_next(self, function: str, error: int) -> None:
        self._library.fake_cuda_fail_next(function.encode(), error)

    def set_capturing(self, capturing: bool) -> None:
        self._library.fake_cuda_set_capturing(int(capturing))

    def set_recording(self, recording: bool) -> None:
        self._library.fake_cuda_set_recording(int(recording))

    def describe(self, plan: Plan) -> None:
        """Tell the types of all kernels' parameters, so that launches are logged with values."""
        for variant in plan.variants:
            for bucket in variant.buckets:
                for launch in bucket.launches:
                    self._library.fake_cuda_set_signature(_c_name(launch.kernel), _c_types(launch))


def _c_name(kernel: Kernel) -> bytes:
    return kernel.entry.encode()


def _c_types(launch: Launch) -> bytes:
    names = {Int32: "i32", Int64: "i64", Float32: "f32"}
    return ",".join(names.get(type(one), "p") for one in launch.arguments).encode()
