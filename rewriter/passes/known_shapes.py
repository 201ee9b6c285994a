"""Write shape arguments that are known numbers as constants.

TorchScript computes slice bounds and target shapes from Shape nodes even where every
number is fixed. Such a Shape reads a tensor that fusion would otherwise remove:

    Slice(X, 0, Div(Gather(Shape(X), 3), 2), ...)   ->   Slice(X, 0, 16, ...)
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.rewriter.graph import Node
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

# Inputs that are shapes, bounds, axes or sizes, by operator.
_ARGUMENTS = {
    "Slice": (1, 2, 3, 4),
    "Reshape": (1,),
    "Expand": (1,),
    "Unsqueeze": (1,),
    "Squeeze": (1,),
    "Split": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
}


def fold_known_shapes(graph: gs.Graph, sym: SymbolicGraph) -> int:
    """Replace each known argument.

    Needs: ``sym`` made of this graph. Ensures: values are unchanged; nodes without users
    are left to the graph's clean-up.

    Returns:
        How many arguments became constants.
    """
    folded = 0
    for node in graph.nodes:
        for position in _ARGUMENTS.get(node.op, ()):
            folded += _fold(sym, node, position)
    return folded


def _fold(sym: SymbolicGraph, node: Node, position: int) -> int:
    if position >= len(node.inputs):
        return 0
    tensor = node.inputs[position]
    if isinstance(tensor, gs.Constant) or tensor.is_empty() or not tensor.inputs:
        return 0
    try:
        values = sym.integers(tensor)
        rank = len(sym.shape(tensor))
    except Unliftable:
        return 0
    if rank != 1:
        return 0
    # A Shape attribute or slice bound beyond INT64 never gets here: it is a constant already.
    node.inputs[position] = gs.Constant(
        f"{node.name or node.op}/{tensor.name}/known", np.asarray(values, np.int64)
    )
    return 1
