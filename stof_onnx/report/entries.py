"""The entries of reports, made of the rewriter's records, of node attributes and of plans."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, NodeProto

from stof_onnx.ir.mask import classify
from stof_onnx.ir.nesting import nested_nodes
from stof_onnx.ir.operators.mask_table import MaskTable
from stof_onnx.ir.operators.masked_attention import MaskedAttention
from stof_onnx.ir.plan import Plan, Variant
from stof_onnx.report.masks import MaskReports
from stof_onnx.report.records import (
    AttentionReport,
    KernelReport,
    Kind,
    MaskReport,
    TableReport,
)
from stof_onnx.rewriter.passes.mask_tables import AddedTable
from stof_onnx.rewriter.rewrite import FusedBlock, RefusedBlock


def attention_entry(
    block: FusedBlock | RefusedBlock, kind: Kind, masks: MaskReports, plan: Plan | None = None
) -> AttentionReport:
    """One attention-like block.

    Args:
        block: what the rewriter found.
        kind: whether the block was, or would be, replaced.
        masks: measures and draws the block's mask.
        plan: of its stof node, if it has one.
    """
    if isinstance(block, RefusedBlock):
        return AttentionReport(
            name=block.name,
            status="refused",
            reason=block.reason,
            read=block.read,
            num_heads=block.num_heads,
            head_dim=block.head_dim,
        )
    node = block.attributes
    mask = masks.entry(
        node.mask,
        block.kind,
        empty_row=node.empty_row(),
        tables=block.tables,
        dims=block.block.dims,
        proof=block.proof,
    )
    became = "would become" if kind == "original" else "became"
    return AttentionReport(
        name=block.block.name,
        status="fused",
        reason=f"{block.block.nodes} nodes {became} one",
        plan="stof",
        mask=mask,
        num_heads=node.num_heads,
        kv_num_heads=node.kv_num_heads,
        head_dim=node.head_dim,
        query_shape=block.query_shape,
        key_shape=block.key_shape,
        layout=layout_text(node),
        softcap=node.softcap,
        sinks=node.sinks,
        nodes_replaced=block.block.nodes,
        kernels=kernels_of(plan),
    )


def table_entry(table: AddedTable, plan: Plan | None = None) -> TableReport:
    """One StofMaskTable node that the rewriter added."""
    record = table.attributes
    return TableReport(table.node, table_mask(record), record.tile, kernels_of(plan))


def table_mask(node: MaskTable) -> MaskReport:
    """The mask of a table's node, which doesn't know what becomes of an empty row."""
    kind = classify(node.mask)
    return MaskReport(kind.name, kind.parameters, node.mask.to_text(), empty_row="")


def other_softmaxes(model: ModelProto, blocks: Iterable[FusedBlock | RefusedBlock]) -> int:
    """How many Softmax nodes of the graph are in none of the blocks."""
    names = {_name(node) for node in model.graph.node if _is_softmax(node)}
    found = {
        block.name if isinstance(block, RefusedBlock) else block.block.name for block in blocks
    }
    count = sum(_is_softmax(node) for node in model.graph.node)
    return max(0, count - len(found & names))


def nested_softmaxes(model: ModelProto) -> int:
    """How many Softmax nodes there are where the rewriter doesn't look: in subgraphs, functions."""
    functions = (node for function in model.functions for node in function.node)
    return sum(map(_is_softmax, (*nested_nodes(model.graph), *functions)))


def _is_softmax(node: NodeProto) -> bool:
    return node.op_type == "Softmax" and node.domain in ("", "ai.onnx")


def _name(node: NodeProto) -> str:
    return node.name or node.output[0]


def layout_text(node: MaskedAttention) -> str:
    """The layouts of query, key, value and output, e.g. "BSHD BSHD BSHD -> BSHD"."""
    layouts = " ".join(layout.order for layout in (node.query, node.key, node.value))
    return f"{layouts} -> {node.output}"


def kernels_of(plan: Plan | None) -> tuple[KernelReport, ...]:
    """Every kernel of a plan with the tactic it is launched with, each once."""
    kernels: list[KernelReport] = []
    for variant in () if plan is None else plan.variants:
        kernels += [kernel for kernel in _kernels(variant) if kernel not in kernels]
    return tuple(kernels)


def _kernels(variant: Variant) -> list[KernelReport]:
    return [
        KernelReport(
            target=variant.target,
            template=launch.kernel.template,
            tactic=dict(bucket.tactic),
            registers=launch.kernel.registers,
            shared_bytes=launch.kernel.static_shared + launch.kernel.max_dynamic_shared,
            image_bytes=len(launch.kernel.image),
        )
        for bucket in variant.buckets
        for launch in bucket.launches
    ]
