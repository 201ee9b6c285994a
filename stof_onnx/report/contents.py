"""What an optimized model contains, read from its stof nodes and their plans."""

from __future__ import annotations

import onnx

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.operators.mask_table import MaskTable
from stof_onnx.ir.operators.masked_attention import MaskedAttention, node_attributes
from stof_onnx.ir.operators.registry import DOMAIN, OPERATORS
from stof_onnx.ir.plan import ATTRIBUTE, Plan, decode, plan_bytes_of
from stof_onnx.report.entries import attention_mask, kernels_of, layout_text, table_mask
from stof_onnx.report.records import NodeReport, OptimizedReport

_NO_PLAN = "stof nodes without a plan can be checked and expanded, but not run"


def read_contents(model: onnx.ModelProto, name: str) -> OptimizedReport:
    """The stof nodes of a model, which has at least one.

    Args:
        model: the optimized model.
        name: what the report calls it.

    Raises:
        MalformedNodeError: naming the stof node that breaks its specification, or whose plan is
            damaged or of another version.
    """
    nodes = tuple(_node(node) for node in model.graph.node if node.domain == DOMAIN)
    notes = () if all(node.has_plan for node in nodes) else (_NO_PLAN,)
    return OptimizedReport(name, len(model.graph.node), nodes, notes)


def _node(node: onnx.NodeProto) -> NodeReport:
    name = node.name or f"{node.op_type} of {node.output[0]}"
    read = OPERATORS.get(node.op_type)
    if read is None:
        raise MalformedNodeError(
            f"node {name!r} has the unknown operator {node.op_type!r}",
            f"one of {sorted(OPERATORS)}",
            "use the release of stof-onnx that wrote the file, or a newer one",
        )
    attributes = node_attributes(node)
    record = read(attributes, name)
    plan, size = _plan(attributes.get(ATTRIBUTE), name)
    producer = "" if plan is None else plan.producer
    if isinstance(record, MaskTable):
        return NodeReport(
            name=name,
            operator=node.op_type,
            mask=table_mask(record),
            num_heads=record.num_heads,
            tile=record.tile,
            plan_bytes=size,
            producer=producer,
            kernels=kernels_of(plan),
        )
    assert isinstance(record, MaskedAttention), f"{node.op_type} has no report"
    return NodeReport(
        name=name,
        operator=node.op_type,
        mask=attention_mask(record),
        num_heads=record.num_heads,
        kv_num_heads=record.kv_num_heads,
        head_dim=record.head_dim,
        dtype=record.dtype,
        layout=layout_text(record),
        tile=None if record.table is None else record.table.tile,
        plan_bytes=size,
        producer=producer,
        kernels=kernels_of(plan),
    )


def _plan(value: onnx.TensorProto | None, node: str) -> tuple[Plan | None, int]:
    """A node's plan and its size in the file; (None, 0) without one."""
    if value is None:
        return None, 0
    try:
        content = plan_bytes_of(value)
        return decode(content), len(content)
    except MalformedNodeError as error:
        raise MalformedNodeError(f"node {node!r}: {error}") from error
