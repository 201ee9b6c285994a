"""Small sound plans: their images are a few bytes, which the recording driver takes for code."""

from __future__ import annotations

from collections.abc import Sequence

from stof_onnx.ir.plan import (
    Argument,
    Bucket,
    DataType,
    Float32,
    Int32,
    Int64,
    Kernel,
    Launch,
    Plan,
    Quantity,
    Range,
    Symbol,
    Tactic,
    TensorPointer,
    Variant,
    WorkspacePointer,
)
from stof_onnx.ir.target import Target

ONE = Quantity.of(1)
SMALL = 64
"""Largest Sq of the first bucket."""
MAX_SHARED = 98304


def kernel(name: str, image: str, max_shared: int = 0, kind: str = "cubin") -> Kernel:
    """A kernel of this entry name; equal images are one module."""
    return Kernel("template", name, kind, image.encode(), 32, 0, max_shared)  # type: ignore[arg-type]


def variant(target: str, buckets: Sequence[Bucket]) -> Variant:
    return Variant.of(Target.parse(target), tuple(buckets))


def plan(  # noqa: PLR0917
    operator: str,
    input_types: Sequence[DataType],
    output_types: Sequence[DataType],
    symbols: Sequence[Symbol],
    variants: Sequence[Variant],
    checks: Sequence[Range] = (),
) -> Plan:
    return Plan(
        operator,
        "stof-onnx 0.1.0",
        tuple(input_types),
        tuple(output_types),
        tuple(symbols),
        tuple(checks),
        tuple(variants),
    )


def two_step_bucket(
    target: str, tile: int, tensors: tuple[int, int], batch: Quantity, content: str, *ranges: Range
) -> Bucket:
    """A large launch and one that combines, with arguments of every kind.

    Args:
        target: of the kernels.
        tile: queries and keys of a block.
        tensors: numbers of inputs and outputs.
        batch: B; the other symbols are Sq, Sk and "elements".
        content: a part of the images.
        ranges: of the bucket.
    """
    inputs, outputs = tensors
    is_ptx = Target.parse(target).is_portable
    kind = "ptx" if is_ptx else "cubin"
    image = f"{kind} {target} tile {tile} of {content}"
    queries, keys, elements = map(Quantity.of, ("Sq", "Sk", "elements"))
    every_input: list[Argument] = [
        TensorPointer("input", i, offset=16 * i, alignment=16) for i in range(inputs)
    ]
    every_output = [TensorPointer("output", i, alignment=8) for i in range(outputs)]
    first = Launch(
        kernel(f"first_{tile}_{target}", image, MAX_SHARED, kind),
        (queries.ceil(tile), batch, Quantity.of(3)),
        (128, 1, 1),
        1024 + 16 * keys.ceil(tile),
        (
            *every_input,
            WorkspacePointer(4 * batch * queries.ceil(tile), alignment=4),
            Int32(queries + -1),
            Int64(batch * queries * keys * 1000000007),
            Float32(0.08838834764831845),
        ),
    )
    second = Launch(
        kernel(f"second_{target}", image, 0, kind),
        (elements.ceil(128), ONE, ONE),
        (32, 4, 1),
        Quantity(),
        (
            WorkspacePointer(Quantity(), alignment=256),
            *every_output,
            Int32(keys * -3),
            Float32(float("-inf")),
        ),
    )
    workspace = 4 * batch * queries.ceil(tile) * tile + 256
    return Bucket(ranges, Tactic({"tile": tile}), workspace, (first, second))


def two_bucket_plan(
    operator: str,
    input_types: Sequence[DataType],
    output_types: Sequence[DataType],
    symbols: Sequence[Symbol],
    targets: Sequence[str] = ("portable", "sm_80", "sm_90"),
) -> Plan:
    """A plan with a bucket for Sq up to SMALL and one for the rest, for each target."""
    batch = Quantity.of("B" if any(symbol.name == "B" for symbol in symbols) else 1)
    of_node = ((len(input_types), len(output_types)), batch, operator)
    variants = [
        variant(
            target,
            (
                two_step_bucket(target, 16, *of_node, Range("Sq", 0, SMALL)),
                two_step_bucket(target, 64, *of_node),
            ),
        )
        for target in targets
    ]
    checks = [Range(symbol.name, 0, 2**31 - 1) for symbol in symbols]
    return plan(operator, input_types, output_types, symbols, variants, checks)
