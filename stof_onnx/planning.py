"""Chooses, compiles and records how each stof node runs: one plan a node.

The choice is the first setting that its template finds usable for the node and target. Equal
kernels are compiled once, in worker processes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

from stof_onnx.ir.errors import InputError
from stof_onnx.ir.plan import Bucket, Kernel, Plan, Variant
from stof_onnx.ir.target import Target
from stof_onnx.jit.cache import KernelCache
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.jit.job import CompiledKernel, CompileJob
from stof_onnx.progress import Progress
from stof_onnx.templates.registry import TEMPLATES, Node, Template

_T = TypeVar("_T")


@dataclass(frozen=True)
class Choice:
    """What runs one node on one target.

    Attributes:
        target: the GPU.
        template: the kernel template.
        parameters: its setting.
        job: what has to be compiled.
    """

    target: Target
    template: Template
    parameters: Any
    job: CompileJob


def refusal(operator: str, record: object) -> str | None:
    """Why no template can run a node with these attributes; None if one can."""
    reasons = []
    for template in TEMPLATES[operator]:
        reason = template.refusal(record)
        if reason is None:
            return None
        reasons.append(reason)
    return "; ".join(reasons)


def choose(node: Node, target: Target) -> Choice:
    """The first usable setting of the first template that takes the node.

    Raises:
        InputError: there is none; the message has each template's and setting's reason.
    """
    reasons = []
    for template in TEMPLATES[node.operator]:
        reason = template.refusal(node.record)
        if reason is not None:
            reasons.append(f"{template.NAME}: {reason}")
            continue
        for parameters, rejected in template.candidates(node, target):
            if rejected is None:
                return Choice(
                    target, template, parameters, _job(node, template, parameters, target)
                )
            reasons.append(f"{parameters}: {rejected}")
    raise InputError(
        f"no kernel runs this {node.operator} on {target}: {'; '.join(reasons)}",
        next_step="leave this target out, or use --no-kernels",
    )


def make_plans(
    nodes: Mapping[str, Node],
    targets: Sequence[Target],
    *,
    producer: str,
    cache: KernelCache | None = None,
    progress: Progress | None = None,
) -> dict[str, Plan]:
    """Plans for the nodes of a model.

    Args:
        nodes: by name.
        targets: GPUs to compile for.
        producer: written into the plans, e.g. "stof-onnx 0.1.0".
        cache: where compiled kernels are looked up and kept.
        progress: told of each kernel that is compiled.

    Raises:
        InputError: no kernel runs a node on a target.
        CompileError: a kernel can't be compiled, which is a bug of stof-onnx.
        MissingDependencyError: NVRTC isn't installed.
    """
    choices = {name: [choose(node, target) for target in targets] for name, node in nodes.items()}
    jobs = [choice.job for some in choices.values() for choice in some]
    compiled = iter(compile_kernels(jobs, cache=cache, progress=progress))
    plans = {}
    for name, some in choices.items():
        kernels = [next(compiled) for _ in some]
        plans[name] = _plan(nodes[name], some, kernels, producer)
    return plans


def _job(node: Node, template: Template, parameters: Any, target: Target) -> CompileJob:
    return CompileJob(
        source=template.source(node, parameters),
        entry=template.ENTRY,
        architecture=target.architecture,
        headers=tuple((name, _header(name)) for name in template.HEADERS),
    )


@functools.cache
def _header(name: str) -> str:
    folder = resources.files("stof_onnx").joinpath("kernels")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _plan(
    node: Node, choices: Sequence[Choice], kernels: Sequence[CompiledKernel], producer: str
) -> Plan:
    variants = []
    for choice, compiled in zip(choices, kernels, strict=True):
        kernel = _kernel(node, choice, compiled)
        bucket = Bucket(
            ranges=(),
            tactic=choice.parameters.tactic(),
            workspace=choice.template.workspace(node, choice.parameters),
            launches=(choice.template.launch(node, choice.parameters, kernel),),
        )
        variants.append(Variant.of(choice.target, (bucket,)))
    return Plan(
        operator=node.operator,
        producer=f"{producer}, {kernels[0].compiler}",
        input_types=node.input_types,
        output_types=node.output_types,
        symbols=_once(choice.template.symbols(node) for choice in choices),
        checks=node.checks,
        variants=tuple(variants),
        covers=_once(choice.template.covers(node) for choice in choices),
    )


def _once(groups: Iterable[tuple[_T, ...]]) -> tuple[_T, ...]:
    """What the templates of several targets ask for, equal things once."""
    return tuple(dict.fromkeys(one for group in groups for one in group))


def _kernel(node: Node, choice: Choice, compiled: CompiledKernel) -> Kernel:
    resources_ = compiled.resources
    is_ptx = compiled.kind == "ptx"
    return Kernel(
        template=choice.template.NAME,
        entry=compiled.entry,
        kind=compiled.kind,
        image=compiled.image.rstrip(b"\0") if is_ptx else compiled.image,
        registers=0 if resources_ is None else resources_.registers,
        static_shared=0 if resources_ is None else resources_.static_shared_bytes,
        max_dynamic_shared=choice.template.max_dynamic_shared(node, choice.parameters),
    )
