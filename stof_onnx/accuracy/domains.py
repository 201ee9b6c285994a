"""Which values each input of a model may take, read off the graph.

Random integers crash an embedding lookup, and a 0/1 mask filled with noise tests
nothing. The walk starts at an input, follows the operators that hand its values on,
and looks at who uses them: a table lookup bounds them, a comparison with 0 or 1, a
cast to bool or ``1 - x`` makes them a mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, inliner, numpy_helper

Kind = Literal["index", "position", "mask", "additive_mask", "real", "count"]

# Input 0 is handed on with unchanged values (all of them, some of them, or repeated).
_SAME_VALUES = frozenset(
    [
        "Identity",
        "Cast",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Flatten",
        "Slice",
        "Expand",
        "Tile",
        "Transpose",
        "Gather",
        "GatherElements",
        "GatherND",
        "Split",
    ]
)
_COMPARISONS = frozenset(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
# A constant tensor keeps its shape through these.
_SAME_SHAPE = frozenset(["Identity", "Cast", "DequantizeLinear"])
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class InputDomain:
    """The values one graph input may take.

    Attributes:
        kind: ``index`` (looked up in a table), ``position`` (indices that count up along
            the last axis), ``mask`` (0 or 1), ``additive_mask`` (0, or the lowest finite
            number), ``real`` (standard normal), or ``count`` (other integers: lengths
            or ids, as small as the shape suggests).
        low: the lowest valid value.
        high: one more than the highest valid integer; None if nothing bounds it.
    """

    kind: Kind
    low: int = 0
    high: int | None = None


@dataclass
class _Evidence:
    """What the walk from one input has seen."""

    lows: list[int] = field(default_factory=list)
    highs: list[int] = field(default_factory=list)
    mask: bool = False
    added: bool = False


def graph_inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller has to feed: graph inputs that are no initializers."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def infer_domains(model: ModelProto) -> dict[str, InputDomain]:
    """Find the valid values of each input of ``model``.

    Args:
        model: an ONNX model; local functions are looked into.

    Returns:
        The domain of each input, by input name.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = _Graph(model)
    return {value.name: _classify(value, graph) for value in graph_inputs(model)}


def _classify(value: onnx.ValueInfoProto, graph: _Graph) -> InputDomain:
    tensor_type = value.type.tensor_type
    name = value.name.lower()
    evidence = graph.follow(value.name)
    if tensor_type.elem_type == TensorProto.BOOL:
        return InputDomain("mask", 0, 2)
    if tensor_type.elem_type in _FLOATS:
        if evidence.mask or ("mask" in name and not evidence.added):
            return InputDomain("mask", 0, 2)
        return InputDomain("additive_mask" if "mask" in name else "real")
    low = max([0, *evidence.lows])
    high = max(min(evidence.highs), low + 1) if evidence.highs else None
    if "position" in name or "pos" in re.split(r"\W|_", name):
        return InputDomain("position", low, high)
    if high is not None:
        return InputDomain("index", low, high)
    # A vector of lengths compared with 0 or 1 ("is this row empty?") is no mask.
    if "mask" in name or (evidence.mask and len(tensor_type.shape.dim) >= 2):
        return InputDomain("mask", 0, 2)
    return InputDomain("count")


class _Graph:
    """Consumers and constants of a model's main graph, by tensor name."""

    def __init__(self, model: ModelProto) -> None:
        self._consumers: dict[str, list[tuple[NodeProto, int]]] = {}
        self._producers: dict[str, NodeProto] = {}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                self._consumers.setdefault(name, []).append((node, position))
            for name in node.output:
                self._producers[name] = node

    def follow(self, name: str) -> _Evidence:
        """Walk from a graph input to everything that shows which values are valid."""
        evidence = _Evidence()
        pending = [(name, 0)]
        seen = set(pending)
        while pending:
            tensor, offset = pending.pop()
            for node, position in self._consumers.get(tensor, []):
                self._look(node, position, offset, evidence)
                for step in self._hand_on(node, position, offset):
                    if step not in seen:
                        seen.add(step)
                        pending.append(step)
        return evidence

    def _hand_on(self, node: NodeProto, position: int, offset: int) -> Iterator[tuple[str, int]]:
        """Outputs that carry the values of input ``position``, and what was added to them."""
        if (node.op_type in _SAME_VALUES and position == 0) or (
            node.op_type == "Where" and position > 0
        ):
            yield from ((output, offset) for output in node.output if output)
        elif node.op_type in ("Add", "Sub") and len(node.input) == 2:
            constant = self._scalar(node.input[1 - position])
            if constant is None or constant != int(constant):
                return
            if node.op_type == "Add":
                yield node.output[0], offset + int(constant)
            elif position == 0:
                yield node.output[0], offset - int(constant)

    def _look(self, node: NodeProto, position: int, offset: int, evidence: _Evidence) -> None:
        """Note what one use of a value tells; ``offset`` was added to the input before."""
        if node.op_type in ("Gather", "GatherElements") and position == 1:
            rows = self._rows(node)
            if rows is not None:
                evidence.lows.append(-offset)
                evidence.highs.append(rows - offset)
        elif node.op_type == "Cast":
            to = next((a.i for a in node.attribute if a.name == "to"), 0)
            evidence.mask |= to == TensorProto.BOOL and offset == 0
        elif node.op_type in _COMPARISONS:
            evidence.mask |= offset == 0 and self._scalar(node.input[1 - position]) in (0, 1)
        elif node.op_type == "Sub" and position == 1:
            evidence.mask |= offset == 0 and self._scalar(node.input[0]) == 1
        elif node.op_type == "Add" and self._scalar(node.input[1 - position]) is None:
            evidence.added = True

    def _rows(self, node: NodeProto) -> int | None:
        """How many rows the table of a lookup has along the lookup's axis."""
        dims = self._table_dims(node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if not -len(dims) <= axis < len(dims):
            return None
        return dims[axis]

    def _table_dims(self, name: str) -> list[int | None]:
        """The shape of a constant tensor, None where unknown; empty if it isn't constant."""
        tensor = self._constant(name)
        if tensor is not None:
            return list(tensor.dims)
        producer = self._producers.get(name)
        if producer is None:
            return []
        if producer.op_type in _SAME_SHAPE:
            return self._table_dims(producer.input[0])
        if producer.op_type == "Expand":
            # Exporters expand a table over the batch: an axis that isn't 1 keeps its size.
            return [dim if dim != 1 else None for dim in self._table_dims(producer.input[0])]
        return []

    def _constant(self, name: str) -> TensorProto | None:
        if name in self._initializers:
            return self._initializers[name]
        producer = self._producers.get(name)
        if producer is not None and producer.op_type == "Constant":
            return _constant_node_value(producer)
        if producer is not None and producer.op_type == "Identity":
            return self._constant(producer.input[0])
        return None

    def _scalar(self, name: str) -> float | None:
        """The value of a constant with one element (or one value throughout)."""
        producer = self._producers.get(name)
        if producer is not None and producer.op_type == "Cast":
            return self._scalar(producer.input[0])
        tensor = self._constant(name)
        if tensor is None or tensor.data_type == TensorProto.STRING:
            return None
        if np.prod(tensor.dims, dtype=np.int64) != 1:
            return None
        return float(numpy_helper.to_array(tensor).astype(np.float64).item())


def _constant_node_value(node: NodeProto) -> TensorProto | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name == "value_int":
            return numpy_helper.from_array(np.array(attribute.i, np.int64))
        if attribute.name == "value_float":
            return numpy_helper.from_array(np.array(attribute.f, np.float32))
    return None
