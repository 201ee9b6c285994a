"""Model-local functions: attention inside them is rewritten where they are called."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import inliner

# Operators without which a function holds no attention.
_TELLING = frozenset({"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"})


def with_functions_inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions written out if one of them may hold attention.

    Functions without attention stay as they are, and so does a model without functions.

    Args:
        model: not changed.
    """
    telling = {
        (function.domain, function.name)
        for function in model.functions
        if any(node.op_type in _TELLING for node in _every(function.node))
    }
    if not telling:
        return model
    # A function that calls such a one, directly or not, holds attention too.
    while True:
        more = {
            (function.domain, function.name)
            for function in model.functions
            if any((node.domain, node.op_type) in telling for node in _every(function.node))
        } - telling
        if not more:
            break
        telling |= more
    return inliner.inline_selected_functions(model, sorted(telling))


def _every(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """The nodes and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _every(attribute.g.node)
            for graph in attribute.graphs:
                yield from _every(graph.node)
