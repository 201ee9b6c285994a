"""Model-local functions: attention inside them is rewritten where they are called."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import inliner

from stof_onnx.ir.errors import InputError

# Operators without which a function holds no attention.
_TELLING = frozenset({"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"})


def with_functions_inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions written out if one of them may hold attention.

    Functions without attention stay as they are, and so does a model without functions.

    Args:
        model: not changed.

    Raises:
        InputError: a function that may hold attention has another opset than the model.
    """
    telling = _with_callers(
        model,
        {
            (function.domain, function.name)
            for function in model.functions
            if any(node.op_type in _TELLING for node in _every(function.node))
        },
    )
    if not telling:
        return model
    # The inliner refuses a model for the opset of functions that it isn't to touch.
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.functions[:]
    part.functions.extend(f for f in model.functions if (f.domain, f.name) in telling)
    try:
        inlined = inliner.inline_selected_functions(part, sorted(telling))
    except RuntimeError as error:
        raise InputError(
            f"attention is in model-local functions that can't be inlined: {error}",
            "functions of the model's own opset",
            "inline them with onnx.inliner.inline_local_functions(model, convert_version=True)",
        ) from error
    inlined.functions.extend(f for f in model.functions if (f.domain, f.name) not in telling)
    return inlined


def _with_callers(model: onnx.ModelProto, found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """A function that calls one of these, directly or not, holds attention too."""
    while found:
        more = {
            (function.domain, function.name)
            for function in model.functions
            if any((node.domain, node.op_type) in found for node in _every(function.node))
        } - found
        if not more:
            break
        found = found | more
    return found


def _every(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """The nodes and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _every(attribute.g.node)
            for graph in attribute.graphs:
                yield from _every(graph.node)
