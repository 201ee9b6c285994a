"""The public functions: optimize, inspect, expand, check and build.

Each takes a path or an ``onnx.ModelProto`` and never changes either.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from onnx import ModelProto, helper

from stof_onnx import planning
from stof_onnx.accuracy import CheckResult, check
from stof_onnx.accuracy.precision import computes_in_half
from stof_onnx.accuracy.shapes import SymbolicShapes
from stof_onnx.engine import build
from stof_onnx.expansion import expand_model
from stof_onnx.gpu_detect import detect_compute_capabilities
from stof_onnx.ir.errors import CheckFailedError, InputError
from stof_onnx.ir.operators import masked_attention
from stof_onnx.ir.operators.registry import DOMAIN
from stof_onnx.ir.plan import ATTRIBUTE, Plan, as_tensor, encode
from stof_onnx.ir.target import Target, no_gpus, parse_targets
from stof_onnx.jit.cache import KernelCache
from stof_onnx.jit.nvrtc import find_nvrtc
from stof_onnx.model_io import check_output_path, load_model, outline, save_model
from stof_onnx.precision import Lowered, PrecisionName, lower, require_autocast
from stof_onnx.precision.rounded import float32_twin
from stof_onnx.precision.target import FLOAT16
from stof_onnx.progress import NullProgress, Progress
from stof_onnx.report.contents import read_contents
from stof_onnx.report.entries import (
    attention_entry,
    nested_softmaxes,
    other_softmaxes,
    table_entry,
)
from stof_onnx.report.mask_plot import MaskPlots
from stof_onnx.report.masks import MaskReports, given_dims
from stof_onnx.report.records import Kind, OptimizedReport, Report
from stof_onnx.rewriter.rewrite import FusedBlock, Rewrite, rewrite
from stof_onnx.templates.attention_node import AttentionNode
from stof_onnx.templates.registry import Node
from stof_onnx.templates.table_node import TableNode

__all__ = ["Result", "build", "check", "expand", "inspect", "optimize"]

ModelOrPath = ModelProto | str | os.PathLike[str]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Result:
    """What :func:`optimize` made.

    Attributes:
        model: the optimized model.
        report: what was found, fused, refused and checked.
    """

    model: ModelProto
    report: Report


def optimize(
    model: ModelOrPath,
    output: PathLike | None = None,
    *,
    targets: Sequence[str] = ("auto",),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    check: bool = True,
    kernels: bool = True,
    precision: PrecisionName | None = None,
    autocast: bool = False,
    cache: KernelCache | None = None,
    progress: Progress | None = None,
) -> Result:
    """Replace masked attention by stof nodes, check the result, compile kernels, write it.

    Args:
        model: the model or its path.
        output: where to write the optimized model; None to write nothing.
        targets: GPUs to compile kernels for, e.g. ["sm_90"]; "auto" for this machine's.
        input_shapes: shapes to check with, by input name.
        check: compare the result, expanded, with the original in ONNX Runtime.
        kernels: compile a kernel for each node and target; without them the result can be
            checked and expanded, but not run.
        precision: "float16" or "bfloat16" to lower a float32 model to first; its inputs and
            outputs stay float32. What this changes is measured unless ``check`` is False; the
            optimized model is compared with the lowered one, as float32 copies of both.
        autocast: let NVIDIA ModelOpt's AutoCast choose what else stays in float32.
        cache: where compiled kernels are kept; None to compile each time.
        progress: is told how far the work is.

    Raises:
        InputError: the model, a shape or a target can't be used.
        OutputError: the output can't be written.
        CheckFailedError: the result differs from the original, or an output overflows when it is
            lowered; nothing was written.
        MissingDependencyError: NVRTC, which compiles the kernels, isn't installed, or ModelOpt.
        CompileError: a kernel can't be compiled, which is a bug of stof-onnx.
    """
    progress = progress or NullProgress()
    seconds: dict[str, float] = {}
    chosen = parse_targets(targets, detect_compute_capabilities if kernels else no_gpus)
    if kernels:
        find_nvrtc()  # a missing compiler is better known before the work than after it
    if autocast:
        require_autocast()
    if output is not None:
        check_output_path(output, [] if isinstance(model, ModelProto) else [model])
    with _timed(seconds, "load"):
        original = _load(model)
    _require_original(original, model)
    _require_shapes(original, input_shapes)
    lowered: Lowered | None = None
    if precision is not None:
        with _timed(seconds, "lower"):
            lowered = lower(
                original,
                precision,
                autocast=autocast,
                input_shapes=input_shapes,
                progress=progress,
            )
    source = original if lowered is None else lowered.model
    # A model that nobody else has, and that nothing is compared with, becomes the result: there
    # may not be memory for its weights twice. The report wants the original's nodes alone.
    in_place = not isinstance(model, ModelProto) and not check and lowered is None
    reported = outline(source) if in_place else source
    with _timed(seconds, "rewrite"):
        done = _rewrite(source, progress, kernels=kernels, in_place=in_place)
    compared: CheckResult | None = None
    if check and done.is_changed:
        with _timed(seconds, "check"):
            compared = _require_equal(source, done.model, lowered, input_shapes, progress)
    if check and lowered is not None:
        with _timed(seconds, "measure"):
            lowered = lowered.measured(original, done.model, input_shapes, progress)
    plans: dict[str, Plan] = {}
    if kernels and done.is_changed:
        with _timed(seconds, "compile"):
            plans = _add_plans(done, chosen, cache, progress)
    if output is not None:
        with _timed(seconds, "write"):
            save_model(done.model, output)
    report = _report(
        model,
        done,
        reported,
        MaskReports(given_dims(reported, input_shapes)),
        kind="optimization",
        targets=chosen if plans else (),
        compared=compared,
        plans=plans,
        seconds=seconds,
        notes=_notes(done, chosen, compared, plans, lowered, is_written=output is not None),
        lowered=lowered,
        progress=progress,
    )
    return Result(done.model, report)


def inspect(
    model: ModelOrPath,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    plot: PathLike | None = None,
    progress: Progress | None = None,
) -> Report | OptimizedReport:
    """Say what :func:`optimize` would fuse or refuse and why, or what it made.

    Args:
        model: the model or its path.
        input_shapes: checked against the model's inputs; a dynamic model is read
            symbolically in any case, and the densities of its masks are measured at these.
        plot: folder to draw each distinct mask into, as PNG; None to draw none.
        progress: is told how far the work is.

    Returns:
        A Report of kind "original" of a model as it was exported; an OptimizedReport of one
        that has stof nodes.

    Raises:
        InputError: the model or a shape can't be used.
        MalformedNodeError: a stof node breaks its specification, or its plan is damaged.
        MissingDependencyError: matplotlib, which draws, isn't installed.
        OutputError: a picture can't be written.
    """
    progress = progress or NullProgress()
    plots = None if plot is None else MaskPlots(plot)
    loaded = _load(model)
    _require_shapes(loaded, input_shapes)
    masks = MaskReports(given_dims(loaded, input_shapes), plots)
    if _is_optimized(loaded):
        return read_contents(loaded, _name(model), masks, progress)
    done = _rewrite(loaded, progress)
    return _report(model, done, loaded, masks, kind="original", notes=done.notes, progress=progress)


def expand(model: ModelOrPath, output: PathLike | None = None) -> ModelProto:
    """Turn every stof node back into standard ONNX operators.

    Args:
        model: the optimized model or its path.
        output: where to write the result; None to write nothing.

    Raises:
        InputError: the model can't be used.
        MalformedNodeError: a stof node breaks its specification.
        OutputError: the output can't be written.
    """
    if output is not None:
        check_output_path(output, [] if isinstance(model, ModelProto) else [model])
    expanded = expand_model(_load(model))
    if output is not None:
        save_model(expanded, output)
    return expanded


def _load(model: ModelOrPath) -> ModelProto:
    return model if isinstance(model, ModelProto) else load_model(model)


def _is_optimized(model: ModelProto) -> bool:
    return any(node.domain == DOMAIN for node in model.graph.node)


def _require_original(loaded: ModelProto, model: ModelOrPath) -> None:
    if _is_optimized(loaded):
        raise InputError(
            f"{_name(model)} already contains stof nodes",
            "a model as it was exported",
            "use the original, or `stof-onnx expand` it first",
        )


def _require_shapes(model: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None) -> None:
    if input_shapes:
        # Resolving them is the test: contradictions raise an InputError.
        SymbolicShapes(model, input_shapes)


def _name(model: ModelOrPath) -> str:
    return model.graph.name or "model" if isinstance(model, ModelProto) else os.fspath(model)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def _rewrite(
    model: ModelProto, progress: Progress, *, kernels: bool = True, in_place: bool = False
) -> Rewrite:
    with progress.task("Reading attention blocks", None) as task:
        refuse = functools.partial(planning.refusal, masked_attention.OP_TYPE)
        return rewrite(
            model,
            on_block=task.advance,
            refuse=refuse,
            mask_tables=kernels,
            in_place=in_place,
        )


def _add_plans(
    done: Rewrite, targets: Sequence[Target], cache: KernelCache | None, progress: Progress
) -> dict[str, Plan]:
    """Give each stof node of the rewritten model its plan; returns them by node name."""
    from stof_onnx import __version__

    nodes: dict[str, Node] = {
        block.node: AttentionNode(block.attributes, block.inputs)
        for block in done.blocks
        if isinstance(block, FusedBlock)
    }
    nodes |= {table.node: TableNode(table.attributes, table.inputs) for table in done.tables}
    plans = planning.make_plans(
        nodes, targets, producer=f"stof-onnx {__version__}", cache=cache, progress=progress
    )
    for node in done.model.graph.node:
        if node.domain == DOMAIN:
            tensor = as_tensor(encode(plans[node.name]))
            node.attribute.append(helper.make_attribute(ATTRIBUTE, tensor))
    return plans


def _require_equal(
    original: ModelProto,
    optimized: ModelProto,
    lowered: Lowered | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    progress: Progress,
) -> CheckResult:
    if lowered is not None:
        original, optimized = lowered.twin(original), lowered.twin(optimized)
    result = check(original, optimized, input_shapes=input_shapes, progress=progress)
    if not result.passed and lowered is None and computes_in_half(original):
        # Rows of padding amplify the rounding of half precision; the rewrite itself shows in
        # float32 copies.
        twins = (float32_twin(model, FLOAT16) for model in (original, optimized))
        copies = check(*twins, input_shapes=input_shapes, progress=progress)
        if copies.passed:
            note = "in float16 rounding alone exceeds the tolerance: float32 copies were compared"
            result = replace(copies, notes=(*copies.notes, note))
    if result.passed:
        return result
    where = result.first_departure
    first = f"first at node {where!r}" if where else "at no single node that could be named"
    worst = result.worst
    detail = ""
    if worst is not None:
        detail = (
            f"; output {worst.output.output!r} is off by {worst.output.max_abs:.3g} at {worst.feed}"
        )
    raise CheckFailedError(
        f"the optimized model differs from its original, {first}{detail}",
        "",
        "nothing was written; please report this with the model, or use --no-check to look at it",
    )


def _notes(
    done: Rewrite,
    targets: Sequence[Target],
    compared: CheckResult | None,
    plans: Mapping[str, Plan],
    lowered: Lowered | None,
    *,
    is_written: bool,
) -> tuple[str, ...]:
    """The rewriter's notes, and what the result can't do or wasn't put to."""
    notes = [*done.notes, *(() if lowered is None else lowered.notes)]
    if not any(isinstance(block, FusedBlock) for block in done.blocks):
        model = "model" if lowered is None else "lowered model"
        copy, itself = f"a copy of the {model} was written", f"the result is the {model} itself"
        return (*notes, f"nothing was fused: {copy if is_written else itself}")
    if compared is None:
        notes.append("the result was not compared with the original")
    elif lowered is not None:
        notes.append("the check compared float32 copies of the lowered and the optimized model")
    if not plans:
        notes.append("no kernels were compiled: the result can be checked and expanded, not run")
    elif any(target.is_portable for target in targets):
        notes.append(_portable_note(next(iter(plans.values()))))
    return tuple(notes)


