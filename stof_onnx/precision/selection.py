"""Which nodes stay in float32 when a model is lowered, and why.

What rounding to 16 bits would spoil, beyond operators that exist in float32 only:

* **sensitive operators**: softmax, normalisations, sums and means, powers and exponentials;
* **index arithmetic**: numbers made of positions, lengths and masks alone. Position 2049 isn't
  a float16, nor is a mask's lowest float32 number. Mask arithmetic stays as the exporter wrote
  it, to the bit, and so does what a row without keys yields;
* **scores**: whatever lies between the score product and the softmax, so that masks are
  added in float32. ONNX's Attention with a float mask is one node, and stays in float32 whole;
* **statistics**: what a mean or a sum goes through until it has met the data, and what is made
  only to be summed up. A normalisation that an exporter wrote as a dozen nodes stays whole;
* **tails**: an operation of a sensitive operator's result and constants, such as the scale of a
  normalisation, rounds once instead of twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from stof_onnx.precision.element_types import default_opset
from stof_onnx.precision.graph_view import GraphView
from stof_onnx.precision.support import unsupported
from stof_onnx.precision.target import Precision

Array = np.ndarray[Any, Any]
Reason = Literal["operator", "sensitive", "index arithmetic", "scores", "statistics", "tail"]

_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_REDUCTIONS = frozenset(
    {
        "CumSum",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    }
)
# BatchNormalization isn't among them: with constant statistics it is a scale and an offset.
_SENSITIVE = (
    _SOFTMAX
    | _REDUCTIONS
    | {
        "Cos",
        "EmbedLayerNormalization",
        "Exp",
        "GroupNorm",
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "Log",
        "LpNormalization",
        "MeanVarianceNormalization",
        "Pow",
        "RMSNormalization",
        "Reciprocal",
        "SimplifiedLayerNormalization",
        "Sin",
        "SkipGroupNorm",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "Softplus",
        "Sqrt",
        "Tan",
    }
)
_POINTWISE = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Identity",
        "IsNaN",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Sub",
        "Where",
    }
)
# Between a score product and a softmax there may also be a softcap, a sink and views.
_SCORE_PATH = _POINTWISE | {
    "Concat",
    "Dropout",
    "Expand",
    "Flatten",
    "ReduceMax",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tanh",
    "Transpose",
    "Unsqueeze",
}
# Which input of a whole attention is its mask or bias.
_FLOAT_MASKS = {
    ("", "Attention"): 3,
    ("com.microsoft", "Attention"): 5,
    ("com.microsoft", "GroupQueryAttention"): 10,
    ("com.microsoft", "MultiHeadAttention"): 5,
}
# A constant number this large is a mask's, not a weight.
_LARGEST_WEIGHT = 1e4


@dataclass(frozen=True)
class Selection:
    """The nodes that stay in float32.

    Attributes:
        kept: why, by position in the graph.
        overflowing: tensors of index arithmetic that may hold numbers outside the 16-bit type's
            range, as masks do, but no infinite ones.
    """

    kept: Mapping[int, Reason]
    overflowing: frozenset[str]


def select(model: ModelProto, precision: Precision) -> Selection:
    """Choose the nodes of a model that stay in float32.

    Args:
        model: a float32 model without functions, its Constant nodes turned into initializers.
        precision: what the others are lowered to.
    """
    view = GraphView(model)
    opset = default_opset(model)
    chosen = _Chosen(view, {})
    for number, node in enumerate(view.nodes):
        if not view.touches_float(node):
            continue
        if unsupported(node, opset, precision) is not None:
            chosen.kept[number] = "operator"
        elif node.op_type in _SENSITIVE:
            chosen.kept[number] = "sensitive"
        elif _mask(view, node) is not None:
            chosen.kept[number] = "scores"
    derived = _keep_index_arithmetic(chosen)
    _keep_scores(chosen)
    _keep_statistics(chosen)
    _keep_tails(chosen, derived)
    return Selection(chosen.kept, _overflowing(view, derived, precision))


def _mask(view: GraphView, node: NodeProto) -> str | None:
    """The float mask or bias that a whole attention adds, which it does in its inputs' type."""
    domain = node.domain if node.domain != "ai.onnx" else ""
    position = _FLOAT_MASKS.get((domain, node.op_type))
    if position is None or len(node.input) <= position or not view.is_float(node.input[position]):
        return None
    return node.input[position]


@dataclass
class _Chosen:
    view: GraphView
    kept: dict[int, Reason]

    def keep(self, number: int, reason: Reason) -> None:
        self.kept.setdefault(number, reason)


