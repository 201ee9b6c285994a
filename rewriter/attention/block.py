"""What the matcher finds: one attention block, and why another one isn't."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stof_onnx.ir.expr import Expr
from stof_onnx.ir.operators.masked_attention import Layout, TensorLayout
from stof_onnx.rewriter.graph import Node, Tensor, node_name


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """A block is left as it is; the message names the node and the reason."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"{node.op} {node_name(node)!r}: {reason}")


@dataclass(frozen=True)
class MaskStage:
    """One place where the graph masks or biases the scores.

    Attributes:
        node: the Add or Where.
        mode: "add" (scores + tensor), "keep" (scores where the tensor is true, else
            fill) or "drop" (fill where the tensor is true).
        tensor: the mask or bias; broadcasts to the scores.
        fill: what "keep" and "drop" write.
    """

    node: Node
    mode: Literal["add", "keep", "drop"]
    tensor: Tensor
    fill: float = 0.0


@dataclass
class ScoreChain:
    """What lies between the product of query and key and the Softmax.

    Attributes:
        scale: product of the scalar factors found so far.
        is_scaled: whether there was any.
        stages: masks in the order in which the graph applies them.
        score_dtype: float type in which the masks meet the scores; "" before the first.
        nodes: the nodes walked through.
    """

    scale: float = 1.0
    is_scaled: bool = False
    stages: list[MaskStage] = field(default_factory=list)
    score_dtype: str = ""
    nodes: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class OperandRead:
    """A query, key or value: the tensor to read, how, and the factor on the way."""

    tensor: Tensor
    layout: TensorLayout
    heads: int
    scale: float


@dataclass(frozen=True)
class OutputWrite:
    """The tensor a block replaces.

    Attributes:
        tensor: the tensor.
        layout: "BSHD" where the heads were moved back, else "BHSD".
        rank: 3 for [B, Sq, H*D], 4 for [B, Sq, H, D] and [B, H, Sq, D].
        nodes: nodes between the product with value and the tensor.
    """

    tensor: Tensor
    layout: Layout
    rank: int
    nodes: tuple[Node, ...]


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
        chain: scale and masks.
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
    assumptions: tuple[str, ...] = ()
