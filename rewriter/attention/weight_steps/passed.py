"""Operators that leave the probabilities as they are: Cast, Identity, Dropout."""

from __future__ import annotations

from collections.abc import Sequence

from stof_onnx.rewriter.attention.weight_steps.step import WeightStep
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.symbolic import SymbolicGraph


def step(sym: SymbolicGraph, tensor: Tensor, users: Sequence[Node]) -> WeightStep | None:
    """Go on behind a single such user."""
    if len(users) == 1 and users[0].op in ("Cast", "Identity", "Dropout"):
        return WeightStep(users[0].outputs[0], (users[0],))
    return None
