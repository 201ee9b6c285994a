"""NVRTC, NVIDIA's run-time compiler: the only module that finds and calls it.

Through ctypes, as ten functions are all that is needed. ``cuda.bindings.nvrtc`` offers
the same, but PyTorch's builds for CUDA 12 pin ``cuda-bindings`` to 12.*, so that an
installation which needs 13.* could not stand beside them; ``nvidia-cuda-nvrtc`` can.

NVRTC serialises compilations within a process and may bring the process down, so nothing
but a worker creates an :class:`Nvrtc`.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stof_onnx.ir.errors import MissingDependencyError
from stof_onnx.jit.errors import CompileError
from stof_onnx.jit.job import PROGRAM_NAME, CompiledKernel, CompileJob
from stof_onnx.jit.ptxas_log import mentions, read_resources, without_times

_DISTRIBUTION = "nvidia-cuda-nvrtc"
_LIBRARY = "libnvrtc.so.13"
_INSTALL = "run `pip install 'nvidia-cuda-nvrtc>=13,<14'`"

_SUCCESS = 0

# "kernel.cu(1): error: ...", "kernel.cu(1): catastrophic error: ...", "ptxas error   : ...":
# never the quoted source line below it.
_ERROR_LINE = re.compile(r"\b(error|fatal)\b[^:]*:")
_ERROR_LINES_SHOWN = 3


@dataclass(frozen=True)
class InstalledNvrtc:
    """An NVRTC that was found.

    Attributes:
        library: path of the shared library.
        version: full version, e.g. "13.0.88". (The library itself tells "13.0" only.)
    """

    library: Path
    version: str

    @property
    def builtins(self) -> Path:
        """The library that NVRTC loads on its first compilation."""
        major, minor, *_ = self.version.split(".")
        return self.library.with_name(f"libnvrtc-builtins.so.{major}.{minor}")

    @property
    def compiler(self) -> str:
        """Name and version, as records and cache keys have it."""
        return f"NVRTC {self.version}"


def find_nvrtc() -> InstalledNvrtc:
    """The NVRTC that pip installed; it is not loaded.

    Toolkits elsewhere on the machine are not looked for: their exact version, which is part
    of every cache key, can't be told without running them.

    Raises:
        MissingDependencyError: it isn't installed, or its version isn't 13.
    """
    try:
        distribution = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(
            "NVRTC, which compiles kernels, is not installed", next_step=_INSTALL
        ) from None
    for file in distribution.files or ():
        if file.name == _LIBRARY:
            return InstalledNvrtc(Path(str(file.locate())).absolute(), distribution.version)
    raise MissingDependencyError(
        f"{_DISTRIBUTION} {distribution.version} has no {_LIBRARY}",
        "version 13 of NVRTC",
        _INSTALL,
    )


class Nvrtc:
    """NVRTC, loaded into this process.

    Args:
        installed: which one.

    Raises:
        MissingDependencyError: it can't be loaded.
    """

    def __init__(self, installed: InstalledNvrtc) -> None:
        self._installed = installed
        try:
            # The library in the wheels of 13.0 does not look beside itself for its second
            # half, and finds it only if it is loaded already. Its name has the version in it,
            # so that leftovers of another installation are noticed here.
            ctypes.CDLL(str(installed.builtins))
            self._library = ctypes.CDLL(str(installed.library))
            _declare(self._library)
        except (OSError, AttributeError) as error:
            raise MissingDependencyError(
                f"{installed.library} can't be used: {error}", next_step=_INSTALL
            ) from error

    def compile(self, job: CompileJob) -> CompiledKernel:
        """Compile one kernel.

        Raises:
            CompileError: NVRTC refuses it, or the result lacks the kernel.
        """
        program = self._create(job)
        try:
            log = self._run(program, job)
            if job.kind == "cubin":
                image = self._fetch(program, job, "CUBIN")
                found = mentions(log, job.entry)
            else:
                image = self._fetch(program, job, "PTX")
                found = bool(re.search(rb"\.entry\s+%b\s*\(" % job.entry.encode(), image))
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))
        if not found:
            raise self._error(job, f'it has no extern "C" kernel {job.entry!r}', log)
        resources = read_resources(log, job.entry) if job.kind == "cubin" else None
        if resources is None and job.kind == "cubin":
            raise self._error(job, "its report on registers has an unknown form", log)
        compiler = self._installed.compiler
        return CompiledKernel(
            image, job.kind, job.entry, job.architecture, resources, log, compiler,
            job.key(compiler),
        )  # fmt: skip

    def _create(self, job: CompileJob) -> ctypes.c_void_p:
        program = ctypes.c_void_p()
        code = self._library.nvrtcCreateProgram(
            ctypes.byref(program),
            job.source.encode(),
            PROGRAM_NAME.encode(),
            len(job.headers),
            _strings([text for _, text in job.headers]),
            _strings([name for name, _ in job.headers]),
        )
        self._check(code, "nvrtcCreateProgram", job)
        return program

    def _run(self, program: ctypes.c_void_p, job: CompileJob) -> str:
        """Compile, and return the log."""
        options = job.all_options
        code = self._library.nvrtcCompileProgram(program, len(options), _strings(options))
        raw = self._fetch(program, job, "ProgramLog")
        # NVRTC appends ptxas's part with the NUL between the two left in.
        log = without_times(raw.replace(b"\0", b"").decode(errors="replace"))
        if code != _SUCCESS:
            reasons = (self._meaning(code), *_first_errors(log))
            raise self._error(job, " / ".join(reasons), log)
        return log

    def _fetch(self, program: ctypes.c_void_p, job: CompileJob, what: str) -> bytes:
        """One result of a program: its "CUBIN", "PTX" or "ProgramLog"."""
        size = ctypes.c_size_t()
        code = getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        self._check(code, f"nvrtcGet{what}Size", job)
        buffer = ctypes.create_string_buffer(size.value)
        code = getattr(self._library, f"nvrtcGet{what}")(program, buffer)
        self._check(code, f"nvrtcGet{what}", job)
        return buffer.raw

    def _check(self, code: int, function: str, job: CompileJob) -> None:
        if code != _SUCCESS:
            raise self._error(job, f"{function} returned {code} ({self._meaning(code)})", "")

    def _meaning(self, code: int) -> str:
        text: bytes | None = self._library.nvrtcGetErrorString(code)
        return "unknown error" if text is None else text.decode(errors="replace")

    def _error(self, job: CompileJob, reason: str, log: str) -> CompileError:
        return CompileError(
            f"{self._installed.compiler} can't compile {job}: {reason}",
            next_step="this is a bug of stof-onnx: please report it",
            architecture=job.architecture,
            log=log,
        )


def _declare(library: ctypes.CDLL) -> None:
    """Give the functions' types, without which ctypes would cut pointers to 32 bits."""
    program, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
    strings = ctypes.POINTER(ctypes.c_char_p)
    source = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, strings, strings)
    signatures: dict[str, tuple[Any, ...]] = {
        "nvrtcCreateProgram": (ctypes.POINTER(program), *source),
        "nvrtcCompileProgram": (program, ctypes.c_int, strings),
        "nvrtcDestroyProgram": (ctypes.POINTER(program),),
        "nvrtcGetErrorString": (ctypes.c_int,),
    }
    for what in ("CUBIN", "PTX", "ProgramLog"):
        signatures[f"nvrtcGet{what}Size"] = (program, size)
        signatures[f"nvrtcGet{what}"] = (program, ctypes.c_char_p)
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = ctypes.c_int
    library.nvrtcGetErrorString.restype = ctypes.c_char_p


def _strings(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _first_errors(log: str) -> list[str]:
    """The first lines of a log that tell of an error."""
    lines = [line.strip() for line in log.splitlines() if _ERROR_LINE.search(line)]
    return lines[:_ERROR_LINES_SHOWN]
