"""Reports as text for people: aligned lines and a table, coloured on terminals only."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stof_onnx.cli.render_blocks import (
    DENSITY_TITLES,
    Row,
    block_table,
    density_cells,
    density_details,
    density_notes,
    heads_text,
    mask_text,
    reading_text,
)
from stof_onnx.ir.target import Target
from stof_onnx.report.records import (
    AttentionReport,
    KernelReport,
    OptimizedReport,
    PrecisionReport,
    Report,
    TableReport,
)

_LABEL_WIDTH = 12
# Lines in pipes and files are for grep and log viewers, which fold long ones better than we could.
_NEVER_FOLD = 10_000
# Below this the names get more room, and layouts are shown with -v only.
_WIDE = 130
_STYLES = {"fused": "green", "refused": "yellow", "passed": "green", "failed": "bold red"}


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave the exit code to the command line; rich's own method exits with 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(out: TextIO) -> Console:
    """A console on ``out``: the terminal's width and colours; elsewhere neither."""
    terminal = out.isatty()
    return _Console(
        file=out,
        width=None if terminal else _NEVER_FOLD,
        color_system="auto" if terminal else None,
        # Names of tensors contain brackets and colons, which are not markup.
        markup=False,
        emoji=False,
        highlight=False,
    )


def line(console: Console, label: str, *parts: str | Text) -> None:
    """Print a label and, aligned behind it, its text."""
    text = Text(label.ljust(_LABEL_WIDTH), style="bold")
    for part in parts:
        text.append_text(part if isinstance(part, Text) else Text(part, style="not bold"))
    console.print(text, soft_wrap=True)


def written(console: Console, path: str) -> None:
    """Say which file was written and how large it is."""
    line(console, "wrote", f"{path} ({size(Path(path).stat().st_size)})")


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


# -------------------------------------------------------------------------- optimize, inspect


