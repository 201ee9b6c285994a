"""Reports as text for people: aligned lines and a table, coloured on terminals only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stof_onnx.ir.target import Target
from stof_onnx.report import AttentionReport, KernelReport, MaskReport, Report

_LABEL_WIDTH = 12
# Lines in pipes and files are for grep and log viewers, which fold long ones better than we could.
_NEVER_FOLD = 10_000
# Below this the names get more room, and layouts are shown with -v only.
_WIDE = 110
_STYLES = {"fused": "green", "refused": "yellow", "passed": "green", "failed": "bold red"}


def console(out: TextIO) -> Console:
    """A console on ``out``: the terminal's width and colours; elsewhere neither."""
    terminal = out.isatty()
    return Console(
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
    line(console, "wrote", f"{path} ({_size(Path(path).stat().st_size)})")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


# -------------------------------------------------------------------------- optimize, inspect


def report(console: Console, report: Report, *, verbose: int) -> None:
    """Print what was found in a model and what was done about it."""
    line(console, "model", report.model)
    operators = f"{report.nodes_before}"
    if report.nodes_after != report.nodes_before:
        operators += f" -> {report.nodes_after}"
    line(console, "operators", operators)
    if report.targets:
        # In words: that "auto" found no GPU is worth knowing.
        line(console, "targets", ", ".join(str(Target.parse(name)) for name in report.targets))
    line(console, "attention", *_counts(report))
    if report.attention:
        console.print()
        wide = console.width >= _WIDE
        console.print(_attention_table(report.attention, with_layout=wide))
        console.print()
    for text in _kernel_lines(report):
        line(console, "kernels", text)
    for entry in report.attention:
        if entry.status == "refused":
            line(console, "refused", f"{entry.name}: {entry.reason}")
    if verbose:
        _details(console, report)
    for note in report.notes:
        line(console, "note", note)
    if report.check is not None:
        check(console, report.check, verbose=bool(verbose))
    if verbose and report.seconds:
        times = (f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
        line(console, "seconds", ", ".join(times))


def _counts(report: Report) -> list[str | Text]:
    if not report.attention:
        return ["none found"]
    found = len(report.attention)
    parts: list[str | Text] = [f"{found} block{'s' if found != 1 else ''} found, "]
    parts.append(Text(f"{report.fused} fused", style=_STYLES["fused"] if report.fused else ""))
    parts.append(", ")
    parts.append(
        Text(f"{report.refused} refused", style=_STYLES["refused"] if report.refused else "")
    )
    return parts


def _attention_table(blocks: tuple[AttentionReport, ...], *, with_layout: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("block", overflow="fold")
    table.add_column("heads", no_wrap=True)
    table.add_column("mask", overflow="fold")
    if with_layout:
        table.add_column("layout", overflow="fold")
    table.add_column("status", no_wrap=True)
    for entry in blocks:
        cells: list[str | Text] = [entry.name, _heads(entry), _mask(entry.mask)]
        if with_layout:
            cells.append(entry.layout or "-")
        table.add_row(*cells, Text(entry.status, style=_STYLES[entry.status]))
    return table


def _kernel_lines(report: Report) -> list[str]:
    """One line for each target: how many different kernels were compiled, and which."""
    by_target: dict[str, dict[str, None]] = {}
    for entry in report.attention:
        for kernel in entry.kernels:
            by_target.setdefault(kernel.target, {})[_kernel(kernel)] = None
    return [f"{target}: {'; '.join(kernels)}" for target, kernels in by_target.items()]


def _kernel(kernel: KernelReport) -> str:
    tactic = " ".join(f"{k}={v}" for k, v in kernel.tactic.items() if k != "template")
    facts = [f"{kernel.shared_bytes / 1024:.1f} KiB shared", _size(kernel.image_bytes)]
    if kernel.registers:
        facts.insert(0, f"{kernel.registers} registers")
    return f"{kernel.template} {tactic} ({', '.join(facts)})"


def _heads(entry: AttentionReport) -> str:
    if not entry.num_heads:
        return "-"
    shared = ""
    if entry.kv_num_heads not in (0, entry.num_heads):
        shared = f" (kv {entry.kv_num_heads})"
    return f"{entry.num_heads}{shared} x {entry.head_dim or '?'}"


def _mask(mask: MaskReport | None) -> str:
    if mask is None:
        return "-"
    parameters = ", ".join(f"{name}={_value(value)}" for name, value in mask.parameters.items())
    return f"{mask.kind} ({parameters})" if parameters else mask.kind


def _value(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _details(console: Console, report: Report) -> None:
    """What -v adds for each block: shapes, the mask in words, its proof."""
    for entry in report.attention:
        console.print(Text(entry.name, style="bold"), soft_wrap=True)
        facts = {
            "query": _shape(entry.query_shape),
            "key": _shape(entry.key_shape),
            "layout": entry.layout,
            "reason": entry.reason,
        }
        if entry.mask is not None:
            facts["mask"] = entry.mask.expression
            facts["empty row"] = entry.mask.empty_row
            facts["proof"] = entry.mask.proof
        for label, text in facts.items():
            if text:
                line(console, f"  {label}", text)
        for kernel in entry.kernels:
            line(console, f"  {kernel.target}", _kernel(kernel))


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
