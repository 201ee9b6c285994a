"""What an optimized model contains, read from its stof nodes and their plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import numpy_helper

from stof_onnx.ir.block_table import ARRAY_NAMES, BlockTable
from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import Const, Expr
from stof_onnx.ir.expr.build import integer
from stof_onnx.ir.mask import classify
from stof_onnx.ir.operators.mask_table import MaskTable
from stof_onnx.ir.operators.masked_attention import (
    MaskedAttention,
    TensorLayout,
    node_attributes,
)
from stof_onnx.ir.operators.registry import DOMAIN, OPERATORS
from stof_onnx.ir.plan import ATTRIBUTE, Plan, decode, plan_bytes_of
from stof_onnx.progress import NullProgress, Progress
from stof_onnx.report.entries import kernels_of, layout_text, table_mask
from stof_onnx.report.masks import Dims, MaskReports
from stof_onnx.report.records import MaskReport, NodeReport, OptimizedReport
from stof_onnx.rewriter.graph import Tensor, import_graph
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

_NO_PLAN = "stof nodes without a plan can be checked and expanded, but not run"


def read_contents(
    model: onnx.ModelProto,
    name: str,
    masks: MaskReports | None = None,
    progress: Progress | None = None,
) -> OptimizedReport:
    """The stof nodes of a model, which has at least one.

    Args:
        model: the optimized model.
        name: what the report calls it.
        masks: measures and draws the masks.
        progress: is told how far the work is.

    Raises:
        MalformedNodeError: naming the stof node that breaks its specification, or whose plan is
            damaged or of another version.
        InputError: the graph can't be read.
        OutputError: a picture can't be written.
    """
    reader = _Reader(masks or MaskReports(), _Constants(model), _Dims(model))
    found = [node for node in model.graph.node if node.domain == DOMAIN]
    with (progress or NullProgress()).task("Reading stof nodes", len(found)) as task:
        nodes = []
        for node in found:
            nodes.append(reader.node(node))
            task.advance()
    notes = list(reader.masks.notes)
    if not all(node.has_plan for node in nodes):
        notes.append(_NO_PLAN)
    return OptimizedReport(name, len(model.graph.node), tuple(nodes), tuple(notes))


class _Constants:
    """The block tables that a model's initializers hold; each is read once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._tables: dict[tuple[object, ...], BlockTable] = {}

    def tables(
        self, record: MaskedAttention, inputs: Sequence[str], node: str
    ) -> dict[str, BlockTable]:
        """The constant tables of a node's mask, by operand name.

        Raises:
            MalformedNodeError: a table is no initializer, or damaged.
        """
        found = {}
        positions = record.operand_positions()
        for operand, position in zip(record.mask.operands, positions, strict=False):
            if operand.kind != "block_table":
                continue
            names = tuple(inputs[position : position + len(ARRAY_NAMES)])
            key = (names, operand.shape, operand.tile)
            try:
                if key not in self._tables:
                    self._tables[key] = self._table(names, operand.shape, operand.tile)
            except MalformedNodeError as error:
                what = f"node {node!r}, operand {operand.name!r}: {error}"
                raise MalformedNodeError(what) from error
            found[operand.name] = self._tables[key]
        return found

    def _table(self, names: Sequence[str], shape: Sequence[int], tile: Sequence[int]) -> BlockTable:
        missing = [name for name in names if name not in self._tensors]
        if missing or len(names) != len(ARRAY_NAMES):
            came = f"{missing[0]!r} is not an initializer" if missing else f"{len(names)} inputs"
            raise MalformedNodeError(f"block table: {came}", f"{len(ARRAY_NAMES)} initializers")
        arrays = {
            array: numpy_helper.to_array(self._tensors[name])
            for array, name in zip(ARRAY_NAMES, names, strict=True)
        }
        return BlockTable.from_arrays(arrays, shape=shape, tile=tile)


class _Dims:
    """The dimensions of a model's tensors, by their symbols; read when the first is asked for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model

    @cached_property
    def _read(self) -> tuple[SymbolicGraph, dict[str, Tensor]]:
        graph = import_graph(self._model).graph
        return SymbolicGraph(graph), graph.tensors()

    def of(self, record: MaskedAttention, inputs: Sequence[str]) -> Dims:
        """B, H, Sq and Sk of an attention node."""
        query, key = (self._shape(name) for name in inputs[:2])
        return (
            query[0] if query else None,
            integer(record.num_heads),
            _length(query, record.query),
            _length(key, record.key),
        )

    def _shape(self, name: str) -> tuple[Expr, ...]:
        sym, tensors = self._read
        try:
            return tuple(sym.shape(tensors[name]))
        except (KeyError, Unliftable):
            return ()


def _length(shape: Sequence[Expr], layout: TensorLayout) -> Expr | None:
    axis = 1 if layout.order == "BSHD" else 2
    return shape[axis] if len(shape) > axis else None


@dataclass(frozen=True)
class _Reader:
    """Reads the nodes of one model."""

    masks: MaskReports
    constants: _Constants
    dims: _Dims

    def node(self, node: onnx.NodeProto) -> NodeReport:
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
            mask=self._mask(record, node, name),
            num_heads=record.num_heads,
            kv_num_heads=record.kv_num_heads,
            head_dim=record.head_dim,
            dtype=record.dtype,
            layout=layout_text(record),
            softcap=record.softcap,
            sinks=record.sinks,
            tile=None if record.table is None else record.table.tile,
            plan_bytes=size,
            producer=producer,
            kernels=kernels_of(plan),
        )

    def _mask(self, record: MaskedAttention, node: onnx.NodeProto, name: str) -> MaskReport:
        tables = self.constants.tables(record, node.input, name)
        dims = self.dims.of(record, node.input)
        queries, keys = dims[2:]
        lengths = None
        if isinstance(queries, Const) and isinstance(keys, Const):
            lengths = (int(queries.value), int(keys.value))
        return self.masks.entry(
            record.mask,
            classify(record.mask, tables, lengths),
            empty_row=record.empty_row(),
            tables=tables,
            dims=dims,
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
