"""Comparing an optimized model with its original, run by ONNX Runtime."""

from stof_onnx.accuracy.compare import check
from stof_onnx.accuracy.inputs import Feed, FeedPlan, generate_feeds, plan_feeds
from stof_onnx.accuracy.result import (
    CheckResult,
    Departure,
    FeedResult,
    OutputResult,
    Tolerance,
    Worst,
)

__all__ = [
    "CheckResult",
    "Departure",
    "Feed",
    "FeedPlan",
    "FeedResult",
    "OutputResult",
    "Tolerance",
    "Worst",
    "check",
    "generate_feeds",
    "plan_feeds",
]
