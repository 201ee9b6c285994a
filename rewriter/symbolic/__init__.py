"""A graph read as index arithmetic.

For any tensor, :class:`SymbolicGraph` says which element of which source tensor (or
which arithmetic on indices) an element is. Head splitting, grouped heads, masks built
from comparisons and shape computations are all read through this one mechanism.
"""

from stof_onnx.rewriter.symbolic.graph import SymbolicGraph
from stof_onnx.rewriter.symbolic.registry import Unliftable

__all__ = ["SymbolicGraph", "Unliftable"]
