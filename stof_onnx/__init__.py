"""Replace masked attention in exported ONNX Transformers by TensorRT plugin nodes.

    import stof_onnx

    result = stof_onnx.optimize("bert.onnx", "bert.stof.onnx", targets=["sm_90"])
    print(result.report.fused, "blocks fused")

Everything public is imported on first use, so that ``import stof_onnx`` costs
nothing and never needs a dependency that the caller doesn't use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stof_onnx.accuracy import CheckResult
    from stof_onnx.api import Result, build, check, expand, inspect, optimize
    from stof_onnx.engine import BuildResult
    from stof_onnx.ir.errors import (
        CheckFailedError,
        InputError,
        MissingDependencyError,
        OutputError,
        StofError,
    )
    from stof_onnx.jit.cache import KernelCache
    from stof_onnx.progress import NullProgress, Progress, RichProgress
    from stof_onnx.report import (
        AttentionReport,
        DensityReport,
        KernelReport,
        MaskReport,
        NodeReport,
        OptimizedReport,
        Report,
        TableReport,
    )

    __version__: str

__all__ = [
    "AttentionReport",
    "BuildResult",
    "CheckFailedError",
    "CheckResult",
    "DensityReport",
    "InputError",
    "KernelCache",
    "KernelReport",
    "MaskReport",
    "MissingDependencyError",
    "NodeReport",
    "NullProgress",
    "OptimizedReport",
    "OutputError",
    "Progress",
    "Report",
    "Result",
    "RichProgress",
    "StofError",
    "TableReport",
    "__version__",
    "build",
    "check",
    "expand",
    "inspect",
    "optimize",
]

_HOME_OF = {
    "AttentionReport": "stof_onnx.report",
    "DensityReport": "stof_onnx.report",
    "BuildResult": "stof_onnx.engine",
    "CheckFailedError": "stof_onnx.ir.errors",
    "CheckResult": "stof_onnx.accuracy",
    "InputError": "stof_onnx.ir.errors",
    "KernelCache": "stof_onnx.jit.cache",
    "KernelReport": "stof_onnx.report",
    "MaskReport": "stof_onnx.report",
    "MissingDependencyError": "stof_onnx.ir.errors",
    "NodeReport": "stof_onnx.report",
    "NullProgress": "stof_onnx.progress",
    "OptimizedReport": "stof_onnx.report",
    "OutputError": "stof_onnx.ir.errors",
    "Progress": "stof_onnx.progress",
    "Report": "stof_onnx.report",
    "Result": "stof_onnx.api",
    "RichProgress": "stof_onnx.progress",
    "StofError": "stof_onnx.ir.errors",
    "TableReport": "stof_onnx.report",
    "build": "stof_onnx.engine",
    "check": "stof_onnx.accuracy",
    "expand": "stof_onnx.api",
    "inspect": "stof_onnx.api",
    "optimize": "stof_onnx.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("stof-onnx")
    except metadata.PackageNotFoundError:
        return "0+uninstalled"
