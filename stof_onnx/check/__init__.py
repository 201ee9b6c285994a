"""Comparing an optimized model with its original, run by ONNX Runtime."""

from stof_onnx.check.compare import check
from stof_onnx.check.inputs import Feed, FeedPlan, generate_feeds, plan_feeds
from stof_onnx.check.result import (
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
