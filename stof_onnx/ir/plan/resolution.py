"""What a plan launches on a device at given shapes.

The same steps as the plugin's (plugins/plan, plugins/runtime), in Python: tests compare the
two, and the search uses these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stof_onnx.ir.errors import InputError
from stof_onnx.ir.plan.quantities import Quantity, evaluate, in_int64
from stof_onnx.ir.plan.records import (
    Argument,
    Bucket,
    Float32,
    Int32,
    Int64,
    Kernel,
    Launch,
    Plan,
    Range,
    TensorPointer,
    Variant,
    WorkspacePointer,
)

Shape = Sequence[int]

_MAX_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_PREFERENCE = ("newer", "minor", "exact")


@dataclass(frozen=True)
class ResolvedArgument:
    """A kernel argument whose value is known.

    Attributes:
        kind: as in docs/plan.md.
        value: the number, or for pointers the offset in bytes.
        tensor: of inputs and outputs.
        alignment: of pointers.
    """

    kind: Literal["input", "output", "workspace", "i32", "i64", "f32"]
    value: int | float
    tensor: int = 0
    alignment: int = 1


@dataclass(frozen=True)
class ResolvedLaunch:
    """A launch whose numbers are known; see :class:`stof_onnx.ir.plan.records.Launch`."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[ResolvedArgument, ...]


@dataclass(frozen=True)
class Resolution:
    """How a plan runs on one device at one set of shapes.

    Attributes:
        variant: what was chosen for the device.
        bucket: what was chosen for the shapes.
        workspace: bytes.
        launches: in stream order, without those whose grid is empty.
    """

    variant: Variant
    bucket: Bucket
    workspace: int
    launches: tuple[ResolvedLaunch, ...]


def resolve(
    plan: Plan,
    capability: tuple[int, int],
    input_shapes: Sequence[Shape],
    output_shapes: Sequence[Shape],
) -> Resolution:
    """Choose a plan's variant and bucket and compute their launches.

    Args:
        plan: a sound plan.
        capability: the device's compute capability (major, minor).
        input_shapes: of the node's inputs.
        output_shapes: of its outputs.

    Raises:
        InputError: the plan is for other devices or shapes.
    """
    variant = find_variant(plan, capability)
    symbols = evaluate_symbols(plan, input_shapes, output_shapes)
    bucket = find_bucket(variant, symbols)
    workspace = evaluate(bucket.workspace, symbols)
    if workspace < 0:
        raise _out_of_range("workspace", bucket.workspace, workspace, "0 or more")
    launches = (_resolve_launch(launch, workspace, symbols) for launch in bucket.launches)
    return Resolution(variant, bucket, workspace, tuple(one for one in launches if one))


def launches(
    plan: Plan,
    capability: tuple[int, int],
    input_shapes: Sequence[Shape],
    output_shapes: Sequence[Shape],
) -> tuple[ResolvedLaunch, ...]:
    """The launches of :func:`resolve`.

    Raises:
        InputError: the plan is for other devices or shapes.
    """
    return resolve(plan, capability, input_shapes, output_shapes).launches


def find_variant(plan: Plan, capability: tuple[int, int]) -> Variant:
    """The best variant for a device: exact before minor before newer, then the newest.

    Raises:
        InputError: none runs there.
    """
    fitting = [variant for variant in plan.variants if runs_on(variant, capability)]
    if not fitting:
        raise InputError(
            f"a plan for {', '.join(variant.target for variant in plan.variants)}",
            f"one for compute capability {capability[0]}.{capability[1]}",
            "run `stof-onnx optimize` with its --target",
        )
    return max(fitting, key=lambda one: (_PREFERENCE.index(one.match), one.capability))


def runs_on(variant: Variant, capability: tuple[int, int]) -> bool:
    """Whether a device of this compute capability can run the variant's code."""
    if variant.match == "exact":
        return capability == variant.capability
    if variant.match == "minor":
        return capability[0] == variant.capability[0] and capability >= variant.capability
    return capability >= variant.capability


