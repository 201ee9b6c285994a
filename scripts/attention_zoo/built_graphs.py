"""ONNX graphs made node by node, and the numpy attention that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from attention_zoo.checks import open_session
from attention_zoo.model import HEAD_DIM, HIDDEN

Array = np.ndarray
Feeds = dict[str, Array]
# Batch and sequence of each check.
SIZES = ((2, 20), (3, 33), (1, 7))


class Graph:
    """A graph under construction; weights are random with a fixed seed."""

    def __init__(self, opset: int, *, dtype: str = "float32") -> None:
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.declared: list[onnx.ValueInfoProto] = []
        self.generator = np.random.default_rng(0)
        self._count = 0

    def input(self, name: str, element: int, shape: Sequence[Any]) -> str:
        """Declare a graph input; dimensions are sizes or names."""
        self.inputs.append(helper.make_tensor_value_info(name, element, list(shape)))
        return name

    def output(self, name: str, source: str, element: int, shape: Sequence[Any]) -> None:
        """Declare a graph output that is a copy of ``source``."""
        self.nodes.append(helper.make_node("Identity", [source], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, element, list(shape)))

    def declare(self, name: str, element: int, shape: Sequence[Any]) -> None:
        """Say the type of an inner tensor."""
        self.declared.append(helper.make_tensor_value_info(name, element, list(shape)))

    @property
    def float_type(self) -> int:
        """The ONNX type of weights and activations."""
        return TensorProto.FLOAT16 if self.dtype == np.float16 else TensorProto.FLOAT

    def constant(self, values: Array | Sequence[int] | int) -> str:
        """Add an initializer; sequences of ints become int64."""
        array = values if isinstance(values, np.ndarray) else np.array(values, np.int64)
        name = self._name("constant")
        self.weights[name] = array
        return name

    def normal(self, *shape: int, deviation: float = 1.0) -> str:
        """Add an initializer of normal numbers."""
        numbers = self.generator.standard_normal(shape) * deviation
        return self.constant(numbers.astype(self.dtype))

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        return self.op_outputs(op_type, 1, *inputs, domain=domain, **attributes)[0]

    def op_outputs(
        self, op_type: str, count: int, *inputs: str, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with ``count`` outputs."""
        names = [self._name(op_type.lower()) for _ in range(count)]
        self.nodes.append(
            helper.make_node(op_type, inputs, names, names[0], domain=domain, **attributes)
        )
        return names

    def linear(self, rows: str, width: int, *, of: int = HIDDEN) -> str:
        """Add MatMul and Add from ``of`` to ``width`` features."""
        product = self.op("MatMul", rows, self.normal(of, width, deviation=1.6 / of**0.5))
        return self.op("Add", product, self.normal(width, deviation=0.1))

    def heads(self, rows: str, heads: int, head_dim: int = HEAD_DIM) -> str:
        """[B, S, H*D] -> [B, H, S, D]."""
        split = self.op("Reshape", rows, self.constant([0, 0, heads, head_dim]))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def joined(self, context_BHSD: str, width: int) -> str:
        """[B, H, S, D] -> [B, S, H*D]."""
        rows = self.op("Transpose", context_BHSD, perm=[0, 2, 1, 3])
        return self.op("Reshape", rows, self.constant([0, 0, width]))

    def model(self) -> onnx.ModelProto:
        """Return the finished model."""
        domains = {node.domain for node in self.nodes} - {""}
        return helper.make_model(
            helper.make_graph(
                self.nodes,
                "main",
                self.inputs,
                self.outputs,
                [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
                value_info=self.declared,
            ),
            opset_imports=[
                helper.make_opsetid("", self.opset),
                *(helper.make_opsetid(domain, 1) for domain in sorted(domains)),
            ],
            ir_version=10 if self.opset < 24 else 11,
            producer_name="attention_zoo",
        )

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def run(model: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
    """Run a model in ONNX Runtime and return its outputs by name."""
    session: onnxruntime.InferenceSession = open_session(model)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def softmax(scores: Array) -> Array:
    """Softmax over the last axis; a row of -inf yields 0."""
    highest = scores.max(axis=-1, keepdims=True)
    numbers = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    total = numbers.sum(axis=-1, keepdims=True)
    return np.divide(numbers, total, out=np.zeros_like(numbers), where=total > 0)


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    keep: Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
) -> Array:
    """Return the context of BHSD heads, float64.

    Args:
        query: [B, H, Sq, D].
        key: [B, Hkv, Sk, D].
        value: [B, Hkv, Sk, Dv].
        keep: bool, broadcastable to [B, H, Sq, Sk].
        bias: added to the scores.
        scale: of the scores, by default D ** -0.5.
        softcap: scores become ``softcap * tanh(scores / softcap)`` before the mask.
        sinks: [H], one more score per row whose value is 0.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (np.repeat(heads.astype(np.float64), groups, axis=1) for heads in (key, value))
    scores = query.astype(np.float64) @ key.swapaxes(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if keep is not None:
        scores = np.where(keep, scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks[None, :, None, None], (*scores.shape[:3], 1))
        scores = np.concatenate([scores, column], axis=-1)
    weights = softmax(scores)
    if sinks is not None:
        weights = weights[..., :-1]
    context: Array = weights @ value
    return context


def causal_keep(queries: int, keys: int, past: int = 0) -> Array:
    """Keys up to the query's position, bool [queries, keys]."""
    return np.arange(keys)[None, :] <= np.arange(queries)[:, None] + past


def heads_of(rows: Array, heads: int) -> Array:
    """[B, S, H*D] -> [B, H, S, D]."""
    return rows.reshape(*rows.shape[:2], heads, -1).swapaxes(1, 2)


def rows_of(heads_BHSD: Array) -> Array:
    """[B, H, S, D] -> [B, S, H*D]."""
    batch, _, length, _ = heads_BHSD.shape
    return heads_BHSD.swapaxes(1, 2).reshape(batch, length, -1)


def rotated(heads_BHSD: Array, cosine: Array, sine: Array, *, interleaved: bool = False) -> Array:
    """Rotary embedding of the first 2 * R features; cosine and sine are [.., S, R]."""
    half = cosine.shape[-1]
    turned, rest = heads_BHSD[..., : 2 * half], heads_BHSD[..., 2 * half :]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    parts = (first * cosine - second * sine, second * cosine + first * sine)
    if interleaved:
        return np.concatenate([np.stack(parts, -1).reshape(turned.shape), rest], -1)
    return np.concatenate([*parts, rest], -1)


def rotary_tables(positions: int, half: int) -> tuple[Array, Array]:
    """Cosine and sine, each float32 [positions, half]."""
    angle = np.arange(positions)[:, None] * 100.0 ** (-np.arange(half) / half)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def padding_keep(batch: int, length: int) -> Array:
    """Int64 [batch, length], 1 where kept; each row is shorter than the one before."""
    kept = length - np.arange(batch)[:, None] * length // (batch + 1)
    return (np.arange(length)[None] < kept).astype(np.int64)


def compare(
    name: str,
    model: onnx.ModelProto,
    make_feeds: Callable[[int, int], Feeds],
    expected: Callable[[Feeds], dict[str, Array]],
    tolerance: float,
) -> onnx.ModelProto:
    """Return ``model`` after comparing ONNX Runtime with numpy at all sizes.

    Raises:
        ValueError: an output differs by more than ``tolerance``, relative to outputs above 1. NaN
            in ``expected`` stands for numbers that nobody reads.
    """
    for batch, sequence in SIZES:
        feeds = make_feeds(batch, sequence)
        results = run(model, feeds)
        for output, want in expected(feeds).items():
            got = results[output].astype(np.float64)
            if got.shape != want.shape:
                raise ValueError(f"{name}: {output} is {got.shape}, expected {want.shape}")
            read = ~np.isnan(want)
            error = np.abs(got - want)[read].max() / max(1.0, np.abs(want[read]).max())
            # Written so that NaN fails, too.
            if not error <= tolerance:
                raise ValueError(f"{name} at {(batch, sequence)}: {output} is off by {error:.2e}")
    return model