def _portable_note(plan: Plan) -> str:
    # "NVRTC 13.0.88": the driver has to know the PTX of its first two numbers.
    compiler = plan.producer.rsplit(", ", 1)[-1]
    version = ".".join(compiler.removeprefix("NVRTC ").split(".")[:2])
    return (
        f"portable PTX of NVRTC {version} is compiled by the driver when the engine is loaded,"
        f" which takes a driver for CUDA {version} or newer; name the GPU with --target to avoid"
        " both"
    )


def _report(
    model: ModelOrPath,
    done: Rewrite,
    source: ModelProto,
    masks: MaskReports,
    *,
    kind: Kind,
    targets: Sequence[Target] = (),
    compared: CheckResult | None = None,
    plans: Mapping[str, Plan] | None = None,
    seconds: Mapping[str, float] | None = None,
    notes: tuple[str, ...] = (),
    lowered: Lowered | None = None,
    progress: Progress | None = None,
) -> Report:
    plans = plans or {}
    attention = []
    with (progress or NullProgress()).task("Looking at masks", len(done.blocks)) as task:
        for block in done.blocks:
            plan = plans.get(block.node) if isinstance(block, FusedBlock) else None
            attention.append(attention_entry(block, kind, masks, plan))
            task.advance()
    nested = nested_softmaxes(source)
    unseen = f"not looked at: {nested} Softmax inside If, Loop, Scan or a function"
    return Report(
        model=_name(model),
        attention=tuple(attention),
        nodes_before=done.nodes_before,
        nodes_after=done.nodes_after,
        kind=kind,
        tables=tuple(table_entry(table, plans.get(table.node)) for table in done.tables),
        targets=tuple(target.name for target in targets),
        notes=(*notes, *masks.notes, *([unseen] if nested else [])),
        check=None if compared is None else compared.to_json(),
        seconds=dict(seconds or {}),
        precision=None if lowered is None else lowered.report,
        other_softmaxes=other_softmaxes(source, done.blocks),
    )
