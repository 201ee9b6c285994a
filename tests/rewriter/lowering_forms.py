"""Attention operators in all their forms: one record a form, built into a one-node model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.rewriter.graphs import TYPES

Dim = int | str
Sizes = Mapping[str, int]
Values = Callable[[np.random.Generator, list[int], Sizes], Any]
LOWEST = float(np.finfo(np.float32).min)
PRESENT = ("Y", "present_key", "present_value")


def normal(rng: np.random.Generator, shape: list[int], sizes: Sizes) -> Any:
    """Numbers around 0."""
    return rng.standard_normal(shape)


def zero_one(rng: np.random.Generator, shape: list[int], sizes: Sizes) -> Any:
    """Random 0 and 1, nothing but 0 for the first index, the last key of others kept."""
    values = rng.integers(0, 2, shape)
    values[..., -1] = 1
    values[0] = 0
    return values


def hidden_rows(fill: float, rows: int = 1) -> Values:
    """An additive mask whose first rows hide every key."""

    def values(rng: np.random.Generator, shape: list[int], sizes: Sizes) -> Any:
        found = np.where(rng.integers(0, 2, shape) == 0, fill, rng.standard_normal(shape))
        found[..., -1] = 0.5
        found[..., :rows, :] = fill
        return found

    return values


def lengths(low: int, high: str, minus: int = 0) -> Values:
    """Lengths from ``low`` to a size, the first the lowest, the last the size, less a number."""

    def values(rng: np.random.Generator, shape: list[int], sizes: Sizes) -> Any:
        found = rng.integers(low, sizes[high] + 1, shape)
        found.reshape(-1)[0] = low
        found.reshape(-1)[-1] = sizes[high]
        return found - minus

    return values


def full(high: str, minus: int = 0) -> Values:
    """A size, less a number, everywhere."""
    return lambda rng, shape, sizes: np.full(shape, sizes[high] - minus)


def cosines(rng: np.random.Generator, shape: list[int], sizes: Sizes) -> Any:
    """Numbers in [-1, 1]."""
    return np.cos(rng.uniform(0, 6, shape))


def some_positions(rng: np.random.Generator, shape: list[int], sizes: Sizes) -> Any:
    """Positions that count up from 3 in the first batch, random ones in others."""
    found = rng.integers(0, 16, shape)
    found[0] = 3 + np.arange(shape[-1])
    return found


@dataclass(frozen=True)
class In:
    """An input: its dimensions, type and values; ``fixed`` ones are initializers."""

    dims: tuple[Dim, ...]
    dtype: str = "float32"
    values: Values = normal
    fixed: bool = False


@dataclass(frozen=True)
class Form:
    """One form of an operator.

    Attributes:
        inputs: by name, in the operator's order; None where one is absent.
        attributes: of the node.
        outputs: names, "" for one that is absent.
        op: operator, with its domain before a "::".
        opset: of the model.
        sizes: values of the symbolic dimensions to compare at.
        oracle: what computes the original: ONNX Runtime or ONNX's reference.
        tolerance: relative L2 error of float32 outputs; larger where scores near -10000
            are rounded to thousandths.
    """

    inputs: Mapping[str, In | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ("Y",)
    op: str = "Attention"
    opset: int = 23
    sizes: Sequence[Sizes] = ()
    oracle: Literal["ort", "reference"] = "ort"
    tolerance: float = 1e-6


def build(form: Form) -> onnx.ModelProto:
    """A model of the one node; the dimensions of its outputs are declared as unrelated."""
    given = {name: entry for name, entry in form.inputs.items() if entry is not None}
    infos = [
        helper.make_tensor_value_info(name, TYPES[entry.dtype], list(entry.dims))
        for name, entry in given.items()
        if not entry.fixed
    ]
    rng = np.random.default_rng(5)
    initializers = [
        numpy_helper.from_array(
            np.asarray(entry.values(rng, [int(d) for d in entry.dims], {}), entry.dtype), name
        )
        for name, entry in given.items()
        if entry.fixed
    ]
    names = [name if entry is not None else "" for name, entry in form.inputs.items()]
    domain, _, op_type = form.op.rpartition("::")
    node = helper.make_node(
        op_type, names, list(form.outputs), name="attention", domain=domain, **form.attributes
    )
    first = next(iter(given.values()))
    ranks = {"Y": len(first.dims), "present": 5}
    outputs = [
        helper.make_tensor_value_info(
            name, TYPES[first.dtype], [f"{name}.{axis}" for axis in range(ranks.get(name, 4))]
        )
        for name in form.outputs
        if name
    ]
    graph = helper.make_graph([node], "graph", infos, outputs, initializers)
    opsets = [helper.make_opsetid("", form.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feeds(form: Form, sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs at given sizes."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, entry in form.inputs.items():
        if entry is None or entry.fixed:
            continue
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in entry.dims]
        result[name] = np.asarray(entry.values(rng, shape, sizes)).astype(entry.dtype)
    return result


def changed(form: Form, **changes: Any) -> Form:
    """The form with other inputs, attributes or outputs."""
    inputs = {**form.inputs, **changes.pop("inputs", {})}
    attributes = {**form.attributes, **changes.pop("attributes", {})}
    return replace(form, inputs=inputs, attributes=attributes, **changes)
