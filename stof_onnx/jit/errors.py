"""What can go wrong while kernels are compiled."""

from __future__ import annotations

from stof_onnx.ir.errors import StofError


class CompileError(StofError):
    """NVRTC refuses a kernel. The sources are ours, so this is a bug of stof-onnx.

    Attributes:
        architecture: what was compiled for, e.g. "sm_90a".
        log: everything that NVRTC said.
    """

    exit_code = 3

    # Beyond the message all arguments are optional: unpickling, which brings the error
    # out of a worker, calls with the message and sets the attributes afterwards.
    def __init__(
        self,
        came: str,
        wanted: str = "",
        next_step: str = "",
        *,
        architecture: str = "",
        log: str = "",
    ) -> None:
        super().__init__(came, wanted, next_step)
        self.architecture = architecture
        self.log = log


class WorkerError(StofError):
    """A process that compiles kernels could not be started, or died."""

    exit_code = 3


class CacheWarning(UserWarning):
    """The kernel cache, or an entry of it, can't be used; results are not affected."""
