"""Print what the kernels need of a GPU, as a table in Markdown.

For a covering subset of masks, element types, head dims and targets, or all of them::

    python scripts/kernel_resources.py
    python scripts/kernel_resources.py --all --target sm_90

Needs NVRTC, no GPU. Columns: the tile of queries and keys, registers a thread, shared memory a
block, and bytes of local memory a thread (where spilled registers are).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stof_onnx.jit.cache import KernelCache
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.jit.job import CompiledKernel
from stof_onnx.templates import masked_attention_mma as template
from tests.templates.attention_nodes import TARGETS, Kernel, all_kernels, covering_kernels

_COLUMNS = ("mask", "type", "head dim", "target", "tile", "registers", "shared", "local")


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the whole product: many minutes")
    parser.add_argument("--target", choices=[name for name in TARGETS if name != "portable"])
    arguments = parser.parse_args()
    kernels = [
        kernel
        for kernel in (all_kernels() if arguments.all else covering_kernels())
        # What a driver makes of PTX can't be told here.
        if kernel.target != "portable" and arguments.target in (None, kernel.target)
    ]
    done = compile_kernels([kernel.job for kernel in kernels], cache=KernelCache())
    print(f"| {' | '.join(_COLUMNS)} |")
    print(f"|{'---|' * len(_COLUMNS)}")
    for kernel, compiled in zip(kernels, done, strict=True):
        print(f"| {' | '.join(_cells(kernel, compiled))} |")


def _cells(kernel: Kernel, compiled: CompiledKernel) -> tuple[str, ...]:
    parameters, resources = kernel.parameters, compiled.resources
    assert resources is not None
    return (
        kernel.mask,
        kernel.dtype,
        str(kernel.head_dim),
        kernel.target,
        f"{parameters.tile_q}x{parameters.tile_k}",
        str(resources.registers),
        str(template.shared_bytes(kernel.node, parameters)),
        str(resources.local_bytes),
    )


if __name__ == "__main__":
    main()
