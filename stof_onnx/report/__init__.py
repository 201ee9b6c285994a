"""What `optimize` and `inspect` say about a model."""

from stof_onnx.report.records import (
    AttentionReport,
    KernelReport,
    MaskReport,
    NodeReport,
    OptimizedReport,
    Report,
    TableReport,
)

__all__ = [
    "AttentionReport",
    "KernelReport",
    "MaskReport",
    "NodeReport",
    "OptimizedReport",
    "Report",
    "TableReport",
]
