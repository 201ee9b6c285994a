"""What lowering a model changes, measured on generated inputs.

The original runs in float32; the optimized model, expanded, runs as a float32 model that rounds
like it (:mod:`stof_onnx.precision.rounded`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from stof_onnx.accuracy.inputs import plan_feeds
from stof_onnx.accuracy.precision import runnable
from stof_onnx.accuracy.session import Arrays, RefusedError, Session, open_session
from stof_onnx.accuracy.tolerance import distance
from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import CheckFailedError, InputError
from stof_onnx.precision.rounded import rounded_copy
from stof_onnx.precision.target import Precision
from stof_onnx.progress import Progress
from stof_onnx.report.records import PrecisionEffect

Array = np.ndarray[Any, Any]


def measure(
    original: ModelProto,
    optimized: ModelProto,
    precision: Precision,
    input_shapes: Mapping[str, Sequence[int]] | None,
    progress: Progress,
) -> tuple[PrecisionEffect, ...]:
    """Compare a lowered and optimized model with its float32 original.

    Args:
        original: in float32.
        optimized: what became of it, with or without stof nodes.
        precision: what it was lowered to.
        input_shapes: shapes to use for some or all inputs, by name.
        progress: is told how far the work is.

    Returns:
        One entry for each output, in the model's order.

    Raises:
        InputError: ONNX Runtime can't run one of the two.
        CheckFailedError: an output becomes infinite or NaN where the original's isn't.
    """
    try:
        with (
            open_session(runnable(original)[0], "original") as reference,
            open_session(_rounding(optimized, precision), "lowered") as candidate,
        ):
            plan = plan_feeds(original, reference.run, input_shapes)
            effects: dict[str, PrecisionEffect] = {}
            with progress.task(f"Measuring {precision.name}", len(plan.feeds)) as task:
                for feed in plan.feeds:
                    _add(effects, reference, candidate, feed.name, feed.arrays)
                    task.advance()
    except RefusedError as error:
        raise InputError(
            f"ONNX Runtime can't run the model to measure what {precision.name} changes: {error}",
            next_step="give shapes that it takes with --input-shapes, or use --no-check",
        ) from error
    _require_finite(effects, precision)
    return tuple(effects.values())


def _rounding(optimized: ModelProto, precision: Precision) -> ModelProto:
    rounding = rounded_copy(expand_model(optimized), precision)
    if precision.name == "bfloat16":
        return rounding
    # Single bfloat16 operators of the original are run as the original's are: in float32.
    return runnable(rounding)[0]


def _add(
    effects: dict[str, PrecisionEffect],
    reference: Session,
    candidate: Session,
    feed: str,
    arrays: Arrays,
) -> None:
    """Run one feed; the worst distances stay."""
    expected, actual = reference.run(arrays), candidate.run(arrays)
    for name, array in expected.items():
        max_abs, rel_l2 = _distance(array, actual[name])
        known = effects.setdefault(name, PrecisionEffect(name, feed, max_abs, rel_l2))
        effects[name] = PrecisionEffect(
            name,
            feed if rel_l2 > known.rel_l2 else known.feed,
            max(max_abs, known.max_abs),
            max(rel_l2, known.rel_l2),
        )


def _distance(expected: Array, actual: Array) -> tuple[float, float]:
    """Infinite, too, where a size depends on the numbers and differs."""
    if expected.shape != actual.shape:
        return float("inf"), float("inf")
    return distance(expected, actual)


def _require_finite(effects: Mapping[str, PrecisionEffect], precision: Precision) -> None:
    for effect in effects.values():
        if np.isfinite(effect.max_abs):
            continue
        step = "leave the model in float32; nothing was written"
        if precision.name == "float16":
            step = f"use --bf16, which has the range of float32, or {step}"
        raise CheckFailedError(
            f"in {precision.name}, output {effect.output!r} overflows on"
            f" {effect.feed or 'its own shapes'}",
            "finite numbers where the original has them",
            step,
        )
