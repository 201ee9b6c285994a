"""What a comparison of two models found, as plain records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the original's.

    Attributes:
        atol: an element passes if it is within this absolute distance,
        rtol: or within this distance relative to the original's element.
        rel_l2: highest relative L2 distance of the whole output; None: not limited.
    """

    atol: float
    rtol: float
    rel_l2: float | None = None


@dataclass(frozen=True)
class OutputResult:
    """One output of one run.

    Attributes:
        output: name of the tensor.
        dtype: of the original's output, e.g. "float32".
        max_abs: largest absolute difference; positions where both hold NaN, or the
            same infinity, count as equal; infinite where only one is NaN.
        rel_l2: L2 norm of the difference over the L2 norm of the original's output.
        tolerance: what was allowed.
        passed: whether the output is within it.
        reason: why it failed, if that isn't plain from the numbers ("shape [2, 3],
            wanted [2, 4]"), or why the tolerance isn't the usual one.
    """

    output: str
    dtype: str
    max_abs: float
    rel_l2: float
    tolerance: Tolerance
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class FeedResult:
    """All outputs of one run.

    Attributes:
        feed: the inputs in words, e.g. "batch 2, sequence 33, right padding".
        outputs: in the order of the original's outputs; empty if the run failed.
        error: what ONNX Runtime said if it could not run the optimized model.
    """

    feed: str
    outputs: tuple[OutputResult, ...]
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the model ran and every output is within its tolerance."""
        return not self.error and all(output.passed for output in self.outputs)


@dataclass(frozen=True)
class Departure:
    """The first stof node whose output is not the original's.

    Attributes:
        node: name of the node in the optimized model (its output's if it has none).
        op_type: of the node.
        output: name of the tensor, which both models have.
        feed: the inputs in words.
        max_abs: largest absolute difference of the tensor.
        rel_l2: relative L2 distance of the tensor.
    """

    node: str
    op_type: str
    output: str
    feed: str
    max_abs: float
    rel_l2: float


@dataclass(frozen=True)
class Worst:
    """The output that is farthest off, and the feed that showed it."""

    feed: str
    output: OutputResult


@dataclass(frozen=True)
class CheckResult:
    """The verdict on an optimized model.

    Attributes:
        feeds: one entry for each set of inputs.
        departure: where a failing model leaves the original; None if the check
            passed, or if every stof node agrees (the fault is then elsewhere).
        notes: what the user should know about the inputs and tolerances.
    """

    feeds: tuple[FeedResult, ...]
    departure: Departure | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output of every feed is within its tolerance."""
        return bool(self.feeds) and all(feed.passed for feed in self.feeds)

    @property
    def first_departure(self) -> str | None:
        """Name of the first stof node that departs from the original."""
        return self.departure.node if self.departure is not None else None

    @property
    def worst(self) -> Worst | None:
        """The farthest output: failing ones first, then by relative L2 distance."""
        pairs = [Worst(feed.feed, output) for feed in self.feeds for output in feed.outputs]
        return max(
            pairs,
            key=lambda pair: (not pair.output.passed, pair.output.rel_l2, pair.output.max_abs),
            default=None,
        )

    def rows(self) -> list[tuple[str, str, float, float, bool]]:
        """One row for each output of each feed: feed, output, max abs, rel L2, passed."""
        return [
            (feed.feed, output.output, output.max_abs, output.rel_l2, output.passed)
            for feed in self.feeds
            for output in feed.outputs
        ]

    def to_json(self) -> dict[str, Any]:
        """Every field and verdict as a JSON object; errors may be infinite floats."""
        return {
            "passed": self.passed,
            "first_departure": self.first_departure,
            "departure": _asdict(self.departure),
            "worst": _asdict(self.worst),
            "feeds": [{**dataclasses.asdict(feed), "passed": feed.passed} for feed in self.feeds],
            "notes": list(self.notes),
        }


def _asdict(record: Departure | Worst | None) -> dict[str, Any] | None:
    return None if record is None else dataclasses.asdict(record)
