"""The records of the attention zoo: one ``ZooModel`` is one ONNX file and what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx
    from torch import nn

# "graph": ``build`` returns a finished onnx.ModelProto (made node by node, or by an optimizer).
Exporter = Literal[
    "dynamo18", "dynamo20", "dynamo23", "dynamo24", "torchscript17", "torchscript14", "graph"
]
Implementation = Literal["sdpa", "eager"]
Dtype = Literal["float32", "float16", "bfloat16"]

IMPLEMENTATIONS: tuple[Implementation, ...] = ("sdpa", "eager")
COMMON_EXPORTERS: tuple[Exporter, ...] = ("dynamo18", "torchscript17")
NEWER_EXPORTERS: tuple[Exporter, ...] = ("dynamo20", "dynamo23")

# The sizes of every family that lets them be chosen.
VOCABULARY = 64
POSITIONS = 64
HIDDEN = 32
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 8
LAYERS = 2
INTERMEDIATE = 48


@dataclass(frozen=True)
class Axis:
    """A dynamic axis and its sizes at export and in the checks.

    ``sum_of`` names the axes whose sum, with ``plus``, this one is (the keys of a decoder with a
    cache); its own sizes are not used then.
    """

    name: str
    exported: int = 0
    checked: tuple[int, ...] = ()
    sum_of: tuple[str, ...] = ()
    plus: int = 0


BATCH = Axis("batch", 2, (3, 1))
SEQUENCE = Axis("sequence", 20, (33, 7))
MEMORY = Axis("memory_sequence", 27, (41, 10))
PAST = Axis("past_sequence", 11, (17, 6))
TOTAL = Axis("total_sequence", sum_of=("past_sequence", "sequence"))


@dataclass(frozen=True)
class ModelInput:
    """A graph input.

    Attributes:
        name: the input's name in the graph.
        kind: ``ids`` int64 tokens, ``mask`` int64 padding mask, ``float`` normal numbers of the
            model's dtype, ``positions`` int64 0, 1, 2..., ``first`` int64, 1 in column 0 and else 0
            (global tokens).
        axes: each axis, an ``Axis`` or its fixed size.
    """

    name: str
    kind: Literal["ids", "mask", "float", "positions", "first"]
    axes: tuple[Axis | int, ...] = (BATCH, SEQUENCE)


@dataclass(frozen=True)
class ModelOutput:
    """A graph output.

    ``keep`` names the padding mask input whose last part says which rows, along ``row_axis``,
    anybody reads; the rest may differ from PyTorch. None: all rows are compared.
    """

    name: str
    axes: tuple[Axis | int, ...]
    keep: str | None = None
    row_axis: int = 1


TOKENS = ModelInput("input_ids", "ids")
PADDING = ModelInput("attention_mask", "mask")
TEXT_INPUTS = (TOKENS, PADDING)
HIDDEN_OUTPUT = ModelOutput("last_hidden_state", (BATCH, SEQUENCE, HIDDEN), keep="attention_mask")


@dataclass(frozen=True)
class ZooBlock:
    """An attention block, in graph order.

    ``mask`` is the kind an optimizer should report, factors joined by "+" in the order
    structure, padding, bias: ``none``, ``causal+padding``, ``sliding_window+padding``,
    ``padding+bias``. ``status`` "refused" says that this block must stay as it is, "either" that it
    may.
    """

    mask: str
    num_heads: int = HEADS
    kv_num_heads: int = HEADS
    head_dim: int = HEAD_DIM
    status: Literal["fused", "refused", "either"] = "fused"


@dataclass(frozen=True)
class ZooModel:
    """One file.

    Attributes:
        name: the file's stem.
        family: for tables, like "bert".
        build: makes the module (random weights are set later, see ``random_weights``), or for
            exporter "graph" the finished ONNX model.
        inputs: in the order of ``forward``.
        outputs: in the order in which ``forward`` returns them.
        blocks: what an optimizer should find, in graph order.
        exporter: who writes the file, with the opset.
        implementation: the ``attn_implementation`` of transformers; "" where there is no choice.
        dtype: of weights and float inputs.
        static: fix all axes at their exported size.
        transformers_class: the model's class; where this version of transformers lacks it, or it
            lacks ``implementation``, the file is skipped.
        tolerance: the largest difference from PyTorch, relative to the largest output if that
            is above 1.
        keeps_weights: ``build`` has set the weights itself.
        notes: anything a reader of the manifest should know.
    """

    name: str
    family: str
    build: Callable[[], nn.Module | onnx.ModelProto]
    inputs: tuple[ModelInput, ...] = TEXT_INPUTS
    outputs: tuple[ModelOutput, ...] = (HIDDEN_OUTPUT,)
    blocks: tuple[ZooBlock, ...] = ()
    exporter: Exporter = "dynamo18"
    implementation: Implementation | Literal[""] = ""
    dtype: Dtype = "float32"
    static: bool = False
    transformers_class: str = ""
    tolerance: float = 1e-4
    keeps_weights: bool = False
    notes: str = ""

    @property
    def opset(self) -> int:
        """The opset in the exporter's name; 0 for "graph", whose file says it."""
        return int("".join(filter(str.isdigit, self.exporter)) or 0)


@dataclass(frozen=True)
class ZooFamily:
    """A model class of transformers, to be exported in several forms.

    ``build`` takes the attention implementation. The other fields are those of ``ZooModel``.
    """

    family: str
    build: Callable[[str], nn.Module]
    transformers_class: str
    blocks: tuple[ZooBlock, ...]
    variant: str = "base"
    inputs: tuple[ModelInput, ...] = TEXT_INPUTS
    outputs: tuple[ModelOutput, ...] = (HIDDEN_OUTPUT,)
    implementations: tuple[Implementation, ...] = IMPLEMENTATIONS
    exporters: tuple[Exporter, ...] = COMMON_EXPORTERS
    dtype: Dtype = "float32"
    static: bool = False
    tolerance: float = 1e-4
    notes: str = ""


def family_models(families: Sequence[ZooFamily]) -> Iterator[ZooModel]:
    """Yield each family with each of its implementations and exporters."""
    for family in families:
        for exporter in family.exporters:
            for implementation in family.implementations:
                yield ZooModel(
                    name=f"{family.family}_{family.variant}_{implementation}_{exporter}",
                    family=family.family,
                    build=_bound(family.build, implementation),
                    inputs=family.inputs,
                    outputs=family.outputs,
                    blocks=family.blocks,
                    exporter=exporter,
                    implementation=implementation,
                    dtype=family.dtype,
                    static=family.static,
                    transformers_class=family.transformers_class,
                    tolerance=family.tolerance,
                    notes=family.notes,
                )


def _bound(build: Callable[[str], nn.Module], implementation: str) -> Callable[[], nn.Module]:
    return lambda: build(implementation)
