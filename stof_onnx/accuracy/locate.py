"""Which stof node a failing model goes wrong at.

A rewrite keeps the name of the tensor that its node produces, so the tensor exists in
the original and in the expanded model. Made an output of both, it can be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from onnx import ModelProto, NodeProto, ValueInfoProto

from stof_onnx.accuracy.inputs import Feed
from stof_onnx.accuracy.result import Departure
from stof_onnx.accuracy.session import Arrays, RefusedError, open_session
from stof_onnx.accuracy.tolerance import Rules, judge

STOF_DOMAIN = "stof"


def first_departure(
    original: ModelProto, optimized: ModelProto, expanded: ModelProto, feed: Feed, rules: Rules
) -> Departure | None:
    """Find the first stof node whose output isn't the original's.

    Args:
        original: the original model.
        optimized: the model with stof nodes.
        expanded: the same with every stof node expanded.
        feed: inputs that showed a difference.
        rules: which difference counts.

    Returns:
        The node, in the graph's order; None if every stof node agrees, or if no tensor
        of theirs exists in both models.
    """
    shared = _tensor_names(original) & _tensor_names(expanded)
    produced = [
        (node, name)
        for node in optimized.graph.node
        if node.domain == STOF_DOMAIN
        for name in node.output
        if name in shared
    ]
    if not produced:
        return None
    names = [name for _, name in produced]
    try:
        expected = _run(original, names, feed)
        actual = _run(expanded, names, feed)
    except RefusedError:
        # A tensor that ONNX Runtime can't hand out: the verdict stands without a place.
        return None

    def rerun() -> Arrays:
        try:
            return _run(original, names, feed, optimize=False)
        except RefusedError:
            return expected

    for node, name in produced:
        result = judge(name, expected[name], actual[name], rules, rerun)
        if not result.passed:
            return Departure(
                _label(node), node.op_type, name, feed.name, result.max_abs, result.rel_l2
            )
    return None


def _label(node: NodeProto) -> str:
    return node.name or node.output[0]


def _tensor_names(model: ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output if name}


def _run(model: ModelProto, names: Sequence[str], feed: Feed, *, optimize: bool = True) -> Arrays:
    with _with_outputs(model, names), open_session(model, "locate", optimize=optimize) as session:
        return session.run(feed.arrays)


@contextlib.contextmanager
def _with_outputs(model: ModelProto, names: Sequence[str]) -> Iterator[None]:
    """Make tensors outputs of ``model`` for a while; in place, since models may be huge."""
    outputs = model.graph.output
    before = len(outputs)
    present = {value.name for value in outputs}
    # ONNX Runtime infers the types.
    outputs.extend(ValueInfoProto(name=name) for name in names if name not in present)
    try:
        yield
    finally:
        del outputs[before:]
