"""What is compiled, and what comes of it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cubin", "ptx"]

# Changes whenever the same job and compiler give another result, for reasons that are in
# this package and not in COMMON_OPTIONS: cached kernels of older versions are then not found.
_KEY_VERSION = 1

# NVRTC names the translation unit after this; a fixed name keeps the result reproducible.
PROGRAM_NAME = "kernel.cu"

COMMON_OPTIONS = (
    "--std=c++17",
    "-default-device",
    # Headers come with the job alone: never from the working directory.
    "--no-source-include",
    # What is compiled here is cached by us; results must not depend on a second cache.
    "--no-cache",
    # Makes the log tell registers, shared memory and spills.
    "--ptxas-options=-v",
)

_ARCHITECTURE = re.compile(r"(sm|compute)_[1-9][0-9]{1,2}[af]?")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class CompileJob:
    """One kernel to compile.

    Attributes:
        source: the translation unit, CUDA C++17.
        entry: name of the ``extern "C" __global__`` function.
        architecture: "sm_90a", "sm_80", ... give a cubin, "compute_80" gives PTX.
        headers: (name, text) of what the source may ``#include``; there is no include path.
        options: options for NVRTC beside :data:`COMMON_OPTIONS` and the architecture.

    Raises:
        ValueError: an entry that is no identifier, an unknown form of architecture, or a
            NUL character, at which NVRTC would stop reading.
    """

    source: str
    entry: str
    architecture: str
    headers: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _IDENTIFIER.fullmatch(self.entry):
            raise ValueError(f"{self.entry!r} is not the name of a kernel")
        if not _ARCHITECTURE.fullmatch(self.architecture):
            raise ValueError(f"architecture {self.architecture!r}, wanted sm_NN or compute_NN")
        texts = (self.source, *self.options, *(text for header in self.headers for text in header))
        if any("\0" in text for text in texts):
            raise ValueError(f"the source of kernel {self.entry!r} contains a NUL character")

    @property
    def kind(self) -> Kind:
        """What compiling gives."""
        return "ptx" if self.architecture.startswith("compute_") else "cubin"

    @property
    def all_options(self) -> tuple[str, ...]:
        """The options as NVRTC is given them."""
        return (*COMMON_OPTIONS, f"--gpu-architecture={self.architecture}", *self.options)

    def key(self, compiler: str) -> str:
        """SHA-256, in hexadecimal, of everything that makes the result.

        Args:
            compiler: name and exact version of the compiler.
        """
        parts = [
            _KEY_VERSION,
            compiler,
            PROGRAM_NAME,
            self.all_options,
            self.entry,
            self.source,
            self.headers,
        ]
        return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()

    def __str__(self) -> str:
        """The job in a message."""
        return f"kernel {self.entry!r} for {self.architecture}"


@dataclass(frozen=True)
class Resources:
    """What ptxas says one thread, or thread block, of a kernel needs.

    Attributes:
        registers: 32-bit registers per thread.
        static_shared_bytes: shared memory per block, without what a launch adds and without
            the KiB per block that the driver reserves for itself on some architectures.
        local_bytes: stack per thread, including that of called functions.
        spill_stores_bytes: bytes of spilled registers that the code writes, counted once per
            instruction and thread, including those of called functions.
        spill_loads_bytes: the same for reads.
    """

    registers: int
    static_shared_bytes: int
    local_bytes: int
    spill_stores_bytes: int
    spill_loads_bytes: int


@dataclass(frozen=True)
class CompiledKernel:
    """A compiled kernel.

    Attributes:
        image: the cubin, or the text of the PTX including its terminating NUL; either way
            what the driver loads.
        kind: "cubin" or "ptx".
        entry: the kernel's name in the image.
        architecture: as in the job.
        resources: None for PTX, whose registers are allotted when a driver loads it.
        log: what NVRTC and ptxas said, without times; the same whenever compiled.
        compiler: name and exact version of the compiler.
        key: :meth:`CompileJob.key` with this compiler.
    """

    image: bytes
    kind: Kind
    entry: str
    architecture: str
    resources: Resources | None
    log: str
    compiler: str
    key: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """The first line of each warning in the log."""
        return tuple(line for line in self.log.splitlines() if _WARNING.search(line))


# "kernel.cu(3): warning #177-D: ..." of the front end, "ptxas warning : ..." of ptxas.
_WARNING = re.compile(r"\bwarning\b.*:")
