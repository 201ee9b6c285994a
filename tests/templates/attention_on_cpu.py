"""Attention kernels on the CPU: many of them compiled together, each run as a plan says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.plan import (
    Bucket,
    Kernel,
    Plan,
    ResolvedArgument,
    ResolvedLaunch,
    Variant,
    encode,
    launches,
)
from stof_onnx.ir.target import Target
from stof_onnx.templates import masked_attention_mma as template
from stof_onnx.templates.attention_node import AttentionNode
from stof_onnx.templates.masked_attention_mma import Parameters
from tests.templates.kernel_on_cpu import KernelOnCpu

Setting = tuple[AttentionNode, Parameters]

# cpu::launch for a list of kernels: two more arguments in front say which, and when copies arrive.
_DISPATCH = """
using Launcher = void (*)(void**, unsigned, unsigned, void*, std::size_t, std::size_t, bool);

namespace cpu {
void launch(const Launcher* kernels, void** arguments, unsigned grid, unsigned threads,
            void* memory, std::size_t capacity, std::size_t shared, bool backwards) {
  copies_are_late = *static_cast<int*>(arguments[1]) != 0;
  const int kernel = *static_cast<int*>(arguments[0]);
  kernels[kernel](arguments + 2, grid, threads, memory, capacity, shared, backwards);
  require_no_copies();
}

template <auto kKernel>
void launch_one(void** arguments, unsigned grid, unsigned threads, void* memory,
                std::size_t capacity, std::size_t shared, bool backwards) {
  launch(kKernel, arguments, grid, threads, memory, capacity, shared, backwards);
}
}  // namespace cpu
"""


class AttentionOnCpu:
    """Kernels of the template for several nodes.

    Args:
        settings: the nodes and what they are compiled with.
        directory: to build in.
    """

    def __init__(self, settings: Sequence[Setting], directory: Path) -> None:
        sources = list(dict.fromkeys(template.source(*setting) for setting in settings))
        self._numbers = {source: number for number, source in enumerate(sources)}
        shared = ("memory", "unsigned char")
        self._kernels = KernelOnCpu(_unit(sources), template.HEADERS, "kernels", shared, directory)

    def run(
        self,
        setting: Setting,
        inputs: Sequence[Array],
        output: tuple[int, ...],
        *,
        backwards: bool = False,
        late: bool = False,
    ) -> Array:
        """Run a node.

        Args:
            setting: one of those given.
            inputs: the node's.
            output: shape of the output.
            backwards: threads take their turns in the other order.
            late: asynchronous copies arrive when they are waited for, not when they are started.

        Returns:
            The output.
        """
        number = self._numbers[template.source(*setting)]
        results = [(output, setting[0].record.dtype)]
        shapes = [x.shape for x in inputs]
        (launch,) = launches(_plan(*setting), (8, 0), shapes, [output])
        launch = _with_numbers(launch, number, int(late))
        (result,) = self._kernels.launch(launch, inputs, results, backwards=backwards)
        return result


def _with_numbers(launch: ResolvedLaunch, *numbers: int) -> ResolvedLaunch:
    first = (ResolvedArgument("i32", number) for number in numbers)
    return replace(launch, arguments=(*first, *launch.arguments))


def _unit(sources: Sequence[str]) -> str:
    """One translation unit of several, each in a namespace and with an entry of its own."""
    parts = ['#include "mask_operands.cuh"', '#include "masked_attention_mma.cuh"', _DISPATCH]
    for number, source in enumerate(sources):
        renamed = source.replace(template.ENTRY, f"kernel_{number}")
        parts += [f"namespace unit_{number} {{", renamed, "}"]
    launchers = [f"cpu::launch_one<unit_{i}::kernel_{i}>" for i in range(len(sources))]
    parts.append(f"const Launcher kernels[] = {{{', '.join(launchers)}}};\n")
    return "\n".join(parts)


def _plan(node: AttentionNode, parameters: Parameters) -> Plan:
    """The plan with a kernel that nobody compiled."""
    limit = template.max_dynamic_shared(node, parameters)
    kernel = Kernel(template.NAME, template.ENTRY, "cubin", b"code", 32, 0, limit)
    launch = template.launch(node, parameters, kernel)
    bucket = Bucket((), parameters.tactic(), template.workspace(node, parameters), (launch,))
    plan = Plan(
        node.operator,
        "test",
        node.input_types,
        node.output_types,
        template.symbols(node),
        node.checks,
        (Variant.of(Target.parse("sm_80"), (bucket,)),),
    )
    encode(plan)  # it is sound
    return plan
