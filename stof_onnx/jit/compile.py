"""The entry point: jobs in, compiled kernels out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing

from stof_onnx.jit.cache import KernelCache
from stof_onnx.jit.job import CompiledKernel, CompileJob
from stof_onnx.jit.nvrtc import find_nvrtc
from stof_onnx.jit.pool import compile_in_workers
from stof_onnx.progress import NullProgress, Progress

# NVRTC takes hundreds of megabytes for a large template: a machine with 128 cores is no
# reason to run 128 of it unasked.
_MOST_WORKERS = 16


def compile_kernels(
    jobs: Sequence[CompileJob],
    *,
    cache: KernelCache | None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[CompiledKernel]:
    """Compile kernels in worker processes, or take them from the cache.

    Equal jobs are compiled once. What is done is stored at once, so that an interrupted run
    goes on where it was.

    Args:
        jobs: what to compile; needn't be distinct.
        cache: where to look first and to store; None to do neither.
        workers: number of processes; if None, one for each core this process may use, but
            at most 16. Never more than there are kernels to compile; none if all are cached.
        progress: told of each kernel that is compiled.

    Returns:
        The kernel of each job, in the order of the jobs.

    Raises:
        ValueError: fewer than one worker.
        MissingDependencyError: NVRTC is not installed, or can't be loaded.
        CompileError: NVRTC refuses a kernel.
        WorkerError: a worker could not be started, or died.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers, wanted at least 1")
    if not jobs:
        return []
    installed = find_nvrtc()
    keys = [job.key(installed.compiler) for job in jobs]
    kernels: dict[str, CompiledKernel] = {}
    todo: list[CompileJob] = []
    for key, job in dict(zip(keys, jobs, strict=True)).items():
        cached = cache.load(key) if cache is not None else None
        if cached is None:
            todo.append(job)
        else:
            kernels[key] = cached
    if todo:
        count = workers or min(_usable_cores(), _MOST_WORKERS)
        with (
            (progress or NullProgress()).task("Compiling kernels", len(todo)) as task,
            closing(compile_in_workers(todo, installed, count)) as compiled,
        ):
            for kernel in compiled:
                kernels[kernel.key] = kernel
                if cache is not None:
                    cache.store(kernel)
                task.advance()
    return [kernels[key] for key in keys]


def _usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