def evaluate_symbols(
    plan: Plan, input_shapes: Sequence[Shape], output_shapes: Sequence[Shape]
) -> dict[str, int]:
    """Values of the plan's symbols at these shapes.

    Raises:
        InputError: another number of tensors, a tensor of too low a rank, a negative
            dimension, an overflow, or a check or cover that doesn't hold.
    """
    counts = (len(input_shapes), len(output_shapes))
    wanted = (len(plan.input_types), len(plan.output_types))
    if counts != wanted:
        came = f"{counts[0]} inputs and {counts[1]} outputs"
        raise InputError(f"shapes of {came}", f"{wanted[0]} and {wanted[1]}")
    values: dict[str, int] = {}
    for symbol in plan.symbols:
        shape = (input_shapes if symbol.source == "input" else output_shapes)[symbol.tensor]
        tensor = f"{symbol.source} {symbol.tensor}"
        value = 1
        for axis in symbol.axes:
            if axis >= len(shape) or shape[axis] < 0:
                came = f"shape {list(shape)} of {tensor}"
                raise InputError(came, f"a dimension {axis}, 0 or more, for {symbol.name}")
            value = in_int64(value * shape[axis], symbol.name)
        values[symbol.name] = value
    for check in plan.checks:
        if not _holds(check, values):
            raise InputError(
                f"{check.symbol} = {values[check.symbol]}",
                f"{check}, as the plan was made for",
                "run `stof-onnx optimize` again for these shapes",
            )
    for cover in plan.covers:
        size, length = values[cover.symbol], evaluate(cover.length, values)
        if size != 1 and size < length:
            name = str(cover.length)
            raise InputError(
                f"{cover.symbol} = {size}",
                f"1 or at least {name}" + ("" if name == str(length) else f" = {length}"),
                "give the node inputs whose sizes fit each other",
            )
    return values


def find_bucket(variant: Variant, symbols: Mapping[str, int]) -> Bucket:
    """The first bucket whose ranges hold; a sound plan always has one."""
    return next(
        bucket
        for bucket in variant.buckets
        if all(_holds(bounds, symbols) for bounds in bucket.ranges)
    )


def _holds(bounds: Range, symbols: Mapping[str, int]) -> bool:
    return bounds.min <= symbols[bounds.symbol] <= bounds.max


def _out_of_range(what: str, quantity: Quantity, value: int, wanted: str) -> InputError:
    return InputError(f"{what} {quantity} = {value} at these shapes", wanted, "use other shapes")


def _resolve_launch(
    launch: Launch, workspace: int, symbols: Mapping[str, int]
) -> ResolvedLaunch | None:
    """The launch, or None if it has no block to run."""
    grid = [evaluate(size, symbols) for size in launch.grid]
    for size, quantity, limit in zip(grid, launch.grid, _MAX_GRID, strict=True):
        if not 0 <= size <= limit:
            raise _out_of_range("grid size", quantity, size, f"0 to {limit}")
    x, y, z = grid
    if 0 in grid:
        return None
    shared = evaluate(launch.shared, symbols)
    if not 0 <= shared <= launch.kernel.max_dynamic_shared:
        limit = launch.kernel.max_dynamic_shared
        raise _out_of_range("shared memory", launch.shared, shared, f"0 to {limit}")
    arguments = (_resolve_argument(one, workspace, symbols) for one in launch.arguments)
    return ResolvedLaunch(launch.kernel, (x, y, z), launch.block, shared, tuple(arguments))


def _resolve_argument(
    argument: Argument, workspace: int, symbols: Mapping[str, int]
) -> ResolvedArgument:
    match argument:
        case TensorPointer(source, tensor, offset, alignment):
            return ResolvedArgument(source, offset, tensor, alignment)
        case WorkspacePointer(place, alignment):
            offset = evaluate(place, symbols)
            if not 0 <= offset <= workspace:
                raise _out_of_range("workspace offset", place, offset, f"0 to {workspace}")
            return ResolvedArgument("workspace", offset, alignment=alignment)
        case Int32(quantity):
            value = evaluate(quantity, symbols)
            if not _INT32_MIN <= value <= _INT32_MAX:
                raise _out_of_range("32-bit argument", quantity, value, "a 32-bit integer")
            return ResolvedArgument("i32", value)
        case Int64(quantity):
            return ResolvedArgument("i64", evaluate(quantity, symbols))
        case Float32(number):
            return ResolvedArgument("f32", number)
