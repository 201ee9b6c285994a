"""What the matcher finds: one attention block, and why another one isn't."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stof_onnx.ir.expr import Expr
from stof_onnx.ir.operators.masked_attention import Layout, TensorLayout
from stof_onnx.rewriter.graph import Node, Tensor, node_name
from stof_onnx.rewriter.symbolic.registry import Index


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """A block is left as it is; the message names the node and the reason.

    Attributes:
        progress: how many nodes had been read when it turned out.
        read: what had been read until then, for ``inspect -v``.
    """

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"{node.op} {node_name(node)!r}: {reason}")
        self.progress = 0
        self.read: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskStage:
    """One place where the graph masks or biases the scores.

    Attributes:
        node: the Add or Where.
        mode: "add" (scores + tensor), "keep" (scores where the tensor is true, else
            fill), "drop" (fill where the tensor is true) or "floor" (the larger of score
            and fill).
        tensor: the mask or bias; broadcasts to the scores.
        index: of the mask's element that meets score (b, h, q, k).
        fill: what "keep" and "drop" write.
        factor: of the scores between this stage and the Softmax; it multiplies the mask too.
        is_shifted: whether the row's maximum is subtracted from the scores before this stage.
    """

    node: Node
    mode: Literal["add", "keep", "drop", "floor"]
    tensor: Tensor
    index: Index = ()
    fill: float = 0.0
    factor: float = 1.0
    is_shifted: bool = False

    @property
    def written(self) -> float:
        """The fill as the Softmax sees it, in float32."""
        with np.errstate(over="ignore"):
            return float(np.float32(self.fill) * np.float32(self.factor))


@dataclass
class ScoreChain:
    """What lies between the product of query and key and the Softmax.

    Attributes:
        scale: product of the scalar factors found so far.
        softcap: c of ``c * tanh(s / c)``; 0 if there is none.
        stages: masks in the order in which the graph applies them.
        score_dtype: float type in which the masks meet the scores; "" before the first.
        nodes: the nodes walked through.
        assumptions: equalities of dimensions that the reading relies on.
        equal: the same as expressions: what a dimension of a name of its own is taken to be.
    """

    scale: float = 1.0
    softcap: float = 0.0
    stages: list[MaskStage] = field(default_factory=list)
    score_dtype: str = ""
    nodes: list[Node] = field(default_factory=list)
    assumptions: dict[str, None] = field(default_factory=dict)
    equal: dict[str, Expr] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrangement:
    """How a tensor that can't be read in place becomes [B, heads, S, D]: Transpose, then Reshape.

    Attributes:
        perm: puts the axes in the order batch, head (one or more each), token, channel.
        heads: to reshape to; None where the axes are batch and head already.
    """

    perm: tuple[int, ...]
    heads: int | None


@dataclass(frozen=True)
class OperandRead:
    """A query, key or value.

    Attributes:
        tensor: what is read.
        layout: of the tensor, or of what it becomes by ``arrangement``.
        heads: it holds.
        scale: factor between it and the product.
        arrangement: None if the tensor is read in place.
        is_widened: whether it is cast to float32, the type of the block's output.
    """

    tensor: Tensor
    layout: TensorLayout
    heads: int
    scale: float
    arrangement: Arrangement | None = None
    is_widened: bool = False


@dataclass(frozen=True)
class SinkRead:
    """Attention sinks: a logit for each query head that joins the softmax without a key.

    Attributes:
        tensor: that holds them.
        index: of the logit of head h in it.
    """

    tensor: Tensor
    index: Index


@dataclass(frozen=True)
class OutputWrite:
    """The tensor a block replaces.

    Attributes:
        tensor: the tensor.
        layout: "BSHD" where the heads were moved back, else "BHSD".
        rank: 3 for [B, Sq, H*D], 4 for [B, Sq, H, D] and [B, H, Sq, D].
        nodes: nodes between the product with value and the tensor.
        lead: where the tensor is [*lead, Sq, D] and must be made from [B, H, Sq, D] by a
            Reshape: its leading dimensions, else None.
        perm: where it must be made from [B, H, Sq, D] by a Transpose, else None.
    """

    tensor: Tensor
    layout: Layout
    rank: int
    nodes: tuple[Node, ...]
    lead: tuple[Expr, ...] | None = None
    perm: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ScoreIndex:
    """Index variables of the scores; an index over a dimension of 1 is the constant 0."""

    b: Expr
    h: Expr
    q: Expr
    k: Expr

    @property
    def all(self) -> tuple[Expr, Expr, Expr, Expr]:
        """(b, h, q, k)."""
        return (self.b, self.h, self.q, self.k)


@dataclass(frozen=True)
class AttentionBlock:
    """One matched attention block.

    Attributes:
        name: of its Softmax node.
        softmax: the node.
        dims: (B, H, Sq, Sk) as expressions.
        index: index variables over dims.
        query, key, value: what is read.
        output: the tensor that is replaced.
        chain: scale, softcap and masks.
        sinks: attention sinks, if there are any.
        nan_to_zero: NaN probabilities become 0.
        head_dim, value_head_dim: sizes.
        dtype: float type of query, key, value and output.
        nodes: how many nodes of the graph the block walked through.
        assumptions: equalities of dimensions that the reading relies on.
    """

    name: str
    softmax: Node
    dims: tuple[Expr, Expr, Expr, Expr]
    index: ScoreIndex
    query: OperandRead
    key: OperandRead
    value: OperandRead
    output: OutputWrite
    chain: ScoreChain
    nan_to_zero: bool
    head_dim: int
    value_head_dim: int
    dtype: str
    nodes: int
    sinks: SinkRead | None = None
    assumptions: tuple[str, ...] = ()

    @property
    def num_heads(self) -> int:
        """H."""
        return self.query.heads
