"""Steps between the product of query and key and the Softmax, walked upwards.

Each file knows one operator pattern and offers ``step(context, node) -> Tensor | None``:
it records what the node does in the chain, moves ``context.index`` to the tensor it goes
on with, and returns that tensor; None if the node isn't its business. Supporting another
exporter's variation costs one file and one line in :data:`SCORE_STEPS`.
"""

from __future__ import annotations

from collections.abc import Callable

from stof_onnx.rewriter.attention.context import ChainContext
from stof_onnx.rewriter.attention.score_steps import (
    add_mask,
    cast,
    floor,
    max_shift,
    scale,
    softcap,
    subtract_mask,
    view,
    where_mask,
)
from stof_onnx.rewriter.graph import Node, Tensor

SCORE_STEPS: tuple[Callable[[ChainContext, Node], Tensor | None], ...] = (
    cast.step,
    view.step,
    scale.step,
    softcap.step,
    max_shift.step,
    subtract_mask.step,
    floor.step,
    add_mask.step,
    where_mask.step,
)
