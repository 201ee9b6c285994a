"""The sub-graph that takes an attention operator's place while it is being built.

Nodes of the operator itself are its own. Mask arithmetic is shared: the same operator on
the same tensors is built once for all layers, so that they share mask, proof and table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from stof_onnx.ir.expr import Const, Expr
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.graph import ImportedGraph, Node, Tensor, is_graph_output, node_name
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from stof_onnx.rewriter.symbolic.registry import Shape

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
BOOL = TensorProto.BOOL
_TRUTHS = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or"}
)


class NotLowered(Exception):  # noqa: N818 - an answer, not an error
    """An operator is left as it is; the message names the node and the reason.

    Attributes:
        node: the operator.
        name: its name, or its first output's.
    """

    def __init__(self, node: Node, name: str, reason: str) -> None:
        super().__init__(f"{node.op} {name!r}: {reason}")
        self.node = node
        self.name = name


@dataclass
class Shared:
    """What the sub-graphs of one graph have in common.

    Attributes:
        tensors: output of each shared node by operator, inputs and attributes, beside the
            inputs, which are so kept alive: the keys hold their ids.
        lengths: scalar INT64 tensors by the dimension they hold.
        constants: by type, shape and bytes.
        users: for each node, by id, how many lowerings use it.
        common: ids of the nodes that several lowerings may use.
    """

    tensors: dict[Any, tuple[Tensor, tuple[Tensor, ...]]] = field(default_factory=dict)
    lengths: dict[Any, Tensor] = field(default_factory=dict)
    constants: dict[Any, Tensor] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    common: set[int] = field(default_factory=set)


class SubGraph:
    """Builds nodes for one attention operator, which is taken out of the graph first.

    Args:
        imported: the graph.
        sym: its reading, made before any operator was lowered.
        node: the operator.
        shared: of the graph.

    Attributes:
        node: the operator.
        name: of the operator, or of its first output.
        inputs, outputs: of the operator.
        nodes: the nodes it needs, in topological order, shared ones included.
        opset: version of the ONNX operators in the model.
    """

    def __init__(
        self, imported: ImportedGraph, sym: SymbolicGraph, node: Node, shared: Shared
    ) -> None:
        self.imported = imported
        self.sym = sym
        self.node = node
        self.inputs: list[Tensor] = list(node.inputs)
        self.outputs: list[Tensor] = list(node.outputs)
        self.shared = shared
        self.name = node_name(node)
        self.nodes: list[Node] = []
        self.opset: int = imported.graph.opset
        self._types: list[Any] = []

    def detach(self) -> None:
        """Take the operator out, so that the sub-graph can make its outputs."""
        self._types = [tensor.dtype for tensor in self.outputs]
        self.node.inputs.clear()
        self.node.outputs.clear()

    def restore(self) -> set[int]:
        """Put the operator's inputs and outputs back.

        Returns:
            Ids of the nodes that no operator uses any more; they are unlinked.
        """
        gone = set()
        for node in self.nodes:
            self.shared.users[id(node)] -= 1
            if self.shared.users[id(node)] == 0:
                gone.add(id(node))
                # Another node may be given this id.
                self.shared.common.discard(id(node))
                node.inputs.clear()
                node.outputs.clear()
        self.node.inputs.extend(self.inputs)
        self.node.outputs.extend(self.outputs)
        for tensor, dtype in zip(self.outputs, self._types, strict=True):
            tensor.dtype = dtype
        return gone

    # What the operator has.

    def input(self, position: int) -> Tensor | None:
        """An input, or None where it is absent."""
        if position >= len(self.inputs) or self.inputs[position].is_empty():
            return None
        return self.inputs[position]

    def needed(self, position: int) -> Tensor:
        """An input that must be there."""
        tensor = self.input(position)
        if tensor is None:
            raise self.refusal(f"input {position} is absent")
        return tensor

    def output(self, position: int) -> Tensor | None:
        """An output that the node names, or None."""
        if position >= len(self.outputs) or self.outputs[position].is_empty():
            return None
        return self.outputs[position]

    def is_used(self, position: int) -> bool:
        """Whether something reads an output."""
        tensor = self.output(position)
        if tensor is None:
            return False
        return bool(tensor.outputs) or is_graph_output(self.imported.graph, tensor)

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute or its default."""
        return self.node.attrs.get(name, default)

    def refusal(self, reason: str) -> NotLowered:
        """The refusal of this operator, to be raised."""
        return NotLowered(self.node, self.name, reason)

    def refuse_inputs(self, names: dict[int, str]) -> None:
        """Refuse the operator if one of these inputs (by position) is given."""
        for position, name in names.items():
            if self.input(position) is not None:
                raise self.refusal(f"input {name} is not supported")

    def dims(self, tensor: Tensor) -> Shape:
        """Symbolic shape of a tensor that the operator reads."""
        try:
            return self.sym.shape(tensor)
        except Unliftable as reason:
            raise self.refusal(f"the shape of {tensor.name!r} is unknown: {reason}") from reason

    def fixed(self, dim: Expr, what: str) -> int:
        """A dimension that must be a number."""
        if not isinstance(dim, Const) or int(dim.value) < 1:
            raise self.refusal(f"{what} is not fixed")
        return int(dim.value)

    def quotient(self, dim: Expr, parts: int, what: str) -> int:
        """One of equal parts of a fixed dimension."""
        size = self.fixed(dim, what)
        if parts < 1 or size % parts:
            raise self.refusal(f"{what} ({size}) is not a multiple of {parts}")
        return size // parts

    # What the sub-graph has.

    def op(
        self, op_type: str, *inputs: Tensor, output: Tensor | None = None, **attributes: Any
    ) -> Tensor:
        """Append a node with one output: a new tensor, or the given one."""
        if output is None:
            output = self._variable(op_type, _result_type(op_type, inputs, attributes))
        elif output.dtype is None:
            output.dtype = _numpy_or_number(_result_type(op_type, inputs, attributes))
        self._append(op_type, inputs, [output], attributes)
        return output

    def split(self, tensor: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
        """Cut a tensor into parts."""
        outputs = [self._variable("Split", element_type(tensor)) for _ in sizes]
        self._append("Split", [tensor, self.ints(*sizes)], outputs, {"axis": axis})
        return outputs

    def common(self, op_type: str, *inputs: Tensor, **attributes: Any) -> Tensor:
        """Like :meth:`op`, built once for all operators that need the same."""
        key = (op_type, tuple(id(tensor) for tensor in inputs), repr(sorted(attributes.items())))
        known, _ = self.shared.tensors.get(key, (None, ()))
        if known is None or not known.inputs:
            known = self.op(op_type, *inputs, **attributes)
            self.shared.tensors[key] = (known, inputs)
            self.shared.common.add(id(known.inputs[0]))
        else:
            self._use(known.inputs[0])
        return known

    def constant(self, values: Any, dtype: Any) -> Tensor:
        """A constant tensor."""
        array = np.asarray(values, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self.shared.constants:
            name = self.imported.fresh("stof/lowered/constant")
            self.shared.constants[key] = gs.Constant(name, array)
        return self.shared.constants[key]

    def ints(self, *values: int) -> Tensor:
        """An INT64 vector."""
        return self.constant(values, np.int64)

    def number(self, value: float, element: int) -> Tensor:
        """A scalar of a float type; bfloat16, which numpy lacks, through a Cast."""
        if element == TensorProto.BFLOAT16:
            return self.common("Cast", self.constant(value, np.float32), to=element)
        with np.errstate(over="ignore"):
            return self.constant(value, helper.tensor_dtype_to_np_dtype(element))

    def cast(self, tensor: Tensor, element: int) -> Tensor:
        """The tensor in another type; itself where it has that type."""
        if element_type(tensor) == element:
            return tensor
        return self.common("Cast", tensor, to=element)

    def reshape(self, tensor: Tensor, *dims: int, output: Tensor | None = None) -> Tensor:
        """Reshape: 0 copies a dimension, -1 is solved for."""
        return self.op("Reshape", tensor, self.ints(*dims), output=output)

    def length(self, tensor: Tensor, axis: int) -> Tensor:
        """A dimension as an INT64 scalar; one tensor for all dimensions known to be equal."""
        dim: Any = (id(tensor), axis)
        with contextlib.suppress(Unliftable):  # a tensor of the sub-graph: equal to itself
            dim = self.sym.shape(tensor)[axis]
        if isinstance(dim, Const):
            return self.constant(int(dim.value), np.int64)
        known = self.shared.lengths.get(dim)
        if known is None or not known.inputs:
            shape = self.common("Shape", tensor)
            index = self.constant(axis, np.int64)
            known = self.shared.lengths[dim] = self.common("Gather", shape, index)
        else:
            self._use(known.inputs[0])
        return known

    def total(self, past: Tensor | None, new: Tensor) -> Tensor:
        """The number of cached and new tokens as an INT64 scalar."""
        return new if past is None else self.common("Add", past, new)

    def vector(self, *parts: int | Tensor) -> Tensor:
        """An INT64 vector of numbers and scalars."""
        tensors = [
            self.ints(part)
            if isinstance(part, int)
            else self.common("Unsqueeze", part, self.ints(0))
            for part in parts
        ]
        return self.common("Concat", *tensors, axis=0)

    def positions(self, length: Tensor) -> Tensor:
        """0, 1, ..., length - 1."""
        bounds = self.constant(0, np.int64), length, self.constant(1, np.int64)
        return self.common("Range", *bounds)

    def all_of(self, conditions: Sequence[Tensor]) -> Tensor | None:
        """Their conjunction; None of none."""
        result: Tensor | None = None
        for condition in conditions:
            result = condition if result is None else self.common("And", result, condition)
        return result

    def _variable(self, op_type: str, element: int) -> Tensor:
        name = self.imported.fresh(f"{self.name}/{op_type}")
        return gs.Variable(name, _numpy_or_number(element))

    def _append(
        self,
        op_type: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        attributes: dict[str, Any],
    ) -> None:
        name = self.imported.fresh(f"{self.name}/{op_type}/node")
        node = gs.Node(op_type, name, attributes, list(inputs), list(outputs))
        self.shared.users[id(node)] = 0
        self._use(node)

    def _use(self, node: Node) -> None:
        """Count a node, and the shared ones that it needs, as used by this operator."""
        if any(node is known for known in self.nodes):
            return
        for tensor in node.inputs:
            if tensor.inputs and id(tensor.inputs[0]) in self.shared.common:
                self._use(tensor.inputs[0])
        self.nodes.append(node)
        self.shared.users[id(node)] += 1


def element_type(tensor: Tensor) -> int:
    """ONNX's number of a tensor's type; 0 if it is unknown."""
    if tensor.dtype is None:
        return 0
    try:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    except TypeError:  # bfloat16 comes as its number
        return int(tensor.dtype)


def is_one(dim: Expr) -> bool:
    """Whether a dimension is known to be 1."""
    return dim == integer(1)


def _result_type(op_type: str, inputs: Sequence[Tensor], attributes: dict[str, Any]) -> int:
    if op_type == "Cast":
        return int(attributes["to"])
    if op_type in _TRUTHS:
        return BOOL
    if op_type == "Shape":
        return INT64
    return element_type(inputs[1] if op_type == "Where" else inputs[0])


def _numpy_or_number(element: int) -> Any:
    """As graphsurgeon keeps types: numpy's where it has one."""
    if element in (0, TensorProto.BFLOAT16):
        return element or None
    return helper.tensor_dtype_to_np_dtype(element)
