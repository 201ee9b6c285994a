"""What an optimized file contains, as text for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stof_onnx.cli.render import kernel_lines, kernel_text, line, size
from stof_onnx.cli.render_blocks import (
    DENSITY_TITLES,
    Row,
    block_table,
    density_cells,
    density_details,
    density_notes,
    heads_text,
    mask_text,
)
from stof_onnx.report.records import NodeReport, OptimizedReport


def contents(console: Console, report: OptimizedReport, *, verbose: int) -> None:
    """Print the stof nodes of an optimized model and what runs them."""
    nodes = report.stof_nodes
    count = len(nodes)
    line(console, "model", f"{report.model}, which is optimized already")
    line(console, "operators", f"{report.nodes}, {count} of them stof node{'s' * (count != 1)}")
    line(console, "targets", ", ".join(report.targets) or "none that all nodes have a plan for")
    planned = [node for node in nodes if node.has_plan]
    of_size = f" ({size(sum(node.plan_bytes for node in planned))})" if planned else ""
    line(console, "plans", f"in {len(planned)} of {count} nodes{of_size}")
    for producer in dict.fromkeys(node.producer for node in planned):
        line(console, "written by", producer)
    console.print()
    console.print(_nodes_table(nodes, every=verbose > 0))
    console.print()
    for text in density_notes(node.mask for node in nodes):
        line(console, "density", text)
    for text in kernel_lines(node.kernels for node in nodes):
        line(console, "kernels", text)
    if verbose:
        for node in nodes:
            _details(console, node)
    for note in report.notes:
        line(console, "note", note)


def _nodes_table(nodes: tuple[NodeReport, ...], *, every: bool) -> Table:
    rows = []
    for node in nodes:
        cells = (
            node.operator,
            heads_text(node.num_heads, node.kv_num_heads, node.head_dim) if node.head_dim else "-",
            mask_text(node.mask, node.softcap, node.sinks),
            *density_cells(node.mask),
            ", ".join(node.targets) or "no plan",
        )
        rows.append(Row(node.name, cells, "" if node.targets else "yellow"))
    titles = ("node", "operator", "heads", "mask", *DENSITY_TITLES, "plan for")
    return block_table(titles, rows, every=every)


def _details(console: Console, node: NodeReport) -> None:
    """What -v adds for each node."""
    console.print(Text(node.name, style="bold"), soft_wrap=True)
    facts = {
        "layout": node.layout,
        "dtype": node.dtype,
        "mask": node.mask.expression,
        "density": density_details(node.mask.density) if node.mask.density else "",
        "empty row": node.mask.empty_row,
        "tile": "" if node.tile is None else "{} x {}".format(*node.tile),
        "plan": f"{size(node.plan_bytes)}, by {node.producer}" if node.has_plan else "none",
    }
    for label, text in facts.items():
        if text:
            line(console, f"  {label}", text)
    for kernel in node.kernels:
        line(console, f"  {kernel.target}", kernel_text(kernel))
