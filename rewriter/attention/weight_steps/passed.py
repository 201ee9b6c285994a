"""Operators that leave the probabilities as they are: Cast, Identity, Dropout."""

from __future__ import annotations

from collections.abc import Sequence

from stof_onnx.rewriter.attention.context import float_type
from stof_onnx.rewriter.attention.weight_steps.step import WeightContext, WeightStep
from stof_onnx.rewriter.graph import Node, Tensor
from stof_onnx.rewriter.symbolic.indexing import is_inference_dropout

_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


def step(context: WeightContext, tensor: Tensor, users: Sequence[Node]) -> WeightStep | None:
    """Go on behind a single such user; a Cast that widens is not passed."""
    if len(users) != 1 or any(output.outputs for output in users[0].outputs[1:]):
        return None
    (user,) = users
    if user.op == "Identity" or (user.op == "Dropout" and is_inference_dropout(user)):
        return WeightStep(user.outputs[0], (user,))
    if user.op == "Cast":
        source, target = float_type(user.inputs[0]), float_type(user.outputs[0])
        # Narrowed to value's type is how mixed precision ends; widened again it would
        # have lost bits on the way that the stof node keeps.
        if target in _BITS and _BITS[target] <= _BITS.get(source, 0):
            return WeightStep(user.outputs[0], (user,))
        return _there_and_back(user, source)
    return None


def _there_and_back(widened: Node, source: str) -> WeightStep | None:
    """A Cast to a wider type that is cast back at once changes nothing."""
    users = widened.outputs[0].outputs
    if len(users) != 1 or users[0].op != "Cast" or source not in _BITS:
        return None
    back = users[0]
    if float_type(widened.outputs[0]) != "float32" or float_type(back.outputs[0]) != source:
        return None
    return WeightStep(back.outputs[0], (widened, back))
