"""Write shape arguments that are known numbers as constants.

TorchScript computes slice bounds and target shapes from Shape nodes even where every
number is fixed. Such a Shape reads a tensor that fusion would otherwise remove:

    Slice(X, 0, Div(Gather(Shape(X), 3), 2), ...)   ->   Slice(X, 0, 16, ...)
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.rewriter.graph import ImportedGraph, Node
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


def fold_known_shapes(imported: ImportedGraph, sym: SymbolicGraph) -> int:
    """Replace each known argument.

    Needs: ``sym`` made of this graph. Ensures: values are unchanged; nodes without users
    are left to the graph's clean-up.

    Returns:
        How many arguments became constants.
    """
    folded = 0
    for node in imported.graph.nodes:
        for position in _ARGUMENTS.get(node.op, ()):
            folded += _fold(imported, sym, node, position)
    return folded


def _fold(imported: ImportedGraph, sym: SymbolicGraph, node: Node, position: int) -> int:
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
    dtype = np.int64 if tensor.dtype is None else tensor.dtype
    name = imported.fresh(f"stof/{tensor.name}/known")
    node.inputs[position] = gs.Constant(name, np.asarray(values, dtype))
    return 1