def _keep_index_arithmetic(chosen: _Chosen) -> set[str]:
    """Keep what is made of integers, booleans and small constants; returns its tensors."""
    view = chosen.view
    derived: set[str] = set()
    for number, node in enumerate(view.nodes):
        made, read = view.float_outputs(node), view.float_inputs(node)
        if not (made or read) or node.op_type == "DequantizeLinear":
            continue
        # Without a float result it may be the Cast of a rounded position back to an integer.
        if not derived.issuperset(read):
            continue
        if chosen.kept.get(number) == "operator" and node.op_type in ("If", "Loop", "Scan"):
            continue  # what a graph inside reads isn't known here
        if any(map(_is_learned, view.float_constants(node))):
            continue
        derived.update(made)
        chosen.keep(number, "index arithmetic")
    return derived


def _is_learned(tensor: TensorProto) -> bool:
    """Whether a constant looks like a weight: a matrix of many moderate numbers."""
    if sum(dim > 1 for dim in tensor.dims) < 2:
        return False
    values = numpy_helper.to_array(tensor)
    low, high = float(values.min()), float(values.max())
    if not (low > -_LARGEST_WEIGHT and high < _LARGEST_WEIGHT):
        return False  # NaN too
    return bool(((values != low) & (values != high)).any())


def _keep_scores(chosen: _Chosen) -> None:
    """Keep operations that only lead to a softmax, or to the mask of a whole attention."""
    view = chosen.view
    leading = {number for number, node in enumerate(view.nodes) if node.op_type in _SOFTMAX}
    masks = {number: mask for number, node in enumerate(view.nodes) if (mask := _mask(view, node))}
    for number in reversed(range(len(view.nodes))):
        node = view.nodes[number]
        if node.op_type not in _SCORE_PATH:
            continue
        readers = [(name, r) for name in view.float_outputs(node) for r in view.value_readers(name)]
        if readers and all(r in leading or masks.get(r) == name for name, r in readers):
            leading.add(number)
            chosen.keep(number, "scores")


def _keep_statistics(chosen: _Chosen) -> None:
    """Keep what meets a mean or a sum, and what is made only to be summed up."""
    view = chosen.view
    statistics: set[str] = set()
    for number, node in enumerate(view.nodes):
        made = view.float_outputs(node)
        if node.op_type in _REDUCTIONS:
            statistics.update(made)
            continue
        read = view.float_inputs(node)
        if not _is_arithmetic(node) or statistics.isdisjoint(read):
            continue
        chosen.keep(number, "statistics")
        if statistics.issuperset(read):
            statistics.update(made)
    for number, node in enumerate(view.nodes):
        readers = [r for name in view.float_outputs(node) for r in view.value_readers(name)]
        if node.op_type in _POINTWISE and readers and all(_sums(view, r) for r in readers):
            chosen.keep(number, "statistics")


def _is_arithmetic(node: NodeProto) -> bool:
    return node.op_type in _POINTWISE or node.op_type in ("Exp", "Log", "Pow", "Reciprocal", "Sqrt")


def _sums(view: GraphView, reader: int) -> bool:
    return reader >= 0 and view.nodes[reader].op_type in _REDUCTIONS


def _keep_tails(chosen: _Chosen, derived: set[str]) -> None:
    """Keep operations of one result in float32 and of constants."""
    view = chosen.view
    results: set[str] = set()
    for number, node in enumerate(view.nodes):
        made = view.float_outputs(node)
        read = [name for name in view.float_inputs(node) if name not in derived]
        if number not in chosen.kept:
            if node.op_type not in _POINTWISE or len(set(read)) != 1 or read[0] not in results:
                continue
            chosen.keep(number, "tail")
        if chosen.kept[number] != "operator":
            results.update(name for name in made if name not in derived)


def _overflowing(view: GraphView, derived: set[str], precision: Precision) -> frozenset[str]:
    """Tensors of index arithmetic with numbers that the 16-bit type lacks, all of them finite."""
    reach: dict[str, float] = {}
    for node in view.nodes:
        made = [name for name in node.output if name in derived]
        if made:
            sizes = [float(np.abs(a).max(initial=0.0)) for a in _arrays(view, node)]
            largest = max((*sizes, *(reach.get(name, 0.0) for name in node.input)), default=0.0)
            reach |= dict.fromkeys(made, largest)
    return frozenset(t for t, size in reach.items() if precision.largest < size < math.inf)


def _arrays(view: GraphView, node: NodeProto) -> Iterator[Array]:
    return (numpy_helper.to_array(tensor) for tensor in view.float_constants(node))
