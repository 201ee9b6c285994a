"""What `optimize` and `inspect` say about a model."""

from stof_onnx.report.records import (
    AttentionReport,
    DensityReport,
    KernelReport,
    MaskReport,
    NodeReport,
    OptimizedReport,
    Report,
    TableReport,
)

__all__ = [
    "AttentionReport",
    "DensityReport",
    "KernelReport",
    "MaskReport",
    "NodeReport",
    "OptimizedReport",
    "Report",
    "TableReport",
]