def report(console: Console, report: Report, *, verbose: int) -> None:
    """Print what was found in a model and what was, or would be, done about it."""
    _summary(console, report, verbose=verbose)
    if report.attention:
        console.print()
        wide = console.width >= _WIDE
        console.print(_attention_table(report, with_layout=wide, every=verbose > 0))
        console.print()
    for text in density_notes(entry.mask for entry in report.attention):
        line(console, "density", text)
    groups = [entry.kernels for entry in report.attention]
    groups += [table.kernels for table in report.tables]
    for text in kernel_lines(groups):
        line(console, "kernels", text)
    for entry in report.attention:
        if entry.status == "refused":
            line(console, "refused", _refusal(entry))
    if verbose:
        _details(console, report)
    if report.precision is not None:
        _precision(console, report.precision)
    for note in report.notes:
        line(console, "note", note)
    if report.check is not None:
        check(console, report.check, verbose=bool(verbose))
    if verbose and report.seconds:
        times = (f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
        line(console, "seconds", ", ".join(times))


def _summary(console: Console, report: Report, *, verbose: int) -> None:
    line(console, "model", report.model)
    operators = f"{report.nodes_before}"
    if report.fused:
        operators += f" -> {report.nodes_after}"
        operators += " if optimized" if report.kind == "original" else ""
    line(console, "operators", operators)
    if report.targets:
        # In words: that "auto" found no GPU is worth knowing.
        line(console, "targets", ", ".join(str(Target.parse(name)) for name in report.targets))
    line(console, "attention", *_counts(report))
    if verbose and report.other_softmaxes:
        line(console, "softmax", _other_softmaxes(report.other_softmaxes))
    if report.tables:
        line(console, "tables", _tables(report))


def _counts(report: Report) -> list[str | Text]:
    if not report.attention:
        return ["none found"]
    found = len(report.attention)
    parts: list[str | Text] = [f"{found} block{'s' if found != 1 else ''} found, "]
    fused = f"{report.fused} {_status('fused', report)}"
    parts.append(Text(fused, style=_STYLES["fused"] if report.fused else ""))
    parts.append(", ")
    parts.append(
        Text(f"{report.refused} refused", style=_STYLES["refused"] if report.refused else "")
    )
    return parts


def _status(status: str, report: Report) -> str:
    """In words that don't claim what `inspect` didn't do."""
    return "would be fused" if status == "fused" and report.kind == "original" else status


def _tables(report: Report) -> str:
    count = len(report.tables)
    added = "would be added" if report.kind == "original" else "added"
    return f"{count} StofMaskTable node{'s' * (count != 1)} {added}, for masks given at run time"


def _other_softmaxes(count: int) -> str:
    nodes = "node is" if count == 1 else "nodes are"
    return f"{count} other Softmax {nodes} not between two products of run-time tensors"


def _refusal(entry: AttentionReport) -> str:
    # Most reasons start with the node that doesn't fit, which often is the block's own Softmax.
    named = repr(entry.name) in entry.reason
    return entry.reason if named else f"{entry.name}: {entry.reason}"


def _attention_table(report: Report, *, with_layout: bool, every: bool) -> Table:
    titles = ["block", "heads", "mask", *DENSITY_TITLES]
    titles += ["layout", "status"] if with_layout else ["status"]
    rows = []
    for entry in report.attention:
        cells = [
            heads_text(entry.num_heads, entry.kv_num_heads, entry.head_dim),
            mask_text(entry.mask, entry.softcap, entry.sinks),
            *density_cells(entry.mask),
        ]
        if with_layout:
            cells.append(entry.layout or "-")
        status = _status(entry.status, report)
        if entry.plan == "native":
            status += ", native"
        rows.append(Row(entry.name, (*cells, status), _STYLES[entry.status]))
    return block_table(titles, rows, every=every)


def _precision(console: Console, report: PrecisionReport) -> None:
    """What lowering the model changed, by output."""
    kept = ", ".join(f"{reason}: {count}" for reason, count in sorted(report.kept.items()))
    line(
        console,
        "precision",
        f"{report.precision}, by {report.tool}: {report.lowered} operators,"
        f" {sum(report.kept.values())} stay in float32 ({kept or 'none'})",
    )
    if not report.effects:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("output", overflow="fold")
    table.add_column("rel L2", justify="right", no_wrap=True)
    table.add_column("max abs", justify="right", no_wrap=True)
    table.add_column("worst inputs", overflow="fold")
    for effect in report.effects:
        table.add_row(
            effect.output, f"{effect.rel_l2:.1e}", f"{effect.max_abs:.1e}", effect.feed or "-"
        )
    console.print()
    console.print(table)
    console.print()


def pictures(console: Console, report: Report | OptimizedReport) -> None:
    """List the pictures that were drawn, with the number of blocks that each shows."""
    entries = report.attention if isinstance(report, Report) else report.stof_nodes
    drawn = Counter(entry.mask.picture for entry in entries if entry.mask and entry.mask.picture)
    for file, count in drawn.items():
        line(console, "drew", f"{file} ({count} block{'s' * (count != 1)})")
    if not drawn:
        line(console, "drew", "nothing: no block has a mask that hides pairs")


def kernel_lines(groups: Iterable[Sequence[KernelReport]]) -> list[str]:
    """One line for each target: its different kernels, whichever node they belong to."""
    by_target: dict[str, dict[str, None]] = {}
    for kernels in groups:
        for kernel in kernels:
            by_target.setdefault(kernel.target, {})[kernel_text(kernel)] = None
    return [f"{target}: {'; '.join(kernels)}" for target, kernels in by_target.items()]


def kernel_text(kernel: KernelReport) -> str:
    """A kernel with its tactic and what it needs."""
    tactic = " ".join(f"{k}={v}" for k, v in kernel.tactic.items() if k != "template")
    facts = [f"{kernel.shared_bytes / 1024:.1f} KiB shared", f"{size(kernel.image_bytes)} of code"]
    if kernel.registers:
        facts.insert(0, f"{kernel.registers} registers")
    return f"{kernel.template} {tactic} ({', '.join(facts)})"


def _details(console: Console, report: Report) -> None:
    """What -v adds for each block: shapes, the mask in words, its proof."""
    for entry in report.attention:
        console.print(Text(entry.name, style="bold"), soft_wrap=True)
        facts = {
            "query": _shape(entry.query_shape),
            "key": _shape(entry.key_shape),
            "layout": entry.layout,
            "reason": entry.reason,
            "read": reading_text(entry.read) if entry.read else "",
        }
        if entry.mask is not None:
            facts["mask"] = entry.mask.expression
            facts["density"] = density_details(entry.mask.density) if entry.mask.density else ""
            facts["empty row"] = entry.mask.empty_row
            facts["proof"] = entry.mask.proof
        for label, text in facts.items():
            if text:
                line(console, f"  {label}", text)
        for kernel in entry.kernels:
            line(console, f"  {kernel.target}", kernel_text(kernel))
    for table in report.tables:
        _table_details(console, table)


def _table_details(console: Console, table: TableReport) -> None:
    console.print(Text(table.name, style="bold"), soft_wrap=True)
    line(console, "  mask", f"{mask_text(table.mask)}: {table.mask.expression}")
    line(console, "  tile", "{} x {}".format(*table.tile))
    for kernel in table.kernels:
        line(console, f"  {kernel.target}", kernel_text(kernel))


def _shape(dims: tuple[str, ...]) -> str:
    return f"[{', '.join(dims)}]" if dims else ""


# -------------------------------------------------------------------------------------- check


def check(console: Console, result: Mapping[str, Any], *, verbose: bool) -> None:
    """Print the result of a comparison.

    Args:
        console: where to.
        result: a ``CheckResult`` as JSON.
        verbose: also print a table with each output of each run.
    """
    if verbose and result["feeds"]:
        console.print()
        console.print(_runs_table(result["feeds"]))
        console.print()
    runs = len(result["feeds"])
    failed = sum(not feed["passed"] for feed in result["feeds"])
    if result["passed"]:
        verdict = Text("passed", style=_STYLES["passed"])
        line(console, "check", verdict, f", {runs} runs agree; {_worst(result['worst'])}")
    else:
        verdict = Text("failed", style=_STYLES["failed"])
        differ = f", {failed} of {runs} runs differ; {_worst(result['worst'])}"
        line(console, "check", verdict, differ)
    for feed in result["feeds"]:
        if feed["error"]:
            line(console, "error", f"{feed['feed']}: {feed['error']}")
    departure = result["departure"]
    if departure is not None:
        line(
            console,
            "departs at",
            f"{departure['op_type']} node '{departure['node']}', tensor '{departure['output']}':"
            f" {departure['max_abs']:.3g} absolute, at {departure['feed']}",
        )
    for note in result["notes"]:
        line(console, "note", note)


def _worst(worst: Mapping[str, Any] | None) -> str:
    if worst is None:
        return "no output was compared"
    output = worst["output"]
    tolerance = output["tolerance"]
    reason = f" ({output['reason']})" if output["reason"] else ""
    return (
        f"worst error {output['max_abs']:.3g} of '{output['output']}' at {worst['feed']}"
        f" (allowed: {tolerance['atol']:.3g} absolute, {tolerance['rtol']:.3g} relative){reason}"
    )


def _runs_table(feeds: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("inputs", overflow="fold")
    table.add_column("output", overflow="fold")
    table.add_column("max abs", justify="right", no_wrap=True)
    table.add_column("rel L2", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for feed in feeds:
        for output in feed["outputs"]:
            status = "passed" if output["passed"] else "failed"
            table.add_row(
                feed["feed"],
                output["output"],
                f"{output['max_abs']:.3g}",
                f"{output['rel_l2']:.3g}",
                Text(status, style=_STYLES[status]),
            )
        if feed["error"]:
            table.add_row(feed["feed"], "-", "-", "-", Text("failed", style=_STYLES["failed"]))
    return table
