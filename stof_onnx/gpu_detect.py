"""Which GPUs this machine has, asked of NVIDIA's driver itself.

Through ctypes, so that it needs neither a CUDA toolkit nor a Python package, and
answers "none" where there is no driver. CUDA_VISIBLE_DEVICES is respected, as the
driver does it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_DRIVER_LIBRARY = "libcuda.so.1"
_SUCCESS = 0
_NO_DEVICE = 100
# CUdevice_attribute numbers of cuda.h, which never change.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver calls it, e.g. "NVIDIA H100 80GB HBM3".
        compute_capability: major and minor, e.g. (9, 0).
        memory_bytes: total device memory.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class GpuSurvey:
    """What the driver answered.

    Attributes:
        gpus: in the driver's order; empty without a driver or a visible GPU.
        cuda_version: the newest CUDA the driver runs, e.g. "13.0"; "" without a driver.
        problem: why there are no GPUs; "" if there are some.
    """

    gpus: tuple[Gpu, ...] = ()
    cuda_version: str = ""
    problem: str = ""


class _DriverError(Exception):
    """A driver call returned something else than CUDA_SUCCESS."""

    def __init__(self, function: str, code: int, meaning: str) -> None:
        self.code = code
        super().__init__(f"{function} returned {code} ({meaning})")


class _Driver:
    """The few driver calls that are needed, each with its return code checked."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        code = function(*arguments)
        if code != _SUCCESS:
            raise _DriverError(name, code, self._meaning(code))

    def integer(self, name: str, *arguments: object) -> int:
        """Call a function whose first argument is an ``int*`` for its result."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def _meaning(self, code: int) -> str:
        text = ctypes.c_char_p()
        # Not through `call`, which would ask for the meaning of this call's failure again.
        if self._library.cuGetErrorString(code, ctypes.byref(text)) != _SUCCESS or not text.value:
            return "unknown error"
        return text.value.decode(errors="replace")

    def gpu(self, ordinal: int) -> Gpu:
        device = ctypes.c_int(self.integer("cuDeviceGet", ctypes.c_int(ordinal)))
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        memory = ctypes.c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        major, minor = (
            self.integer("cuDeviceGetAttribute", ctypes.c_int(attribute), device)
            for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR)
        )
        return Gpu(name.value.decode(errors="replace"), (major, minor), memory.value)


def survey_gpus(driver_library: str = _DRIVER_LIBRARY) -> GpuSurvey:
    """Ask the driver for its GPUs; never raises.

    Args:
        driver_library: name or path of the driver library.
    """
    try:
        driver = _Driver(ctypes.CDLL(driver_library))
    except OSError as error:
        return GpuSurvey(problem=f"no NVIDIA driver: {error}")
    cuda_version = ""
    try:
        version = driver.integer("cuDriverGetVersion")
        cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        driver.call("cuInit", ctypes.c_uint(0))
        gpus = tuple(driver.gpu(i) for i in range(driver.integer("cuDeviceGetCount")))
    except _DriverError as error:
        problem = "the driver sees no GPU" if error.code == _NO_DEVICE else str(error)
        return GpuSurvey(cuda_version=cuda_version, problem=problem)
    except AttributeError as error:
        return GpuSurvey(problem=f"{driver_library} is not NVIDIA's driver: {error}")
    return GpuSurvey(gpus, cuda_version, "" if gpus else "the driver sees no GPU")


def detect_compute_capabilities() -> list[tuple[int, int]]:
    """The distinct compute capabilities of this machine's GPUs, lowest first.

    Returns:
        E.g. ``[(8, 0), (9, 0)]``; empty without a driver or a visible GPU.
    """
    return sorted({gpu.compute_capability for gpu in survey_gpus().gpus})
