"""What `optimize` and `inspect` say about a model, as plain records.

:class:`Report` is about a model as it was exported, :class:`OptimizedReport` about a file with
stof nodes. Both turn into JSON with ``to_json``, where "kind" tells them apart; how they look on a
terminal is the business of ``stof_onnx.cli``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from stof_onnx.ir.mask.statistics import TileStatistics

Status = Literal["fused", "refused"]
Kind = Literal["original", "optimization"]
PlanKind = Literal["stof", "native", ""]
LengthsFrom = Literal["model", "input shapes", "assumed", "table"]


@dataclass(frozen=True)
class DensityReport:
    """How much of a mask is kept at one size, averaged over batch and heads.

    Attributes:
        sizes: (B, H, Sq, Sk) that it was measured at.
        lengths: where Sq and Sk come from: "model" (fixed there), "input shapes" (given by the
            user), "assumed" (dynamic, and nobody gave them) or "table" (assumed, and as long as a
            constant table of the mask allows).
        token_density: kept pairs over all pairs.
        tiles: the shares of tiles that aren't empty and that are full, at each tile size.
        not_counted: operands known at run time only, such as padding masks. What they hide
            counts as kept: the densities are upper bounds where there are any.
    """

    sizes: tuple[int, int, int, int]
    lengths: LengthsFrom
    token_density: float
    tiles: tuple[TileStatistics, ...]
    not_counted: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskReport:
    """The mask of one attention block.

    Attributes:
        kind: families joined by "+", e.g. "causal+padding"; "none" without a mask.
        parameters: of the families, e.g. {"window_left": 8, "window_right": 8}.
        expression: the mask program in words, e.g. "q - k >= 0 and attention_mask[b, k]".
        empty_row: result of a row that sees no key: "nan", "zero", "mean" or "softmax".
        proof: how the program was compared with the original subgraph; "" where that isn't known.
        density: None where it wasn't measured.
        picture: file that the mask was drawn into; "" if it wasn't.
    """

    kind: str
    parameters: dict[str, int | float | str]
    expression: str
    empty_row: str
    proof: str = ""
    density: DensityReport | None = None
    picture: str = ""

    @property
    def title(self) -> str:
        """The families with their parameters, e.g. "causal (alignment=start)"."""
        parameters = ", ".join(f"{name}={_short(value)}" for name, value in self.parameters.items())
        return f"{self.kind} ({parameters})" if parameters else self.kind


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class KernelReport:
    """What runs a stof node on one target.

    Attributes:
        target: as the user named it.
        template: the kernel template.
        tactic: its compile-time parameters.
        registers: of a thread; 0 if not known, as for portable PTX.
        shared_bytes: static and dynamic shared memory of a block.
        image_bytes: size of the compiled code.
    """

    target: str
    template: str
    tactic: dict[str, Any]
    registers: int
    shared_bytes: int
    image_bytes: int


@dataclass(frozen=True)
class AttentionReport:
    """One attention-like block of the model.

    Attributes:
        name: of the block's Softmax node in the original graph.
        status: "fused" or "refused".
        reason: why it was refused; what was replaced where it was fused.
        plan: what is to run a fused block: "stof" a stof node, "native" TensorRT's own attention;
            "" where it was refused.
        read: of a refused block the operators that had been read when the reason was met: the
            Softmax, up to the product of query and key, down to that with value, then operands.
        mask: None where the block was refused before its mask could be read.
        num_heads: query heads, 0 if unknown.
        kv_num_heads: key/value heads, 0 if unknown.
        head_dim: 0 if unknown.
        query_shape: symbolic shape of the query tensor that is read, e.g.
            ("batch", "sequence", "64").
        key_shape: same for the key tensor.
        layout: of query, key, value and output, e.g. "BSHD BSHD BSHD -> BSHD".
        softcap: c of c * tanh(score / c); 0 without one.
        sinks: whether a logit of each head joins the softmax without a key.
        nodes_replaced: how many nodes of the original graph disappeared.
        kernels: what runs the node, one a target; empty where no kernels were asked for.
    """

    name: str
    status: Status
    reason: str
    plan: PlanKind = ""
    read: tuple[str, ...] = ()
    mask: MaskReport | None = None
    num_heads: int = 0
    kv_num_heads: int = 0
    head_dim: int = 0
    query_shape: tuple[str, ...] = ()
    key_shape: tuple[str, ...] = ()
    layout: str = ""
    softcap: float = 0.0
    sinks: bool = False
    nodes_replaced: int = 0
    kernels: tuple[KernelReport, ...] = ()


@dataclass(frozen=True)
class TableReport:
    """A StofMaskTable node: it builds the table of a run-time mask that attention nodes read.

    Attributes:
        name: of the node.
        mask: what the table is made of.
        tile: queries and keys of a tile.
        kernels: what runs the node, one a target; empty where no kernels were asked for.
    """

    name: str
    mask: MaskReport
    tile: tuple[int, int]
    kernels: tuple[KernelReport, ...] = ()


@dataclass(frozen=True)
class PrecisionEffect:
    """How far one output of a model is from the original's after it was lowered.

    Attributes:
        output: name of the tensor.
        feed: the inputs, in words, with the largest relative distance.
        max_abs: largest absolute difference over all feeds.
        rel_l2: largest L2 norm of the difference over the L2 norm of the original's output.
    """

    output: str
    feed: str
    max_abs: float
    rel_l2: float


@dataclass(frozen=True)
class PrecisionReport:
    """How a float32 model was lowered.

    Attributes:
        precision: "float16" or "bfloat16".
        tool: what chose the operators.
        lowered: number of operators that compute in it.
        kept: number of operators that stay in float32, by reason.
        effects: one for each output; empty where nothing was measured.
    """

    precision: str
    tool: str
    lowered: int
    kept: dict[str, int]
    effects: tuple[PrecisionEffect, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was found in one model and what was, or would be, done about it.

    Attributes:
        model: path or name of the model.
        attention: blocks in graph order.
        nodes_before: operators in the original graph.
        nodes_after: operators in the optimized graph (equal when nothing was fused).
        kind: "optimization" of what `optimize` did, "original" of what it would do.
        tables: the StofMaskTable nodes that are added.
        targets: GPU targets that kernels were compiled for, as the user named them.
        notes: assumptions and remarks a user should read.
        check: the result of `check` as JSON, None if it did not run.
        seconds: wall time per stage.
        precision: how the model was lowered before it was optimized; None if it wasn't.
        other_softmaxes: Softmax nodes of the graph that aren't between two products of run-time
            tensors, and so in no block.
    """

    model: str
    attention: tuple[AttentionReport, ...]
    nodes_before: int
    nodes_after: int
    kind: Kind = "optimization"
    tables: tuple[TableReport, ...] = ()
    targets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    check: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    precision: PrecisionReport | None = None
    other_softmaxes: int = 0

    @property
    def fused(self) -> int:
        """Number of fused blocks."""
        return sum(entry.status == "fused" for entry in self.attention)

    @property
    def refused(self) -> int:
        """Number of refused blocks."""
        return len(self.attention) - self.fused

    @property
    def refusal_counts(self) -> dict[str, int]:
        """How many blocks were refused for each reason, whichever node it names."""
        reasons = [e.reason for e in self.attention if e.status == "refused"]
        return dict(Counter(reason.split(": ", 1)[-1] for reason in reasons))

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable object with every field and the counts."""
        data = dataclasses.asdict(self)
        for entry in data["attention"]:
            # Every entry has a mask with a kind, also where it was refused before it was read.
            entry["mask"] = entry["mask"] or {"kind": "unknown"}
        data["fused"] = self.fused
        data["refused"] = self.refused
        data["refusal_counts"] = self.refusal_counts
        return data


@dataclass(frozen=True)
class NodeReport:
    """One stof node of an optimized model.

    Attributes:
        name: of the node.
        operator: "StofMaskedAttention" or "StofMaskTable".
        mask: of the node.
        num_heads: query heads; of a table the heads that have one each.
        kv_num_heads: key/value heads, 0 for a table.
        head_dim: 0 for a table.
        dtype: of query, key, value and output, "" for a table.
        layout: as in :class:`AttentionReport`, "" for a table.
        softcap, sinks: as in :class:`AttentionReport`.
        tile: queries and keys of a tile of the table that is built or read; none without one.
        plan_bytes: size of the node's plan in the file; 0 if it has none and can't run.
        producer: who wrote the plan, e.g. "stof-onnx 0.1.0, NVRTC 13.0.88"; "" without one.
        kernels: in the plan, one for each target and setting.
    """

    name: str
    operator: str
    mask: MaskReport
    num_heads: int
    kv_num_heads: int = 0
    head_dim: int = 0
    dtype: str = ""
    layout: str = ""
    softcap: float = 0.0
    sinks: bool = False
    tile: tuple[int, int] | None = None
    plan_bytes: int = 0
    producer: str = ""
    kernels: tuple[KernelReport, ...] = ()

    @property
    def has_plan(self) -> bool:
        """Whether the node carries what a plugin needs to run it."""
        return self.plan_bytes > 0

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of the plan."""
        return tuple(dict.fromkeys(kernel.target for kernel in self.kernels))


@dataclass(frozen=True)
class OptimizedReport:
    """What an optimized model contains.

    Attributes:
        model: path or name of the model.
        nodes: operators in the graph, stof nodes included.
        stof_nodes: in graph order.
        notes: remarks a user should read.
    """

    model: str
    nodes: int
    stof_nodes: tuple[NodeReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that every stof node has a plan for."""
        first, *others = [node.targets for node in self.stof_nodes]
        return tuple(name for name in first if all(name in targets for targets in others))

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable object with every field, "kind" and what follows from the fields."""
        data = dataclasses.asdict(self)
        for entry, node in zip(data["stof_nodes"], self.stof_nodes, strict=True):
            entry["has_plan"] = node.has_plan
            entry["targets"] = node.targets
        return {"kind": "optimized", **data, "targets": self.targets}
