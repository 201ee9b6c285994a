"""A plan as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from stof_onnx.ir.plan.records import Bucket, Kernel, Plan, Symbol, Variant

_KERNEL_COLUMNS = ("kernel", "entry", "kind", "registers", "shared memory", "size")


def describe(plan: Plan) -> str:
    """Targets, kernels with what they need, and buckets with their tactics.

    Shared memory is static + the most dynamic; sizes are of the uncompressed image, which
    several kernels may share.
    """
    size = sum(map(len, plan.images))
    types = " ".join(element_type.name for element_type in plan.input_types)
    results = " ".join(element_type.name for element_type in plan.output_types)
    lines = [
        f"{plan.operator}, written by {plan.producer}",
        f"{types} -> {results}".strip(),
        f"{len(plan.images)} images, {_bytes(size)}",
    ]
    if plan.symbols:
        lines.append("where " + ", ".join(map(_symbol, plan.symbols)))
    for conditions in (plan.checks, plan.covers):
        if conditions:
            lines.append("only if " + " and ".join(map(str, conditions)))
    for variant in plan.variants:
        lines += ["", *_variant(variant)]
    return "\n".join(lines)


def _symbol(symbol: Symbol) -> str:
    dimensions = " * ".join(f"{symbol.source} {symbol.tensor}[{axis}]" for axis in symbol.axes)
    return f"{symbol.name} = {dimensions}"


def _variant(variant: Variant) -> list[str]:
    major, minor = variant.capability
    devices = {
        "exact": f"{major}.{minor} only",
        "minor": f"{major}.{minor} and newer {major}.x",
        "newer": f"{major}.{minor} and newer",
    }[variant.match]
    rows = [_KERNEL_COLUMNS, *map(_kernel, variant.kernels)]
    lines = [f"target {variant.target}: compute capability {devices}", *_table(rows)]
    for bucket in variant.buckets:
        lines += _bucket(bucket)
    return lines


def _kernel(kernel: Kernel) -> tuple[str, ...]:
    return (
        kernel.template,
        kernel.entry,
        kernel.kind,
        str(kernel.registers) if kernel.registers else "unknown",
        f"{_bytes(kernel.static_shared)} + {_bytes(kernel.max_dynamic_shared)}",
        _bytes(len(kernel.image)),
    )


def _bucket(bucket: Bucket) -> list[str]:
    shapes = " and ".join(map(str, bucket.ranges)) or "any shape"
    lines = [f"  {shapes}: {bucket.tactic or 'no parameters'}"]
    if bucket.workspace.terms:
        lines.append(f"    workspace: {bucket.workspace} bytes")
    for launch in bucket.launches:
        grid = ", ".join(map(str, launch.grid))
        block = " x ".join(map(str, launch.block))
        lines.append(f"    {launch.kernel.template}: grid ({grid}) of {block} threads")
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _bytes(count: int) -> str:
    return f"{count} B" if count < 1024 else f"{count / 1024:.1f} KiB"
