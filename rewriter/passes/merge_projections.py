"""One product in the place of several projections of one tensor that a stof node reads.

    Q = X Wq + bq,  K = X Wk + bk,  V = X Wv + bv      read as three tensors
    ->  QKV = X [Wq Wk Wv] + [bq bk bv]                read at three offsets

A node reads query, key and value wherever they lie in a row, so that nothing has to be split
again. Projections that something else reads too, such as keys that rotary embedding follows,
stay apart. The weights are constants, joined once for all layers that share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from stof_onnx.ir.expr import Const, to_text
from stof_onnx.ir.operators.masked_attention import OP_TYPE
from stof_onnx.rewriter.graph import (
    ImportedGraph,
    Node,
    Tensor,
    constant_values,
    is_graph_output,
    live_nodes,
    producer,
)
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

_ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class _Projection:
    """``source @ weight + bias``, [B, S, columns].

    Attributes:
        role: "query", "key" or "value".
        position: of the node's input.
        source: [B, S, E].
        weight: [E, columns].
        bias: [columns], or None.
        output: the tensor that the node reads.
    """

    role: str
    position: int
    source: Tensor
    weight: gs.Constant
    bias: gs.Constant | None
    output: Tensor

    @property
    def columns(self) -> int:
        return int(self.weight.shape[1])


def merge_projections(imported: ImportedGraph, sym: SymbolicGraph) -> int:
    """Merge the projections of every stof node that has two or more of one tensor.

    Needs: ``sym`` made of the graph before stof nodes were put in. Ensures: values are
    unchanged but for the order of sums; nodes without users are left to the graph's clean-up.

    Returns:
        How many projections became part of another.
    """
    merger = _Merger(imported, sym, live_nodes(imported.graph), {})
    return sum(merger.merge(node) for node in list(imported.graph.nodes) if node.op == OP_TYPE)


@dataclass
class _Merger:
    imported: ImportedGraph
    sym: SymbolicGraph
    live: set[int]
    joined: dict[tuple[int, ...], gs.Constant]

    def merge(self, node: Node) -> int:
        """Merge one node's projections; returns how many fewer there are."""
        found = [p for i, role in enumerate(_ROLES) if (p := self._read(node, i, role))]
        merged = 0
        for first in list(found):
            group = [p for p in found if p.source is first.source and _fit(first, p)]
            if first is group[0] and len(group) > 1:
                self._join(node, group)
                merged += len(group) - 1
        return merged

    def _read(self, node: Node, position: int, role: str) -> _Projection | None:
        output = node.inputs[position]
        if node.attrs[f"{role}_layout"] != "BSHD" or is_graph_output(self.imported.graph, output):
            return None
        if not self._is_read_once(output):
            return None
        last = producer(output)
        product, bias = last, None
        if last is not None and last.op == "Add":
            product, bias = _bias(last)
        if product is None or product.op != "MatMul":
            return None
        if not self._is_read_once(product.outputs[0]):
            return None
        if is_graph_output(self.imported.graph, product.outputs[0]):
            return None
        source, weight = product.inputs
        if not isinstance(weight, gs.Constant) or len(weight.shape) != 2:
            return None
        if bias is not None and tuple(bias.shape) != (weight.shape[1],):
            return None
        try:
            rank = len(self.sym.shape(output))
        except Unliftable:
            return None
        return _Projection(role, position, source, weight, bias, output) if rank == 3 else None

    def _is_read_once(self, tensor: Tensor) -> bool:
        """Users that fusion left behind, such as the Shape of a projection, don't count."""
        return sum(id(user) in self.live for user in tensor.outputs) == 1

    def _join(self, node: Node, group: Sequence[_Projection]) -> None:
        source, first = group[0].source, group[0].output
        names = "+".join(p.role for p in group)
        output = self._variable(f"{node.name}/{names}/product", first, group)
        weight = self._constant([p.weight for p in group], f"{node.name}/{names}/weight", axis=1)
        self._add("MatMul", [source, weight], output)
        if group[0].bias is not None:
            bias = self._constant(
                [p.bias for p in group if p.bias is not None],
                f"{node.name}/{names}/bias",
                axis=0,
            )
            product, output = output, self._variable(f"{node.name}/{names}", first, group)
            self._add("Add", [product, bias], output)
        start = 0
        for projection in group:
            node.inputs[projection.position] = output
            node.attrs[f"{projection.role}_offset"] += start
            start += projection.columns

    def _constant(self, parts: Sequence[gs.Constant], name: str, axis: int) -> gs.Constant:
        key = tuple(id(part) for part in parts)
        if key not in self.joined:
            values = _Joined(parts, axis)
            self.joined[key] = gs.Constant(self.imported.fresh(name), values)
        return self.joined[key]

    def _variable(self, name: str, like: Tensor, group: Sequence[_Projection]) -> gs.Variable:
        dims = self.sym.shape(like)[:2]
        shape = [int(d.value) if isinstance(d, Const) else to_text(d) for d in dims]
        columns = sum(projection.columns for projection in group)
        return gs.Variable(self.imported.fresh(name), like.dtype, [*shape, columns])

    def _add(self, op_type: str, inputs: list[Tensor], output: Tensor) -> None:
        node = gs.Node(op_type, output.name, inputs=inputs, outputs=[output])
        self.imported.graph.nodes.append(node)


class _Joined(LazyValues):  # type: ignore[misc]
    """Constants that are joined when they are written, one at a time."""

    def __init__(self, parts: Sequence[gs.Constant], axis: int) -> None:
        self._parts = parts
        self._axis = axis
        self.dtype = parts[0].dtype
        self.shape = list(parts[0].shape)
        self.shape[axis] = sum(part.shape[axis] for part in parts)

    def load(self) -> np.ndarray[Any, Any]:
        """The joined values."""
        return np.concatenate([constant_values(part) for part in self._parts], self._axis)


def _bias(add: Node) -> tuple[Node | None, gs.Constant | None]:
    """(producer of the product, constant bias) of an Add."""
    for position in (0, 1):
        bias = add.inputs[position]
        if isinstance(bias, gs.Constant):
            return producer(add.inputs[1 - position]), bias
    return None, None


def _fit(first: _Projection, other: _Projection) -> bool:
    """Whether two projections can be one product."""
    types = first.weight.dtype == other.weight.dtype and first.output.dtype == other.output.dtype
    return types and (first.bias is None) == (other.bias is None)
