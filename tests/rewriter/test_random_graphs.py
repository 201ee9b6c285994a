"""Random attention graphs: each is refused with a reason, or computes what it did before.

300 graphs in every run, 5,000 with ``-m slow``; ``STOF_RANDOM_GRAPHS`` sets another number for
both. What ever went wrong stays in ``regressions/``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from stof_onnx.expansion import expand_model
from stof_onnx.ir.operators.masked_attention import OP_TYPE
from stof_onnx.rewriter.rewrite import INTERNAL_ERROR, RefusedBlock, rewrite
from tests.rewriter.graphs import TYPES, Input
from tests.rewriter.random_graphs import LENGTHS, RandomGraph, random_graph, sizes_of
from tests.rewriter.running import Feeds, assert_close, feeds_of, session

REGRESSIONS = Path(__file__).parent / "regressions"
FEW = int(os.environ.get("STOF_RANDOM_GRAPHS", "300"))
MANY = int(os.environ.get("STOF_RANDOM_GRAPHS", "5000"))
_NAMES = {number: name for name, number in TYPES.items()}


@st.composite
def graphs(draw: st.DrawFn) -> RandomGraph:
    """Any graph that the generator writes."""
    return random_graph(lambda options: draw(st.integers(0, options - 1)))


def check(model: onnx.ModelProto, feeds: Iterator[Feeds], tolerance: float) -> str:
    """Refused with the name of a node, or equal; says which."""
    before = model.SerializeToString()
    done = rewrite(model)
    assert model.SerializeToString() == before, "rewrite changed its input"
    for block in done.blocks:
        if isinstance(block, RefusedBlock):
            assert INTERNAL_ERROR not in block.reason
            assert any(repr(node.name) in block.reason for node in model.graph.node), block.reason
    if done.model is model:
        return "refused"
    assert any(node.op_type == OP_TYPE for node in done.model.graph.node)
    expanded = expand_model(done.model)
    onnx.checker.check_model(expanded, full_check=True)
    left, right = session(model), session(expanded)
    for values in feeds:
        assert_close(left.run(None, values), right.run(None, values), tolerance)
    return "fused"


def check_random(found: RandomGraph) -> None:
    feeds = (
        feeds for sizes in found.sizes for feeds in feeds_of(found.graph.inputs.values(), sizes)
    )
    outcome = check(found.model, feeds, found.tolerance)
    event(outcome if not found.decoys else f"disturbed, {outcome}")


COMMON = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    # Explaining a failure takes minutes; shrinking it is what helps.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)


@settings(COMMON, max_examples=FEW, derandomize=True)
@given(graphs())
def test_random_graphs_are_refused_or_unchanged_in_value(found):
    check_random(found)


@pytest.mark.slow
@settings(COMMON, max_examples=MANY)
@given(graphs())
def test_many_random_graphs_are_refused_or_unchanged_in_value(found):
    check_random(found)


# ------------------------------------------------------------------------------------ regressions


def regression_inputs(model: onnx.ModelProto) -> list[Input]:
    """The inputs of a saved graph, and what they hold by their names."""
    inputs = []
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        holds = "normal"
        if tensor.elem_type in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
            masks = value.name.startswith(("padding", "dense"))
            holds = "padding" if masks else "ids"
        inputs.append(Input(value.name, dims, _NAMES[tensor.elem_type], holds))
    return inputs


def regression_feeds(model: onnx.ModelProto) -> Iterator[Feeds]:
    for lengths in LENGTHS:
        yield from feeds_of(regression_inputs(model), sizes_of(*lengths))


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.onnx")), ids=lambda path: path.stem)
def test_what_went_wrong_once_is_refused_or_unchanged_in_value(path):
    model = onnx.load(path)
    is_half = any(i.type.tensor_type.elem_type == TensorProto.FLOAT16 for i in model.graph.input)
    check(model, regression_feeds(model), 2e-2 if is_half else 2e-5)


def test_every_regression_is_described():
    described = (REGRESSIONS / "README.md").read_text()
    assert [p.name for p in sorted(REGRESSIONS.glob("*.onnx")) if p.name not in described] == []


# ---------------------------------------------------------------------------------- the generator


class Script:
    """Decisions from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, options: int) -> int:
        return int(self.rng.integers(options))


def test_the_generator_writes_valid_models_of_every_kind():
    """ONNX Runtime accepts what is written; disturbances and plain graphs both occur."""
    found = [random_graph(Script(seed)) for seed in range(40)]
    for graph in found:
        session(graph.model)
    made = {name.partition("=")[0] for graph in found for name in graph.made}
    assert any(graph.decoys for graph in found)
    assert any(not graph.decoys for graph in found)
    assert {"product", "mask", "additive", "packing", "reshape", "output", "bias"} <= made


def counted(seeds: range) -> Mapping[str, int]:
    """Blocks of undisturbed graphs: how many, and how many are fused."""
    blocks = fused = 0
    for seed in seeds:
        graph = random_graph(Script(seed))
        if not graph.decoys:
            done = rewrite(graph.model)
            blocks += len(done.blocks)
            fused += sum(not isinstance(block, RefusedBlock) for block in done.blocks)
    return {"blocks": blocks, "fused": fused}


def test_most_of_the_attention_among_random_graphs_is_fused():
    """A reader that refuses everything is never wrong."""
    count = counted(range(100, 160))
    assert count["fused"] >= 0.6 * count["blocks"] > 20
