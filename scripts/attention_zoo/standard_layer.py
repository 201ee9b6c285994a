"""The graph of one use of the standard ``Attention`` operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import onnx
from onnx import TensorProto

from attention_zoo.built_graphs import (
    Graph,
    rotary_tables,
)
from attention_zoo.model import HEAD_DIM, HEADS, HIDDEN, POSITIONS

MaskInput = Literal[
    "", "bool_4d", "bool_2d", "float_4d", "float_2d", "float_heads", "padding", "window"
]
Rotary = Literal["", "half", "interleaved", "partial", "positions"]
WINDOW = 3
PAST = 11
MEMORY = 9


@dataclass(frozen=True)
class OperatorForm:
    """One way to use the operator.

    ``rank`` is that of its inputs; ``memory`` makes it cross attention, ``past`` gives it a cache,
    ``nonpad`` the input nonpad_kv_seqlen. ``scores_mode`` asks for the output qk_matmul_output.
    """

    name: str
    mask: str
    opset: int = 23
    rank: Literal[3, 4] = 4
    kv_heads: int = HEADS
    value_dim: int = HEAD_DIM
    is_causal: bool = False
    given: MaskInput = ""
    softcap: float = 0.0
    scale: float | None = None
    precision: int | None = None
    dtype: Literal["float32", "float16"] = "float32"
    memory: bool = False
    past: bool = False
    nonpad: bool = False
    rotary: Rotary = ""
    norms: bool = False
    scores_mode: int | None = None


class Layer:
    """The graph of an ``OperatorForm``."""

    def __init__(self, form: OperatorForm) -> None:
        self.form = form
        self.graph = Graph(form.opset, dtype=form.dtype)

    def build(self) -> onnx.ModelProto:
        """Return the model."""
        form, graph = self.form, self.graph
        hidden = graph.input("hidden", graph.float_type, ["batch", "sequence", HIDDEN])
        memory = hidden
        if form.memory:
            memory = graph.input("memory", graph.float_type, ["batch", "memory", HIDDEN])
        if form.norms:
            hidden = memory = self._norm(hidden, HIDDEN)
        query = self._split(graph.linear(hidden, HIDDEN), HEADS, HEAD_DIM)
        key = self._split(graph.linear(memory, form.kv_heads * HEAD_DIM), form.kv_heads, HEAD_DIM)
        value = self._split(
            graph.linear(memory, form.kv_heads * form.value_dim), form.kv_heads, form.value_dim
        )
        if form.norms and form.rank == 4:
            query, key = self._norm(query, HEAD_DIM), self._norm(key, HEAD_DIM)
        if form.rotary:
            query, key = self._rotate(query, HEADS), self._rotate(key, form.kv_heads)
        self._attend(query, key, value)
        return graph.model()

    def _attend(self, query: str, key: str, value: str) -> None:
        form, graph = self.form, self.graph
        inputs = [query, key, value, self._mask(), "", "", ""]
        if form.past:
            for slot, name in ((4, "past_key"), (5, "past_value")):
                shape = ["batch", form.kv_heads, "past", HEAD_DIM]
                inputs[slot] = graph.input(name, graph.float_type, shape)
        if form.nonpad:
            inputs[6] = graph.input("nonpad", TensorProto.INT64, ["batch"])
        while not inputs[-1]:
            inputs.pop()
        count = 4 if form.scores_mode is not None else 3 if form.past else 1
        outputs = graph.op_outputs("Attention", count, *inputs, **self._attributes())
        if count == 4:
            # Present key and value are outputs of the operator that nobody wants here.
            graph.nodes[-1].output[1] = graph.nodes[-1].output[2] = ""
        width = HEADS * form.value_dim
        context = outputs[0] if form.rank == 3 else graph.joined(outputs[0], width)
        element = graph.float_type
        attended = graph.linear(context, HIDDEN, of=width)
        graph.output("context", attended, element, ["batch", "sequence", HIDDEN])
        if form.past:
            for name, output in zip(("key", "value"), outputs[1:3], strict=True):
                graph.output(name, output, element, ["batch", form.kv_heads, "total", HEAD_DIM])
        if form.scores_mode is not None:
            graph.output("scores", outputs[3], element, ["batch", HEADS, "sequence", "sequence"])

    def _attributes(self) -> dict[str, Any]:
        form = self.form
        attributes: dict[str, Any] = {}
        if form.rank == 3:
            attributes |= {"q_num_heads": HEADS, "kv_num_heads": form.kv_heads}
        if form.is_causal:
            attributes["is_causal"] = 1
        if form.softcap:
            attributes["softcap"] = form.softcap
        if form.scale is not None:
            attributes["scale"] = form.scale
        if form.precision is not None:
            attributes["softmax_precision"] = form.precision
        if form.scores_mode is not None:
            attributes["qk_matmul_output_mode"] = form.scores_mode
        return attributes

    def _split(self, rows: str, heads: int, head_dim: int) -> str:
        return rows if self.form.rank == 3 else self.graph.heads(rows, heads, head_dim)

    def _norm(self, rows: str, width: int) -> str:
        return self.graph.op("RMSNormalization", rows, self.graph.normal(width), epsilon=1e-5)

    def _rotate(self, rows: str, heads: int) -> str:
        form, graph = self.form, self.graph
        half = HEAD_DIM // 4 if form.rotary == "partial" else HEAD_DIM // 2
        tables = [graph.constant(table) for table in rotary_tables(POSITIONS, half)]
        names = {value.name for value in graph.inputs}
        if form.rotary == "positions":
            if "position_ids" not in names:
                graph.input("position_ids", TensorProto.INT64, ["batch", "sequence"])
            inputs = [*tables, "position_ids"]
        else:
            # Without positions the tables are [batch, sequence, half].
            length = graph.op("Shape", "hidden", start=1, end=2)
            batch = graph.op("Shape", "hidden", start=0, end=1)
            inputs = []
            for table in tables:
                sliced = graph.op("Slice", table, graph.constant([0]), length, graph.constant([0]))
                shape = graph.op("Concat", batch, length, graph.constant([half]), axis=0)
                inputs.append(graph.op("Expand", sliced, shape))
        attributes: dict[str, Any] = {"num_heads": heads} if form.rank == 3 else {}
        if form.rotary == "interleaved":
            attributes["interleaved"] = 1
        if form.rotary == "partial":
            attributes["rotary_embedding_dim"] = 2 * half
        return graph.op("RotaryEmbedding", rows, *inputs, **attributes)

    def _mask(self) -> str:
        form, graph = self.form, self.graph
        keys = "total" if form.past else "memory" if form.memory else "sequence"
        if form.given in {"", "window", "padding"}:
            return {"": lambda: "", "window": self._window, "padding": self._padding}[form.given]()
        element = TensorProto.BOOL if "bool" in form.given else graph.float_type
        axes: list[int | str] = ["sequence", keys]
        if not form.given.endswith("2d"):
            axes = ["batch", HEADS if form.given == "float_heads" else 1, *axes]
        return graph.input("mask", element, axes)

    def _padding(self) -> str:
        graph = self.graph
        keys = "total" if self.form.past else "sequence"
        given = graph.input("attention_mask", TensorProto.INT64, ["batch", keys])
        keep = graph.op("Cast", given, to=TensorProto.BOOL)
        keep = graph.op("Unsqueeze", keep, graph.constant([1, 2]))
        # ONNX Runtime 1.32 takes no mask that is to be broadcast along the queries.
        length = graph.op("Shape", "hidden", start=1, end=2)
        one = graph.constant([1])
        return graph.op("Expand", keep, graph.op("Concat", one, one, length, one, axis=0))

    def _window(self) -> str:
        """``abs(q - k) <= WINDOW`` as bool [S, S]."""
        graph = self.graph
        length = graph.op("Shape", "hidden", start=1, end=2)
        scalar = graph.op("Squeeze", length)
        position = graph.op("Range", graph.constant(0), scalar, graph.constant(1))
        rows = graph.op("Unsqueeze", position, graph.constant([1]))
        columns = graph.op("Unsqueeze", position, graph.constant([0]))
        distance = graph.op("Abs", graph.op("Sub", rows, columns))
        return graph.op("LessOrEqual", distance, graph.constant(WINDOW))
