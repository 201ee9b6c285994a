"""Put a Cast wherever a tensor goes from float32 to a 16-bit type or back."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from stof_onnx.ir.nesting import all_names, reads, subgraphs
from stof_onnx.precision.graph_view import GraphView
from stof_onnx.precision.selection import Selection
from stof_onnx.precision.target import Precision


class CastPlacer:
    """Writes the nodes of a graph anew, with Casts between the two types.

    A node in float32 reads float32 and makes float32, a lowered one reads and makes the 16-bit
    type; each tensor is cast at most once in each direction. Inputs and outputs of the model stay
    float32, and so does everything inside If, Loop and Scan. What a lowered node's weights and
    attributes hold is not changed here.

    Args:
        model: a float32 model; not changed.
        selection: the nodes that stay in float32.
        precision: the type of the others.

    Attributes:
        nodes: the new nodes, in order.
        lowered: positions in ``nodes`` of those that compute in the 16-bit type.
        initializers: names of the weights that lowered nodes read.
        copies: new weights: float32 ones of both kinds of nodes, for the lowered ones.
        tensors: names of the 16-bit tensors that nodes make.
    """

    def __init__(self, model: ModelProto, selection: Selection, precision: Precision) -> None:
        self._view = GraphView(model)
        self._selection = selection
        self._precision = precision
        self._names = all_names(model.graph)
        # The names under which a float32 tensor of the original is found in either type.
        self._wide: dict[str, str] = {}
        self._narrow: dict[str, str] = {}
        self.nodes: list[NodeProto] = []
        self.lowered: list[int] = []
        self.initializers: set[str] = set()
        self.copies: list[TensorProto] = []
        self.tensors: set[str] = set()
        self._read_wide = {
            name
            for number, node in enumerate(self._view.nodes)
            if not self._is_lowered(number)
            for name in reads(node)
        } | self._view.outputs
        for number, node in enumerate(self._view.nodes):
            self._add(number, node)

    def _is_lowered(self, number: int) -> bool:
        is_kept = number in self._selection.kept
        return not is_kept and self._view.touches_float(self._view.nodes[number])

    def _add(self, number: int, original: NodeProto) -> None:
        node = NodeProto()
        node.CopyFrom(original)
        if not self._is_lowered(number):
            _rename_reads(node, self._in_float32)
            self.nodes.append(node)
            return
        for position, name in enumerate(node.input):
            if self._view.is_float(name):
                node.input[position] = self._in_16_bits(name)
        self.lowered.append(len(self.nodes))
        self.nodes.append(node)
        for position, name in enumerate(node.output):
            if self._view.is_float(name):
                self._lower_output(node, position, name)

    def _lower_output(self, node: NodeProto, position: int, name: str) -> None:
        """The result of a lowered node; an output of the model is cast back at once."""
        if name in self._view.outputs:
            node.output[position] = self._fresh(f"{name}/{self._precision.name}")
            self._cast(node.output[position], name, TensorProto.FLOAT)
            self._wide[name] = name
        self._narrow[name] = node.output[position]
        self.tensors.add(node.output[position])

    def _in_float32(self, name: str) -> str:
        """The float32 form of a tensor, for a node that stays as it is."""
        if name in self._narrow and name not in self._wide and not self._is_made_wide(name):
            self._wide[name] = self._fresh(f"{name}/float32")
            self._cast(self._narrow[name], self._wide[name], TensorProto.FLOAT)
        return self._wide.get(name, name)

    def _is_made_wide(self, name: str) -> bool:
        return self._narrow[name] != name

    def _in_16_bits(self, name: str) -> str:
        """The 16-bit form of a tensor, for a lowered node."""
        if name not in self._narrow:
            if name in self._view.constants:
                self._narrow[name] = self._weight(name)
            else:
                self._narrow[name] = self._fresh(f"{name}/{self._precision.name}")
                self._cast(self._clipped(name), self._narrow[name], self._precision.elem_type)
                self.tensors.add(self._narrow[name])
        return self._narrow[name]

    def _weight(self, name: str) -> str:
        """The weight itself, or a copy where nodes in float32 read it too."""
        lowered = name
        if name in self._read_wide:
            copy = TensorProto()
            copy.CopyFrom(self._view.constants[name])
            copy.name = lowered = self._fresh(f"{name}/{self._precision.name}")
            self.copies.append(copy)
        self.initializers.add(lowered)
        return lowered

    def _clipped(self, name: str) -> str:
        """A mask's lowest number becomes the lowest of the 16-bit type, not infinity."""
        if name not in self._selection.overflowing:
            return name
        bounds = [
            self._constant(f"{name}/{text}", sign * self._precision.largest)
            for text, sign in (("lowest", -1.0), ("highest", 1.0))
        ]
        clipped = self._fresh(f"{name}/clipped")
        self.nodes.append(helper.make_node("Clip", [name, *bounds], [clipped], name=clipped))
        return clipped

    def _constant(self, name: str, value: float) -> str:
        tensor = numpy_helper.from_array(np.asarray(value, np.float32), self._fresh(name))
        self.copies.append(tensor)
        return tensor.name

    def _cast(self, source: str, target: str, elem_type: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=target, to=elem_type))

    def _fresh(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique


def _rename_reads(node: NodeProto, renamed: Callable[[str], str]) -> None:
    """Rename what a node reads, also what its graphs take from outside."""
    for position, name in enumerate(node.input):
        node.input[position] = renamed(name)
    for graph in subgraphs(node):
        _rename_captured(graph, renamed, set())


def _rename_captured(
    graph: GraphProto, renamed: Callable[[str], str], outside: Collection[str]
) -> None:
    own = {*outside, *(v.name for v in graph.input), *(t.name for t in graph.initializer)}
    own |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in own:
                node.input[position] = renamed(name)
        for inner in subgraphs(node):
            _rename_captured(inner, renamed, own)
    for output in graph.output:
        if output.name not in own:
            output.name = renamed(output.name)
