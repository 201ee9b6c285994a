"""The public functions: optimize, inspect, expand, check and build.

Each takes a path or an ``onnx.ModelProto`` and never changes either.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from onnx import ModelProto, helper

from stof_onnx import planning
from stof_onnx.accuracy import CheckResult, check
from stof_onnx.accuracy.shapes import SymbolicShapes
from stof_onnx.engine import build
from stof_onnx.expansion import expand_model
from stof_onnx.gpu_detect import detect_compute_capabilities
from stof_onnx.ir.errors import CheckFailedError, InputError
from stof_onnx.ir.operators import masked_attention
from stof_onnx.ir.operators.registry import DOMAIN
from stof_onnx.ir.plan import ATTRIBUTE, Plan, Variant, as_tensor, encode
from stof_onnx.ir.target import Target, parse_targets
from stof_onnx.jit.cache import KernelCache
from stof_onnx.model_io import check_output_path, load_model, save_model
from stof_onnx.progress import NullProgress, Progress
from stof_onnx.report import AttentionReport, KernelReport, MaskReport, Report
from stof_onnx.rewriter.rewrite import FusedBlock, RefusedBlock, Rewrite, rewrite
from stof_onnx.templates.attention_node import AttentionNode
from stof_onnx.templates.registry import Node
from stof_onnx.templates.table_node import TableNode

__all__ = ["Result", "build", "check", "expand", "inspect", "optimize"]

_UNCHANGED = "nothing was fused: the result is the model as it was"

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
    cache: KernelCache | None = None,
    progress: Progress | None = None,
) -> Result:
    """Replace masked attention by stof nodes, check the result, compile kernels, write it.

    Args:
        model: the model or its path.
        output: where to write the optimized model; None to write nothing.
        targets: GPUs to optimize for, e.g. ["sm_90"]; "auto" for this machine's.
        input_shapes: shapes to check with, by input name.
        check: compare the result, expanded, with the original in ONNX Runtime.
        kernels: compile a kernel for each node and target; without them the result can be
            checked and expanded, but not run.
        cache: where compiled kernels are kept; None to compile each time.
        progress: is told how far the work is.

    Raises:
        InputError: the model, a shape or a target can't be used.
        OutputError: the output can't be written.
        CheckFailedError: the result differs from the original; nothing was written.
        MissingDependencyError: NVRTC, which compiles the kernels, isn't installed.
        CompileError: a kernel can't be compiled, which is a bug of stof-onnx.
    """
    progress = progress or NullProgress()
    seconds: dict[str, float] = {}
    chosen = parse_targets(list(targets), detect_compute_capabilities)
    if output is not None:
        check_output_path(output, [] if isinstance(model, ModelProto) else [model])
    with _timed(seconds, "load"):
        original = _load_original(model)
    _require_shapes(original, input_shapes)
    with _timed(seconds, "rewrite"):
        done = _rewrite(original, progress, kernels=kernels)
    compared: CheckResult | None = None
    if check and done.model is not original:
        with _timed(seconds, "check"):
            compared = _require_equal(original, done.model, input_shapes, progress)
    plans: dict[str, Plan] = {}
    if kernels and done.model is not original:
        with _timed(seconds, "compile"):
            plans = _add_plans(done, chosen, cache, progress)
    if output is not None:
        with _timed(seconds, "write"):
            save_model(done.model, output)
    return Result(
        done.model,
        _report(model, done, targets=chosen, compared=compared, plans=plans, seconds=seconds),
    )


def inspect(
    model: ModelOrPath,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Say what :func:`optimize` would fuse or refuse, and why.

    Args:
        model: the model or its path.
        input_shapes: checked against the model's inputs; a dynamic model is read
            symbolically in any case.
        progress: is told how far the work is.

    Raises:
        InputError: the model or a shape can't be used.
    """
    original = _load_original(model)
    _require_shapes(original, input_shapes)
    return _report(model, _rewrite(original, progress or NullProgress()))


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


def _load_original(model: ModelOrPath) -> ModelProto:
    loaded = _load(model)
    if any(node.domain == DOMAIN for node in loaded.graph.node):
        raise InputError(
            f"{_name(model)} already contains stof nodes",
            "a model as it was exported",
            "use the original, or `stof-onnx expand` it first",
        )
    return loaded


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


def _rewrite(model: ModelProto, progress: Progress, *, kernels: bool = True) -> Rewrite:
    with progress.task("Reading attention blocks", None) as task:
        refuse = functools.partial(planning.refusal, masked_attention.OP_TYPE)
        return rewrite(model, on_block=task.advance, refuse=refuse, mask_tables=kernels)


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
    input_shapes: Mapping[str, Sequence[int]] | None,
    progress: Progress,
) -> CheckResult:
    result = check(original, optimized, input_shapes=input_shapes, progress=progress)
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


def _report(
    model: ModelOrPath,
    done: Rewrite,
    *,
    targets: Sequence[Target] = (),
    compared: CheckResult | None = None,
    plans: Mapping[str, Plan] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Report:
    return Report(
        model=_name(model),
        attention=tuple(_entry(block, plans or {}) for block in done.blocks),
        nodes_before=done.nodes_before,
        nodes_after=done.nodes_after,
        targets=tuple(target.name for target in targets),
        notes=done.notes if done.nodes_after != done.nodes_before else (*done.notes, _UNCHANGED),
        check=None if compared is None else compared.to_json(),
        seconds=dict(seconds or {}),
    )


def _entry(block: FusedBlock | RefusedBlock, plans: Mapping[str, Plan]) -> AttentionReport:
    if isinstance(block, RefusedBlock):
        return AttentionReport(
            name=block.name,
            status="refused",
            reason=block.reason,
            num_heads=block.num_heads,
            head_dim=block.head_dim,
        )
    node = block.attributes
    layouts = " ".join(layout.order for layout in (node.query, node.key, node.value))
    mask = MaskReport(
        kind=block.kind.name,
        parameters=block.kind.parameters,
        expression=node.mask.to_text(),
        empty_row=node.mask.empty_row(node.score_dtype),
        proof=block.proof,
    )
    return AttentionReport(
        name=block.block.name,
        status="fused",
        reason=f"{block.block.nodes} nodes became one",
        mask=mask,
        num_heads=node.num_heads,
        kv_num_heads=node.kv_num_heads,
        head_dim=node.head_dim,
        query_shape=block.query_shape,
        key_shape=block.key_shape,
        layout=f"{layouts} -> {node.output}",
        nodes_replaced=block.block.nodes,
        kernels=tuple(_kernel(v) for v in plans[block.node].variants) if plans else (),
    )


def _kernel(variant: Variant) -> KernelReport:
    """The kernel of a variant's last bucket, which runs any shape."""
    launch = variant.buckets[-1].launches[-1]
    kernel = launch.kernel
    return KernelReport(
        target=variant.target,
        template=kernel.template,
        tactic=dict(variant.buckets[-1].tactic),
        registers=kernel.registers,
        shared_bytes=kernel.static_shared + kernel.max_dynamic_shared,
        image_bytes=len(kernel.image),
    )
