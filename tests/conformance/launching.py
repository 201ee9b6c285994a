"""Runs a node and says what must have been launched, by Python's own resolution of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stof_onnx.ir.plan import Plan, ResolvedArgument, launches
from stof_onnx.plugin_host import Plugin, TensorDesc
from tests.conformance.fake_driver import Call
from tests.conformance.nodes import NodeCase, Sizes

STREAM = 0x5EA0
WORKSPACE = 0x7F0000000000
_INPUTS, _OUTPUTS, _STEP = 0x100000000000, 0x200000000000, 0x1000000


def input_address(number: int) -> int:
    return _INPUTS + number * _STEP


def output_address(number: int) -> int:
    return _OUTPUTS + number * _STEP


@dataclass(frozen=True)
class Launched:
    """One launch; arguments are ints and floats."""

    entry: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    arguments: tuple[float, ...]


def recorded(calls: Sequence[Call]) -> list[Launched]:
    """What the driver was asked to launch."""
    return [
        Launched(
            entry=call.values["entry"],
            grid=call.numbers("grid"),
            block=call.numbers("block"),
            shared=int(call.values["shared"]),
            stream=int(call.values["stream"], 0),
            arguments=tuple(map(_number, call.values["args"].split(","))),
        )
        for call in calls
        if call.name == "cuLaunchKernel"
    ]


def expected(
    plan: Plan,
    inputs: Sequence[TensorDesc],
    outputs: Sequence[TensorDesc],
    *,
    capability: tuple[int, int] = (9, 0),
    stream: int = STREAM,
) -> list[Launched]:
    """What the plan says must be launched."""
    shapes = [one.dims for one in inputs], [one.dims for one in outputs]
    return [
        Launched(
            entry=launch.kernel.entry,
            grid=launch.grid,
            block=launch.block,
            shared=launch.shared,
            stream=stream,
            arguments=tuple(map(_value, launch.arguments)),
        )
        for launch in launches(plan, capability, *shapes)
    ]


def enqueue(
    plugin: Plugin,
    inputs: Sequence[TensorDesc],
    outputs: Sequence[TensorDesc],
    *,
    stream: int = STREAM,
    workspace: int = WORKSPACE,
) -> None:
    """Enqueue with the addresses of this module."""
    plugin.enqueue(
        inputs,
        outputs,
        input_addresses=[input_address(i) for i in range(len(inputs))],
        output_addresses=[output_address(i) for i in range(len(outputs))],
        workspace=workspace,
        stream=stream,
    )


def run(plugin: Plugin, node: NodeCase, sizes: Sizes) -> None:
    """Shapes, then enqueue."""
    inputs, outputs = node.descs(sizes)
    plugin.on_shape_change(inputs, outputs)
    enqueue(plugin, inputs, outputs)


def _value(argument: ResolvedArgument) -> float:
    base = {
        "input": input_address(argument.tensor),
        "output": output_address(argument.tensor),
        "workspace": WORKSPACE,
    }
    # The log has nine digits of a float, enough to tell all 32-bit ones apart.
    if argument.kind == "f32":
        return float(f"{argument.value:.9g}")
    return base.get(argument.kind, 0) + argument.value


def _number(text: str) -> float:
    try:
        return int(text, 0)
    except ValueError:
        return float(text)
