"""Rewriting a graph, running it in ONNX Runtime without optimisations, and comparing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from stof_onnx.expansion import expand_model
from stof_onnx.ir.operators.masked_attention import OP_TYPE
from stof_onnx.rewriter.rewrite import (
    INTERNAL_ERROR,
    FusedBlock,
    RefusedBlock,
    Rewrite,
    rewrite,
)
from tests.rewriter.graphs import Attention, Graph, Input, build

Feeds = dict[str, np.ndarray]
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 5e-3}
PADDINGS = ("none", "right", "left", "empty")


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs. Without optimisations, so that no fusion makes two models one."""
    return session(model).run(None, dict(feeds))


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session that computes the graph as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def fused(model: onnx.ModelProto) -> tuple[FusedBlock, ...]:
    """The fused blocks of a model in which none is refused."""
    blocks = rewrite(model).blocks
    refused = [block.reason for block in blocks if isinstance(block, RefusedBlock)]
    assert not refused, refused
    return tuple(block for block in blocks if isinstance(block, FusedBlock))


def refusals(model: onnx.ModelProto) -> list[str]:
    """The reasons of the refused blocks of a model in which none is fused."""
    done = rewrite(model)
    assert all(isinstance(block, RefusedBlock) for block in done.blocks), done.blocks
    assert not any(node.op_type == OP_TYPE for node in done.model.graph.node)
    reasons = [block.reason for block in done.blocks if isinstance(block, RefusedBlock)]
    assert not any(INTERNAL_ERROR in reason for reason in reasons), reasons
    return reasons


def check_attention(attention: Attention, *, sizes: Sequence[Mapping[str, int]] = ()) -> FusedBlock:
    """Fuse the one block of a graph and compare expanded and original; returns the block."""
    graph = build(attention)
    done = check_graph(graph, TOLERANCE[attention.dtype], sizes)
    assert len(done.blocks) == 1
    (block,) = done.blocks
    assert isinstance(block, FusedBlock), block.reason
    return block


DEFAULT_SIZES: tuple[Mapping[str, int], ...] = (
    {"batch": 2, "sequence": 7, "memory": 5, "past": 3, "total": 10},
    {"batch": 1, "sequence": 3, "memory": 12, "past": 1, "total": 4},
)


def check_graph(
    graph: Graph,
    tolerance: float,
    sizes: Sequence[Mapping[str, int]] = (),
    *,
    mask_tables: bool = False,
) -> Rewrite:
    """Rewrite, and compare expanded and original at every size with every padding."""
    model = graph.model()
    before = model.SerializeToString()
    done = rewrite(model, mask_tables=mask_tables)
    assert model.SerializeToString() == before, "rewrite changed its input"
    expanded = expand_model(done.model)
    onnx.checker.check_model(expanded, full_check=True)
    if done.model is model:
        return done
    left, right = session(model), session(expanded)
    for size in sizes or DEFAULT_SIZES:
        for feeds in feeds_of(graph.inputs.values(), size):
            assert_close(left.run(None, feeds), right.run(None, feeds), tolerance)
    return done


def feeds_of(inputs: Any, sizes: Mapping[str, int]) -> Iterator[Feeds]:
    """Inputs at one size: each kind of padding where there is a padding input."""
    inputs = list(inputs)
    padded = any(entry.holds == "padding" for entry in inputs)
    for padding in PADDINGS if padded else PADDINGS[:1]:
        rng = np.random.default_rng(len(padding))
        yield {entry.name: _values(entry, sizes, padding, rng) for entry in inputs}


def _values(
    entry: Input, sizes: Mapping[str, int], padding: str, rng: np.random.Generator
) -> np.ndarray:
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in entry.dims]
    if entry.holds == "padding":
        return padding_values(shape, padding).astype(entry.dtype)
    if entry.holds == "ids":
        return np.sort(rng.integers(0, 3, shape), axis=-1).astype(entry.dtype)
    return rng.standard_normal(shape).astype(entry.dtype)


def padding_values(shape: Sequence[int], padding: str) -> np.ndarray:
    """0/1 over the last axis; row b of the first axis is b + 1 shorter.

    "empty": the first row has no key at all.
    """
    length = shape[-1]
    keep = np.ones(shape, np.int64)
    for b in range(shape[0]):
        short = min(b + 1, length - 1)
        if padding == "right":
            keep[b, ..., length - short :] = 0
        if padding == "left":
            keep[b, ..., :short] = 0
    if padding == "empty":
        keep[0] = 0
    return keep


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """|actual - expected| / |expected| over the finite elements.

    Outputs are averages of values around 1. Where they happen to cancel, the error is
    taken relative to 0.1, not to what is left.
    """
    finite = np.isfinite(expected)
    left, right = (x[finite].astype(np.float64) for x in (actual, expected))
    norm = max(np.linalg.norm(right), 0.1 * right.size**0.5, 1e-30)
    return float(np.linalg.norm(left - right) / norm)


def assert_close(
    expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], tolerance: float
) -> None:
    """Same shapes and types, NaN in the same places, everything else close."""
    assert len(expected) == len(actual)
    for left, right in zip(expected, actual, strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        np.testing.assert_array_equal(np.isnan(right), np.isnan(left))
        np.testing.assert_array_equal(np.isinf(right), np.isinf(left))
        assert relative_l2(right, left) <= tolerance
