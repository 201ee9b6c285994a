"""Every kernel compiles for every target, to the instructions and resources it is meant to have.

The default run compiles a covering subset, the slow one the whole product. What each kernel needs
is recorded in kernel_resources.json below pytest's temporary directory; for a table run
`python scripts/kernel_resources.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from stof_onnx.ir.plan import DataType
from stof_onnx.ir.plan import Kernel as PlanKernel
from stof_onnx.ir.target import Target
from stof_onnx.jit.cache import KernelCache
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.jit.errors import CompileError
from stof_onnx.jit.job import CompiledKernel
from stof_onnx.templates import masked_attention_mma as template
from tests.jit.sass import disassemble, opcode_counts
from tests.templates.attention_nodes import (
    HEAD_DIMS,
    MASKS,
    TARGETS,
    Kernel,
    all_kernels,
    attention_node,
    compile_job,
    covering_kernels,
)

LARGEST_LOCAL = 64
"""Bytes a thread may keep in local memory: ptxas prefers a few spills to one block less on a
multiprocessor, at 128 registers."""

MORE_LOCAL = {("float32", 256): 400}
"""What kernels of an (element type, head dim) need whose accumulators alone fill the registers."""

COVERING = covering_kernels()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kernel_cache")
    kernels = compile_all(COVERING, KernelCache(directory))
    path = tmp_path_factory.getbasetemp() / "kernel_resources.json"
    path.write_text(json.dumps([row(*one) for one in kernels.items()], indent=1))
    return kernels


def compile_all(kernels, cache=None):
    jobs = [kernel.job for kernel in kernels]
    return dict(zip(kernels, compile_kernels(jobs, cache=cache), strict=True))


def row(kernel: Kernel, done: CompiledKernel) -> dict[str, object]:
    return {
        **asdict(kernel),
        **asdict(kernel.parameters),
        "dynamic_shared_bytes": template.shared_bytes(kernel.node, kernel.parameters),
        **({} if done.resources is None else asdict(done.resources)),
    }


@pytest.mark.parametrize("kernel", COVERING, ids=str)
def test_kernels(compiled, kernel, record_property):
    done = compiled[kernel]
    for name, value in row(kernel, done).items():
        record_property(name, value)
    assert not complaints(kernel, done)


def test_the_subset_covers():
    assert {kernel.target for kernel in COVERING} == set(TARGETS)
    assert {kernel.mask for kernel in COVERING} == set(MASKS)
    types = {kernel.dtype for kernel in COVERING}
    assert len({(kernel.dtype, kernel.head_dim) for kernel in COVERING}) == 3 * len(HEAD_DIMS)
    assert len({(kernel.dtype, kernel.target) for kernel in COVERING}) == len(types) * len(TARGETS)


@pytest.mark.slow
def test_the_whole_product():
    found = []
    for kernel, done in compile_all(all_kernels()).items():
        found += [f"{kernel}: {text}" for text in complaints(kernel, done)]
        disassemble.cache_clear()  # a megabyte of text a kernel
    assert not found, "\n".join(found)


def complaints(kernel: Kernel, done: CompiledKernel) -> list[str]:
    """What is wrong with a kernel."""
    found = [f"warning: {warning}" for warning in done.warnings]
    found += in_ptx(kernel, done) if done.kind == "ptx" else in_cubin(kernel, done)
    launch = template.launch(kernel.node, kernel.parameters, plan_kernel(done))
    (term,) = launch.shared.terms
    if term.parts or term.factor != template.max_dynamic_shared(kernel.node, kernel.parameters):
        found.append(f"a launch asks for {launch.shared} bytes of shared memory")
    return found


def plan_kernel(done: CompiledKernel) -> PlanKernel:
    return PlanKernel(template.NAME, done.entry, done.kind, done.image, 0, 0, 0)


def copies_are_asynchronous(kernel: Kernel) -> bool:
    """Whether each copy is of 4 bytes or more."""
    return all(tensor.copy_bytes >= 4 for tensor in kernel.node.strided())


def in_cubin(kernel: Kernel, done: CompiledKernel) -> list[str]:
    resources = done.resources
    assert resources is not None
    counts = opcode_counts(done.image, done.entry)
    is_float = kernel.node.element_type == DataType.FLOAT
    known = MORE_LOCAL.get((kernel.dtype, kernel.head_dim), LARGEST_LOCAL)
    conditions = {
        "no HMMA": counts["HMMA"] > 0,
        # 16x8x16 products in a loop over tiles that is not unrolled, or 3 of 16x8x8 for floats.
        f"{counts['HMMA']} HMMA": counts["HMMA"] >= (24 if is_float else 4),
        "LDSM": (counts["LDSM"] > 0) != is_float,
        "LDGSTS": (counts["LDGSTS"] > 0) == copies_are_asynchronous(kernel),
        f"{resources}": resources.registers <= 255
        and resources.static_shared_bytes == 0
        and resources.local_bytes <= known,
        "local memory that isn't reported": resources.local_bytes > 0
        or counts["LDL"] + counts["STL"] == 0,
    }
    return [text for text, holds in conditions.items() if not holds]


def in_ptx(kernel: Kernel, done: CompiledKernel) -> list[str]:
    text = done.image.decode()
    without_waits = text.replace("cp.async.commit_group", "")
    is_float = kernel.node.element_type == DataType.FLOAT
    product = "m16n8k8.row.col.f32.tf32" if is_float else "m16n8k16.row.col.f32."
    conditions = {
        "not for sm_80": ".target sm_80" in text,
        "another entry": f".entry {template.ENTRY}(" in text,
        "no mma.sync": f"mma.sync.aligned.{product}" in text,
        "ldmatrix": ("ldmatrix.sync" in text) != is_float,
        "cp.async": ("cp.async.c" in without_waits) == copies_are_asynchronous(kernel),
        "local memory": ".local" not in text,
    }
    return [text for text, holds in conditions.items() if not holds]


def test_a_launch_with_another_amount_of_shared_memory_does_not_compile():
    node, parameters = attention_node(), template.Parameters(16, 16)
    asked = template.shared_bytes(node, parameters)
    source = template.source(node, parameters)
    assert source.count(f"== {asked},") == 1
    jobs = [
        compile_job(source.replace(f"== {asked},", f"== {size},"), "sm_80")
        for size in (asked - 16, asked + 16)
    ]
    for job in jobs:
        with pytest.raises(CompileError, match="asks for another amount of shared memory"):
            compile_kernels([job], cache=None)


def test_every_setting_compiles():
    """Not only the first that is usable; with a table, which has a cursor a list entry."""
    kernels = [
        compile_job(template.source(node, parameters), "sm_80")
        for node in (
            attention_node("two tables", "bfloat16", 40),
            attention_node("none", "float32"),
        )
        for parameters, reason in template.candidates(node, Target.parse("sm_80"))
        if reason is None
    ]
    assert len(kernels) == 10
    for done in compile_kernels(kernels, cache=None):
        assert not done.warnings
        assert done.resources.local_bytes <= LARGEST_LOCAL


def test_key_and_value_dims_may_differ():
    nodes = [attention_node(head_dim=48, value_dim=128), attention_node(head_dim=128, value_dim=24)]
    jobs = [compile_job(template.source(node, template.Parameters()), "sm_90") for node in nodes]
    for done in compile_kernels(jobs, cache=None):
        assert opcode_counts(done.image)["LDSM"] > 0


def test_a_softcap_costs_two_special_functions_a_score_and_nothing_where_there_is_none():
    nodes = [attention_node(mask) for mask in ("causal", "softcap")]
    jobs = [compile_job(template.source(node, template.Parameters()), "sm_90") for node in nodes]
    plain, capped = (
        opcode_counts(done.image)["MUFU"] for done in compile_kernels(jobs, cache=None)
    )
    scores = 64 * 64 // 128  # of a tile, a thread
    assert scores < plain < 2 * scores
    assert plain + 2 * scores <= capped < plain + 3 * scores


def test_a_negative_scale_compiles():
    node = attention_node()
    node = replace(node, record=replace(node.record, scale=-0.5))
    (done,) = compile_kernels(
        [compile_job(template.source(node, template.Parameters()), "sm_90")], cache=None
    )
    assert not done.warnings
