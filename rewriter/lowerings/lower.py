"""The registry of attention operators, and putting a sub-graph in an operator's place.

Supporting another operator costs one file with ``lower(g: SubGraph) -> Node`` (builds the
sub-graph, returns its Softmax, raises NotLowered) and one line in :data:`LOWERINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stof_onnx.rewriter.graph import ImportedGraph, Node, node_name
from stof_onnx.rewriter.lowerings import (
    attention,
    ms_attention,
    ms_group_query_attention,
    ms_multi_head_attention,
    shapes,  # noqa: F401 - registers shape rules
)
from stof_onnx.rewriter.lowerings.subgraph import NotLowered, Shared, SubGraph
from stof_onnx.rewriter.symbolic import SymbolicGraph

LOWERINGS: dict[str, Callable[[SubGraph], Node]] = {
    "Attention": attention.lower,
    "com.microsoft::Attention": ms_attention.lower,
    "com.microsoft::MultiHeadAttention": ms_multi_head_attention.lower,
    "com.microsoft::GroupQueryAttention": ms_group_query_attention.lower,
}

# Attention operators that no file knows; they are refused by name.
UNKNOWN = frozenset(
    f"com.microsoft::{name}"
    for name in (
        "DecoderAttention",
        "DecoderMaskedMultiHeadAttention",
        "DecoderMaskedSelfAttention",
        "LongformerAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "PagedAttention",
        "QAttention",
        "QOrderedAttention",
        "SparseAttention",
    )
)


@dataclass(frozen=True)
class Lowered:
    """A sub-graph in the place of an attention operator.

    Attributes:
        softmax: the sub-graph's Softmax, to be matched.
        nodes: the sub-graph; some may be shared with that of another operator.
    """

    softmax: Node
    nodes: tuple[Node, ...]
    _sub_graph: SubGraph

    @property
    def node(self) -> Node:
        """The operator, which is out of the graph."""
        return self._sub_graph.node

    @property
    def name(self) -> str:
        """Name of the operator, or of its first output."""
        return self._sub_graph.name

    def undo(self) -> None:
        """Put the operator back and remove what nothing else uses of the sub-graph.

        To be called once, and only for a block that was not fused: a stof node makes the
        operator's output otherwise.
        """
        nodes = self._sub_graph.imported.graph.nodes
        nodes.insert(_position(nodes, self.softmax), self.node)
        gone = self._sub_graph.restore()
        nodes[:] = [node for node in nodes if id(node) not in gone]


def lower_all(
    imported: ImportedGraph, sym: SymbolicGraph
) -> tuple[list[Lowered], list[NotLowered]]:
    """Lower every attention operator of a graph.

    Needs: the graph in topological order, ``sym`` made of it. Ensures: the same order,
    values unchanged. ``sym`` knows nothing of the new nodes: make a new one.

    Returns:
        The sub-graphs, and the refusals of operators that stay, both in graph order.
    """
    shared = Shared()
    lowered: list[Lowered] = []
    refused: list[NotLowered] = []
    for node in list(imported.graph.nodes):
        if node.op in UNKNOWN:
            refused.append(NotLowered(node, node_name(node), "this operator is not read"))
        if node.op not in LOWERINGS:
            continue
        try:
            lowered.append(_lower(SubGraph(imported, sym, node, shared)))
        except NotLowered as refusal:
            refused.append(refusal)
    return lowered, refused


def lower(imported: ImportedGraph, sym: SymbolicGraph, node: Node) -> Lowered:
    """Lower one operator, sharing nothing with others.

    Raises:
        NotLowered: naming the node and the reason; the graph is unchanged.
    """
    return _lower(SubGraph(imported, sym, node, Shared()))


def _lower(sub_graph: SubGraph) -> Lowered:
    node, nodes = sub_graph.node, sub_graph.imported.graph.nodes
    sub_graph.detach()
    try:
        softmax = LOWERINGS[node.op](sub_graph)
    except NotLowered:
        sub_graph.restore()
        raise
    position = _position(nodes, node)
    present = {id(other) for other in nodes}
    nodes[position : position + 1] = [n for n in sub_graph.nodes if id(n) not in present]
    return Lowered(softmax, tuple(sub_graph.nodes), sub_graph)


def _position(nodes: Sequence[Node], wanted: Node) -> int:
    """Index by identity: graphsurgeon compares nodes by what is in them."""
    return next(i for i, node in enumerate(nodes) if node is wanted)
