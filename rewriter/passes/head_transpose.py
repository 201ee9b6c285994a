"""Move the head transpose of a stof node's operand below elementwise operators.

Rotary embedding is applied to [B, H, S, D], after the transpose:

    A = StofMaskedAttention(f(Transpose(X, 0213)), ...)        reads BHSD
    ->  A = StofMaskedAttention(f'(X), ...)                    reads BSHD

f is made of elementwise operators, and of Slice, Split and Concat on the last axis; f'
is the same with the other operands (cos, sin: size 1 on the head axis) transposed,
which moves no head. Nothing is done unless every path of f ends in such a transpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, to_text
from stof_onnx.ir.expr.build import integer
from stof_onnx.ir.operators.masked_attention import OP_TYPE
from stof_onnx.rewriter.graph import (
    ImportedGraph,
    Node,
    Tensor,
    is_graph_output,
    live_nodes,
    producer,
)
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

_PERM = [0, 2, 1, 3]
# Rotary embedding is five operators deep; a chain this long is something else.
_MAX_DEPTH = 60
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Cast", "Identity"}


def sink_head_transposes(imported: ImportedGraph, sym: SymbolicGraph) -> int:
    """Rewrite every operand for which it removes a transpose.

    Needs: ``sym`` made of the graph before stof nodes were put in. Ensures: values are
    unchanged; nodes without users are left to the graph's clean-up.

    Returns:
        How many operands were moved.
    """
    mover = _Mover(imported, sym)
    live = live_nodes(imported.graph)
    moved = 0
    for node in [node for node in imported.graph.nodes if node.op == OP_TYPE]:
        for position, name in enumerate(("query", "key", "value")):
            if node.attrs[f"{name}_layout"] != "BHSD":
                continue
            operand = node.inputs[position]
            users = [user for user in operand.outputs if user is not node and id(user) in live]
            if users or is_graph_output(imported.graph, operand):
                continue  # it stays for its other users; a twin would be work done twice
            tensor = mover.moved(operand)
            dim = "value_head_dim" if name == "value" else "head_dim"
            if tensor is None:
                continue
            node.inputs[position] = tensor
            node.attrs[f"{name}_layout"] = "BSHD"
            node.attrs[f"{name}_offset"] = 0
            node.attrs[f"{name}_head_stride"] = node.attrs[dim]
            moved += 1
    return moved


@dataclass
class _Mover:
    """Builds the [B, S, H, D] twin of [B, H, S, D] tensors, sharing what it built."""

    imported: ImportedGraph
    sym: SymbolicGraph
    twins: dict[int, Tensor | None] = field(default_factory=dict)
    swapped: dict[int, Tensor] = field(default_factory=dict)
    new_nodes: list[Node] = field(default_factory=list)
    depth: int = 0

    def moved(self, tensor: Tensor) -> Tensor | None:
        """The twin of a tensor, or None (and no change to the graph)."""
        self.new_nodes = []
        before = dict(self.twins), dict(self.swapped)
        twin = self._twin(tensor)
        if twin is None:
            self.twins, self.swapped = before
            for node in self.new_nodes:
                node.inputs.clear()
                node.outputs.clear()
            return None
        self.imported.graph.nodes.extend(self.new_nodes)
        return twin

    def _twin(self, tensor: Tensor) -> Tensor | None:
        if id(tensor) not in self.twins:
            if self.depth > _MAX_DEPTH:
                return None
            self.depth += 1
            self.twins[id(tensor)] = self._build(tensor)
            self.depth -= 1
        return self.twins[id(tensor)]

    def _build(self, tensor: Tensor) -> Tensor | None:
        node = producer(tensor)
        if node is None:
            return None
        if node.op == "Transpose" and node.attrs.get("perm") == _PERM:
            return node.inputs[0]
        if node.op in _ELEMENTWISE:
            inputs = [self._operand(operand) for operand in node.inputs]
            if not any(self._is_main(operand) for operand in node.inputs):
                return None
            return self._copy(node, inputs, tensor)
        if node.op in ("Slice", "Concat", "Split") and self._on_last_axis(node):
            data = node.inputs if node.op == "Concat" else node.inputs[:1]
            twins: list[Tensor | None] = [self._twin(operand) for operand in data]
            return self._copy(node, [*twins, *node.inputs[len(data) :]], tensor)
        return None

    def _is_main(self, tensor: Tensor) -> bool:
        return self._twin(tensor) is not None

    def _operand(self, tensor: Tensor) -> Tensor | None:
        """The twin of a main operand; a broadcast operand with its middle axes swapped."""
        twin = self._twin(tensor)
        if twin is not None:
            return twin
        try:
            shape = self.sym.shape(tensor)
        except Unliftable:
            return None
        if len(shape) <= 1:
            return tensor
        if len(shape) != 4 or shape[1] != integer(1):
            return None
        if id(tensor) not in self.swapped:
            self.swapped[id(tensor)] = self._swap_middle_axes(tensor)
        return self.swapped[id(tensor)]

    def _swap_middle_axes(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, gs.Constant):
            return gs.Constant(self._name(tensor), np.transpose(tensor.values, _PERM))
        source = producer(tensor)
        if source is not None and source.op == "Unsqueeze" and _axes(source) == [1]:
            axes = gs.Constant(self._name(tensor, "axes"), np.asarray([2], np.int64))
            return self._node("Unsqueeze", [source.inputs[0], axes], tensor, {})
        return self._node("Transpose", [tensor], tensor, {"perm": _PERM})

    def _copy(self, node: Node, inputs: list[Tensor | None], tensor: Tensor) -> Tensor | None:
        known = [operand for operand in inputs if operand is not None]
        if len(known) != len(inputs):
            return None
        attributes = dict(node.attrs)
        if node.op in ("Concat", "Split"):
            attributes["axis"] = 3
        outputs = [self._swapped_variable(output) for output in node.outputs]
        twin = gs.Node(node.op, outputs[0].name, attrs=attributes, inputs=known, outputs=outputs)
        self.new_nodes.append(twin)
        for old, new in zip(node.outputs, outputs, strict=True):
            self.twins[id(old)] = new
        return self.twins[id(tensor)]

    def _node(
        self, op_type: str, inputs: list[Tensor], tensor: Tensor, attributes: dict[str, object]
    ) -> Tensor:
        output = self._swapped_variable(tensor)
        self.new_nodes.append(
            gs.Node(op_type, output.name, attrs=attributes, inputs=inputs, outputs=[output])
        )
        return output

    def _swapped_variable(self, tensor: Tensor) -> gs.Variable:
        """A new tensor like this one with the middle axes swapped."""
        try:
            dims = self.sym.shape(tensor)
        except Unliftable:
            return gs.Variable(self._name(tensor), tensor.dtype)
        sizes = [int(d.value) if isinstance(d, Const) else to_text(d) for d in dims]
        shape = [sizes[axis] for axis in _PERM] if len(sizes) == len(_PERM) else None
        return gs.Variable(self._name(tensor), tensor.dtype, shape)

    def _name(self, tensor: Tensor, suffix: str = "") -> str:
        return self.imported.fresh(f"{tensor.name}/bshd{suffix}")

    def _on_last_axis(self, node: Node) -> bool:
        if node.op in ("Concat", "Split"):
            return node.attrs.get("axis", 0) in (-1, 3)
        axes = node.inputs[3] if len(node.inputs) > 3 else None
        return isinstance(axes, gs.Constant) and axes.values.reshape(-1).tolist() in ([-1], [3])


def _axes(node: Node) -> list[int] | None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    return axes.values.reshape(-1).tolist() if isinstance(axes, gs.Constant) else None
