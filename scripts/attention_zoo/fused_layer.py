"""The graph of one use of ONNX Runtime's attention operators (domain com.microsoft)."""

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

Operator = Literal["Attention", "MultiHeadAttention", "GroupQueryAttention"]
# lengths: [B]; ends_starts: [2B]; pairs: [B, S, T]; megatron: [B, 1, POSITIONS, POSITIONS].
MaskInput = Literal["", "lengths", "ends_starts", "padding", "pairs", "megatron"]
DOMAIN = "com.microsoft"
PAST = 11
MEMORY = 9
# What ONNX Runtime adds where a mask of 0 and 1 says 0, unless mask_filter_value says otherwise.
FILTER = -10000.0


@dataclass(frozen=True)
class FusedForm:
    """One way to use one of the operators.

    ``past`` is a cache before new tokens, ``decode`` one with a single new token and rows of
    different lengths. ``bias_axes`` is the shape of attention_bias before [Sq, Sk]. ``window``
    is local_window_size, ``sinks`` is head_sink or smooth_softmax. ``runs`` is false where ONNX
    Runtime has no CPU kernel, so that the file is not checked.
    """

    name: str
    operator: Operator
    mask: str
    given: MaskInput = ""
    unidirectional: bool = False
    past: bool = False
    decode: bool = False
    packed: bool = False
    projected_bias: bool = False
    bias_axes: tuple[int | str, ...] = ()
    memory: Literal["", "rows", "heads"] = ""
    kv_heads: int = HEADS
    value_dim: int = HEAD_DIM
    scale: float | None = None
    filter_value: float | None = None
    rotary: Literal["", "half", "interleaved", "positions"] = ""
    window: int = 0
    softcap: float = 0.0
    sinks: Literal["", "smooth", "learned"] = ""
    scores: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    head_dim: int = HEAD_DIM
    runs: bool = True

    @property
    def width(self) -> int:
        """Features of all query heads."""
        return HEADS * self.head_dim


