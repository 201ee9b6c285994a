"""Does an optimized model compute what its original computes?

Both run in ONNX Runtime on the same inputs: the original as it is, the optimized one
expanded to standard operators, which is what its stof nodes mean.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from onnx import ModelProto

from stof_onnx.accuracy.domains import graph_inputs
from stof_onnx.accuracy.inputs import Feed, FeedPlan, plan_feeds
from stof_onnx.accuracy.lengths import telling_lengths
from stof_onnx.accuracy.locate import first_departure
from stof_onnx.accuracy.precision import computes_in_half, runnable
from stof_onnx.accuracy.result import CheckResult, FeedResult
from stof_onnx.accuracy.session import Arrays, RefusedError, Session, open_session
from stof_onnx.accuracy.tolerance import Rules, judge
from stof_onnx.ir.errors import CheckFailedError, InputError
from stof_onnx.ir.operators.registry import DOMAIN
from stof_onnx.model_io import load_model
from stof_onnx.progress import NullProgress, Progress

ModelOrPath = ModelProto | str | os.PathLike[str]


def check(
    original: ModelOrPath,
    optimized: ModelOrPath,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> CheckResult:
    """Compare an optimized model with its original on generated inputs.

    Args:
        original: the model that was optimized, or its path.
        optimized: what became of it, or its path.
        atol: absolute tolerance; by default scaled to each output, see
            :mod:`stof_onnx.accuracy.tolerance`.
        rtol: relative tolerance; by default from each output's type.
        input_shapes: shapes to use for some or all inputs, by name.
        progress: is told how far the work is.
        seed: of the generated inputs.

    Returns:
        What was run and how it compared. A model that differs is no error here; see
        :attr:`CheckResult.passed`.

    Raises:
        InputError: a file or shape can't be used, or ONNX Runtime can't run the original.
        CheckFailedError: the models can't be compared at all: their inputs or outputs
            differ, or ONNX Runtime can't load the optimized one.
    """
    source = _load(original)
    stof_model = _load(optimized)
    _require_original(source, stof_model)
    target = _expand(stof_model)
    _require_same_interface(source, target)
    source, notes = runnable(source)
    target, _ = runnable(target)
    in_half = computes_in_half(source) or computes_in_half(target)
    rules = Rules(atol, rtol, in_half)
    progress = progress or NullProgress()
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(_original_session(source))
        plan = plan_feeds(
            source, reference.run, input_shapes, seed, lengths=telling_lengths(stof_model)
        )
        candidate = stack.enter_context(_expanded_session(target))
        results = _run_all(source, reference, candidate, plan, rules=rules, progress=progress)
    departure = None
    failed = _first_failed(plan, results)
    if failed is not None:
        with progress.task("Locating the difference", None):
            departure = first_departure(source, stof_model, target, failed, rules)
    return CheckResult(results, departure, (*notes, *plan.notes))


def _load(model: ModelOrPath) -> ModelProto:
    return model if isinstance(model, ModelProto) else load_model(model)


def _expand(model: ModelProto) -> ModelProto:
    from stof_onnx.expansion import expand_model

    return expand_model(model)


def _require_original(source: ModelProto, stof_model: ModelProto) -> None:
    if not _is_optimized(source):
        return
    next_step = "give the model that the second was made from"
    if not _is_optimized(stof_model):
        next_step = "swap the two: the original comes first"
    raise InputError(
        "the first model has stof nodes, so it is not the original",
        "a model as it was exported",
        next_step,
    )


def _is_optimized(model: ModelProto) -> bool:
    return any(node.domain == DOMAIN for node in model.graph.node)


def _require_same_interface(source: ModelProto, target: ModelProto) -> None:
    for kind, wanted, came in (
        ("inputs", graph_inputs(source), graph_inputs(target)),
        ("outputs", source.graph.output, target.graph.output),
    ):
        if {value.name for value in wanted} != {value.name for value in came}:
            raise CheckFailedError(
                f"the optimized model has {kind} {', '.join(v.name for v in came) or 'none'}",
                f"the original's: {', '.join(v.name for v in wanted) or 'none'}",
                "give the model that it was made from",
            )


@contextlib.contextmanager
def _original_session(model: ModelProto) -> Iterator[Session]:
    with contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(open_session(model, "original"))
        except RefusedError as error:
            raise InputError(
                f"ONNX Runtime can't load the original model: {error}",
                "a model that it loads on the CPU",
                "the model as it was exported is the problem: export it again, e.g. with"
                " torch.onnx.export(..., dynamo=True); or, if TensorRT takes it, skip the check"
                " (optimize --no-check) and compare engines",
            ) from error
        yield session


@contextlib.contextmanager
def _expanded_session(model: ModelProto) -> Iterator[Session]:
    with contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(open_session(model, "optimized"))
        except RefusedError as error:
            raise CheckFailedError(
                f"ONNX Runtime can't load the expanded optimized model: {error}",
                next_step="report this with the model at hand",
            ) from error
        yield session


def _run_all(
    source: ModelProto,
    reference: Session,
    candidate: Session,
    plan: FeedPlan,
    *,
    rules: Rules,
    progress: Progress,
) -> tuple[FeedResult, ...]:
    results = []
    with contextlib.ExitStack() as stack, progress.task("Checking", len(plan.feeds)) as task:

        @functools.cache
        def plain() -> Session:
            return stack.enter_context(open_session(source, "original", optimize=False))

        for feed in plan.feeds:
            results.append(_run_one(reference, candidate, feed, rules, plain))
            task.advance()
    return tuple(results)


def _run_one(
    reference: Session,
    candidate: Session,
    feed: Feed,
    rules: Rules,
    plain: Callable[[], Session],
) -> FeedResult:
    try:
        expected = reference.run(feed.arrays)
    except RefusedError as error:
        raise InputError(
            f"the original model fails on {feed.name}: {error}",
            next_step="give shapes that it takes with --input-shapes",
        ) from error
    try:
        actual = candidate.run(feed.arrays)
    except RefusedError as error:
        return FeedResult(feed.name, (), str(error))

    @functools.cache
    def rerun() -> Arrays:
        try:
            return plain().run(feed.arrays)
        except RefusedError:
            # Only ONNX Runtime's optimizer makes the model run: then nothing widens a tolerance.
            return expected

    return FeedResult(
        feed.name,
        tuple(judge(name, array, actual[name], rules, rerun) for name, array in expected.items()),
    )


def _first_failed(plan: FeedPlan, results: Sequence[FeedResult]) -> Feed | None:
    """The first feed with a wrong output; one that didn't run has no tensors to compare."""
    for feed, result in zip(plan.feeds, results, strict=True):
        if not result.passed and not result.error:
            return feed
    return None
