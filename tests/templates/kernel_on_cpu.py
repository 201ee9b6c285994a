"""A generated kernel, compiled for the CPU and launched as a plan says."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.plan import ResolvedArgument, ResolvedLaunch

KERNELS = Path(__file__).parents[2] / "plugins" / "kernels"
SHIMS = Path(__file__).parent / "cpu"
SHARED_CAPACITY = 48 * 1024

_OPTIONS = (
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-include", "cuda_blocks.h"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"),
    *("-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=vptr"),
)
_NUMBERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "f32": ctypes.c_float}
_GUARD = 64
_GARBAGE = 0x5A


class KernelOnCpu:
    """One kernel.

    Args:
        source: its translation unit.
        headers: names of the template's headers; those that a shim replaces may be among them.
        entry: name of the kernel.
        shared: (name, type) in namespace stof of its dynamic shared memory.
        directory: to build in.
    """

    def __init__(
        self,
        source: str,
        headers: Sequence[str],
        entry: str,
        shared: tuple[str, str],
        directory: Path,
    ) -> None:
        compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
        if compiler is None:
            pytest.skip("no C++ compiler")
        for name in headers:
            shutil.copy(KERNELS / name, directory)
        for shim in SHIMS.iterdir():
            shutil.copy(shim, directory)
        name, element = shared
        tail = f"""
namespace stof {{
{element} {name}[{SHARED_CAPACITY} / sizeof({element})];
}}
extern "C" void run_kernel(void** arguments, unsigned grid, unsigned threads, std::size_t shared,
                           bool backwards) {{
  cpu::launch({entry}, arguments, grid, threads, stof::{name}, sizeof(stof::{name}), shared,
              backwards);
}}
"""
        (directory / "kernel.cpp").write_text(source + tail)
        command = [compiler, *_OPTIONS, "kernel.cpp", "-o", "kernel.so"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        self._run = ctypes.CDLL(str(directory / "kernel.so")).run_kernel
        self._run.restype = None

    def launch(
        self,
        launch: ResolvedLaunch,
        inputs: Sequence[Array],
        outputs: Sequence[tuple[tuple[int, ...], str]],
        *,
        backwards: bool = False,
    ) -> list[Array]:
        """Run a launch.

        Args:
            launch: one-dimensional.
            inputs: the node's.
            outputs: shape and type of each of the node's outputs, which hold garbage before.
            backwards: threads take their turns in the other order.

        Returns:
            The outputs; memory around them must not have been touched.
        """
        assert launch.grid[1:] == launch.block[1:] == (1, 1)
        memories, arrays = [], []
        for shape, dtype in outputs:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            memories.append(np.full(size + 2 * _GUARD, _GARBAGE, np.uint8))
            arrays.append(memories[-1][_GUARD : _GUARD + size].view(dtype).reshape(shape))
        held = [_argument(one, inputs, arrays) for one in launch.arguments]
        self._run(
            (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held)),
            ctypes.c_uint(launch.grid[0]),
            ctypes.c_uint(launch.block[0]),
            ctypes.c_size_t(launch.shared),
            ctypes.c_bool(backwards),
        )
        for memory in memories:
            around = np.concatenate([memory[:_GUARD], memory[-_GUARD:]])
            assert (around == _GARBAGE).all(), "the kernel wrote beside an output"
        return arrays


def _argument(
    argument: ResolvedArgument, inputs: Sequence[Array], outputs: Sequence[Array]
) -> ctypes._SimpleCData:  # type: ignore[type-arg]
    if argument.kind in _NUMBERS:
        return _NUMBERS[argument.kind](argument.value)
    tensors = inputs if argument.kind == "input" else outputs
    address = tensors[argument.tensor].ctypes.data + int(argument.value)
    assert address % argument.alignment == 0
    return ctypes.c_void_p(address)