class Layer:
    """The graph of a ``FusedForm``."""

    def __init__(self, form: FusedForm) -> None:
        self.form = form
        self.graph = Graph(18, dtype=form.dtype)

    def build(self) -> onnx.ModelProto:
        """Return the model."""
        form, graph = self.form, self.graph
        hidden = graph.input("hidden", graph.float_type, ["batch", "sequence", HIDDEN])
        if form.operator == "Attention":
            outputs = self._attention(hidden)
        elif form.operator == "MultiHeadAttention":
            outputs = self._multi_head(hidden)
        else:
            outputs = self._grouped(hidden)
        grouped = form.operator == "GroupQueryAttention"
        width = form.width if grouped else HEADS * form.value_dim
        attended = graph.linear(outputs[0], HIDDEN, of=width)
        graph.output("context", attended, graph.float_type, ["batch", "sequence", HIDDEN])
        if form.scores:
            shape = ["batch", HEADS, "sequence", "sequence"]
            graph.output("scores", outputs[-1], graph.float_type, shape)
        elif len(outputs) == 2:
            shape = [2, "batch", HEADS, "total", HEAD_DIM]
            graph.output("present", outputs[1], graph.float_type, shape)
        elif len(outputs) == 3:
            for name, output in zip(("key", "value"), outputs[1:], strict=True):
                shape = ["batch", form.kv_heads, "total", form.head_dim]
                graph.output(name, output, graph.float_type, shape)
        return graph.model()

    def _operator(self, outputs: int, inputs: list[str], **attributes: Any) -> list[str]:
        form = self.form
        attributes["num_heads"] = HEADS
        if form.scale is not None:
            attributes["scale"] = form.scale
        if form.unidirectional:
            attributes["unidirectional"] = 1
        if form.filter_value is not None:
            attributes["mask_filter_value"] = form.filter_value
        while not inputs[-1]:
            inputs.pop()
        return self.graph.op_outputs(form.operator, outputs, *inputs, domain=DOMAIN, **attributes)

    def _attention(self, hidden: str) -> list[str]:
        form, graph = self.form, self.graph
        width = 2 * HIDDEN + HEADS * form.value_dim
        weight = graph.normal(HIDDEN, width, deviation=1.6 / HIDDEN**0.5)
        bias = graph.normal(width, deviation=0.1)
        past = ""
        if form.past:
            past_shape = [2, "batch", HEADS, "past", HEAD_DIM]
            past = graph.input("past", graph.float_type, past_shape)
        sizes: dict[str, Any] = {}
        if form.value_dim != HEAD_DIM:
            sizes["qkv_hidden_sizes"] = [HIDDEN, HIDDEN, HEADS * form.value_dim]
        inputs = [hidden, weight, bias, self._mask(), past, self._bias()]
        return self._operator(2 if form.past else 1, inputs, **sizes)

    def _multi_head(self, hidden: str) -> list[str]:
        form, graph = self.form, self.graph
        if form.packed:
            rows = graph.linear(hidden, 3 * HIDDEN)
            shape = graph.constant([0, 0, HEADS, 3, HEAD_DIM])
            operands = [graph.op("Reshape", rows, shape), "", ""]
        elif form.memory == "heads":
            shape_BHSD = ["batch", HEADS, "memory", HEAD_DIM]
            operands = [
                graph.linear(hidden, HIDDEN),
                *(graph.input(name, graph.float_type, shape_BHSD) for name in ("k", "v")),
            ]
        else:
            memory = hidden
            if form.memory:
                memory = graph.input("memory", graph.float_type, ["batch", "memory", HIDDEN])
            linear = self._product if form.projected_bias else graph.linear
            operands = [
                linear(hidden, HIDDEN),
                linear(memory, HIDDEN),
                linear(memory, HEADS * form.value_dim),
            ]
        bias = graph.normal(3 * HIDDEN, deviation=0.1) if form.projected_bias else ""
        inputs = [*operands, bias, self._mask(), self._bias(), *self._cache()]
        outputs = self._operator(4 if form.scores else 3 if form.past else 1, inputs)
        if form.scores:
            graph.nodes[-1].output[1] = graph.nodes[-1].output[2] = ""
            # ONNX Runtime infers no type for this one.
            shape = ["batch", HEADS, "sequence", "sequence"]
            graph.declare(outputs[3], graph.float_type, shape)
        return outputs

    def _product(self, rows: str, width: int) -> str:
        graph = self.graph
        return graph.op("MatMul", rows, graph.normal(HIDDEN, width, deviation=1.6 / HIDDEN**0.5))

    def _cache(self) -> list[str]:
        form, graph = self.form, self.graph
        if not (form.past or form.decode):
            return ["", ""]
        shape = ["batch", form.kv_heads, "past", form.head_dim]
        names = ("past_key", "past_value")
        return [graph.input(name, graph.float_type, shape) for name in names]

    def _grouped(self, hidden: str) -> list[str]:
        form, graph = self.form, self.graph
        few = form.kv_heads * form.head_dim
        if form.packed:
            operands = [graph.linear(hidden, form.width + 2 * few), "", ""]
        else:
            operands = [graph.linear(hidden, width) for width in (form.width, few, few)]
        # As ONNX Runtime's model builder computes them.
        given = graph.input("attention_mask", TensorProto.INT64, ["batch", "total"])
        counts = graph.op("ReduceSum", given, graph.constant([1]), keepdims=0)
        lengths = graph.op("Sub", counts, graph.constant([1]))
        lengths = graph.op("Cast", lengths, to=TensorProto.INT32)
        total = graph.op("Squeeze", graph.op("Shape", given, start=1, end=2))
        total = graph.op("Cast", total, to=TensorProto.INT32)
        attributes: dict[str, Any] = {"kv_num_heads": form.kv_heads}
        tables = ["", ""]
        if form.rotary:
            cosine, sine = rotary_tables(POSITIONS, form.head_dim // 2)
            tables = [graph.constant(t.astype(graph.dtype)) for t in (cosine, sine)]
            attributes["do_rotary"] = 1
            attributes["rotary_interleaved"] = int(form.rotary == "interleaved")
        if form.window:
            attributes["local_window_size"] = form.window
        if form.softcap:
            attributes["softcap"] = form.softcap
        if form.sinks == "smooth":
            attributes["smooth_softmax"] = 1
        sinks = graph.normal(HEADS) if form.sinks == "learned" else ""
        extra = [*tables, "", self._bias(), sinks]
        return self._operator(3, [*operands, *self._cache(), lengths, total, *extra], **attributes)

    def _mask(self) -> str:
        form, graph = self.form, self.graph
        keys: str = "total" if form.past else "memory" if form.memory else "sequence"
        shapes: dict[str, list[int | str]] = {
            "lengths": ["batch"],
            "ends_starts": ["twice_batch"],
            "padding": ["batch", keys],
            "pairs": ["batch", "sequence", keys],
            "megatron": ["batch", 1, POSITIONS, POSITIONS],
        }
        if not form.given:
            return ""
        return graph.input("mask", TensorProto.INT32, shapes[form.given])

    def _bias(self) -> str:
        form, graph = self.form, self.graph
        if not form.bias_axes:
            return ""
        keys = "total" if form.past else "sequence"
        return graph.input("bias", graph.float_type, [*form.bias_axes, "sequence", keys])
