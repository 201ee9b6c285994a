"""What an optimized file contains, as text for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stof_onnx.cli.render import heads, kernel_lines, kernel_text, line, mask_text, size
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
    console.print(_nodes_table(nodes))
    console.print()
    for text in kernel_lines(node.kernels for node in nodes):
        line(console, "kernels", text)
    if verbose:
        for node in nodes:
            _details(console, node)
    for note in report.notes:
        line(console, "note", note)


def _nodes_table(nodes: tuple[NodeReport, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("node", "operator", "heads", "mask", "plan for"):
        table.add_column(title, overflow="fold")
    for node in nodes:
        table.add_row(
            node.name,
            node.operator,
            heads(node.num_heads, node.kv_num_heads, node.head_dim) if node.head_dim else "-",
            mask_text(node.mask),
            ", ".join(node.targets) or Text("no plan", style="yellow"),
        )
    return table


def _details(console: Console, node: NodeReport) -> None:
    """What -v adds for each node."""
    console.print(Text(node.name, style="bold"), soft_wrap=True)
    facts = {
        "layout": node.layout,
        "dtype": node.dtype,
        "mask": node.mask.expression,
        "empty row": node.mask.empty_row,
        "tile": "" if node.tile is None else "{} x {}".format(*node.tile),
        "plan": f"{size(node.plan_bytes)}, by {node.producer}" if node.has_plan else "none",
    }
    for label, text in facts.items():
        if text:
            line(console, f"  {label}", text)
    for kernel in node.kernels:
        line(console, f"  {kernel.target}", kernel_text(kernel))
