"""Who makes and who reads each tensor of a model's main graph."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, NodeProto, TensorProto

from stof_onnx.ir.nesting import reads
from stof_onnx.precision.element_types import constants, element_types

# They read a tensor's shape, not its numbers.
_SHAPE_READERS = frozenset({"Shape", "Size"})


class GraphView:
    """A model's main graph, its nodes numbered in their order.

    Args:
        model: with its nodes in topological order, as ONNX asks for.

    Attributes:
        nodes: of the main graph.
        constants: initializers that no caller can override, by name.
        outputs: names of the graph's outputs.
    """

    def __init__(self, model: ModelProto) -> None:
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants = constants(model)
        self.outputs = {value.name for value in model.graph.output}
        self._types = element_types(model)
        self._readers: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            for name in dict.fromkeys(reads(node)):
                self._readers.setdefault(name, []).append(number)

    def is_float(self, name: str) -> bool:
        """Whether a tensor is float32."""
        return self._types.get(name) == TensorProto.FLOAT

    def float_inputs(self, node: NodeProto) -> list[str]:
        """The float32 tensors that a node reads at run time: no constants."""
        return [t for t in node.input if self.is_float(t) and t not in self.constants]

    def float_constants(self, node: NodeProto) -> Iterator[TensorProto]:
        """The float32 constants that a node reads."""
        for name in node.input:
            if name in self.constants and self.is_float(name):
                yield self.constants[name]

    def float_outputs(self, node: NodeProto) -> list[str]:
        """The float32 tensors that a node makes."""
        return [name for name in node.output if self.is_float(name)]

    def touches_float(self, node: NodeProto) -> bool:
        """Whether a node, or a graph inside it, reads or makes float32 tensors."""
        return any(self.is_float(name) for name in (*reads(node), *node.output))

    def value_readers(self, name: str) -> list[int]:
        """The nodes that read a tensor's numbers, subgraphs included; -1 for the graph itself."""
        found = [
            number
            for number in self._readers.get(name, [])
            if self.nodes[number].op_type not in _SHAPE_READERS
        ]
        return [*found, -1] if name in self.outputs else found
