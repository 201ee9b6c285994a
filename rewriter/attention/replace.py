"""Put a StofMaskedAttention node in the place of a matched block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from stof_onnx.ir.block_table import ARRAY_NAMES
from stof_onnx.ir.expr import Const, Expr, evaluate, to_text
from stof_onnx.ir.expr.build import integer
from stof_onnx.ir.operators.masked_attention import OP_TYPE, MaskedAttention
from stof_onnx.ir.operators.registry import DOMAIN, PLUGIN_VERSION
from stof_onnx.rewriter.attention.block import AttentionBlock, OperandRead, SinkRead
from stof_onnx.rewriter.graph import ImportedGraph, Node, Tensor, numpy_type
from stof_onnx.rewriter.masks.lift import LiftedMask, OperandSource
from stof_onnx.rewriter.symbolic import SymbolicGraph


@dataclass
class Replacer:
    """Writes stof nodes; what several of them read is made once.

    Attributes:
        imported: the graph that is changed.
        sym: its reading from before.
        made: operands by what they are.
    """

    imported: ImportedGraph
    sym: SymbolicGraph
    made: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def replace(
        self, block: AttentionBlock, lifted: LiftedMask, attributes: MaskedAttention
    ) -> Node:
        """The node, which makes the block's output."""
        inputs = [self._operand(read) for read in (block.query, block.key, block.value)]
        for source in lifted.sources:
            inputs += self._mask_operand(source)
        if block.sinks is not None:
            inputs.append(self._sinks(block, block.sinks))
        output = block.output.tensor
        output.inputs.clear()
        shape = [_declared(dim) for dim in self.sym.shape(output)]
        made = self._before(block, output)
        node = gs.Node(
            op=OP_TYPE,
            name=self.imported.fresh(f"stof/{block.name}"),
            attrs={
                **attributes.attributes(),
                "plugin_version": PLUGIN_VERSION,
                "plugin_namespace": DOMAIN,
            },
            inputs=inputs,
            outputs=[made],
            domain=DOMAIN,
        )
        # ONNX's shape inference stops at a stof node, so the output's type is written down.
        output.dtype = np.float32 if block.value.is_widened else block.value.tensor.dtype
        output.shape = shape
        self.imported.graph.nodes.append(node)
        return node

    def _before(self, block: AttentionBlock, output: Tensor) -> Tensor:
        """What the node makes: the output, or the [B, H, Sq, D] that becomes it."""
        write = block.output
        if write.lead is None and write.perm is None:
            return output
        dims = [block.dims[0], block.dims[1], block.dims[2], integer(block.value_head_dim)]
        made = self._variable(f"{output.name}/bhsd", output.dtype, [_declared(d) for d in dims])
        if write.perm is not None:
            self._add("Transpose", [made], output, perm=list(write.perm))
        else:
            lead = [_declared(dim) for dim in write.lead or ()]
            self._reshape(made, [d if isinstance(d, int) else -1 for d in lead], 2, output)
        return made

    # ------------------------------------------------------------------- query, key and value

    def _operand(self, read: OperandRead) -> Tensor:
        """The tensor itself, its [B, heads, S, D] form, or either in float32."""
        tensor = self._arranged(read)
        if not read.is_widened:
            return tensor
        key = (tensor.name, "widened")
        if key not in self.made:
            self.made[key] = self._cast(tensor, TensorProto.FLOAT, np.float32)
        return self.made[key]

    def _arranged(self, read: OperandRead) -> Tensor:
        if read.arrangement is None:
            return read.tensor
        perm, tensor = read.arrangement.perm, read.tensor
        key = (tensor.name, f"arranged {perm} {read.arrangement.heads}")
        if key in self.made:
            return self.made[key]
        if list(perm) != sorted(perm):
            moved = self._variable(f"stof/{tensor.name}/moved", tensor.dtype, None)
            self._add("Transpose", [tensor], moved, perm=list(perm))
            tensor = moved
        if read.arrangement.heads is not None:
            output = self._variable(f"stof/{tensor.name}/bhsd", tensor.dtype, None)
            self._reshape(tensor, [-1, read.arrangement.heads], len(perm) - 2, output)
            tensor = output
        self.made[key] = tensor
        return tensor

    def _reshape(self, tensor: Tensor, lead: Sequence[int], keep_from: int, output: Tensor) -> None:
        """Reshape to ``lead`` followed by the tensor's axes from ``keep_from`` on."""
        dims = self._variable(f"{output.name}/dims", np.int64, None)
        kept = self._variable(f"{output.name}/kept", np.int64, [2])
        target = self._variable(f"{output.name}/target", np.int64, [len(lead) + 2])
        self._add("Shape", [tensor], dims)
        ends = [
            self.constant(f"stof/axis/{n}", np.asarray([n], np.int64))
            for n in (keep_from, 2**31 - 1)
        ]
        self._add("Slice", [dims, *ends], kept)
        name = f"stof/lead/{'x'.join(map(str, lead))}"
        self._add("Concat", [self.constant(name, np.asarray(lead, np.int64)), kept], target, axis=0)
        self._add("Reshape", [tensor, target], output)

    # -------------------------------------------------------------------------------- the mask

    def _mask_operand(self, source: OperandSource) -> list[Tensor]:
        if source.table is not None:
            table = source.table
            prefix = f"stof/table/{table.digest[:16]}"
            return [self.constant(f"{prefix}/{name}", table.arrays()[name]) for name in ARRAY_NAMES]
        key = (source.tensor, source.kind)
        if key not in self.made:
            self.made[key] = self._run_time_operand(source)
        return [self.made[key]]

    def _run_time_operand(self, source: OperandSource) -> Tensor:
        """Plugins have neither BOOL nor DOUBLE: a boolean enters as INT8, a double as FLOAT."""
        tensor = self.sym.tensors[source.tensor]
        if isinstance(tensor, gs.Constant):
            values = tensor.values
            if source.kind == "bool":
                values = (values != 0).astype(np.int8)
            elif source.kind == "int":
                values = values.astype(np.int64)
            elif values.dtype == np.float64:
                values = values.astype(np.float32)
            return self.constant(f"stof/{tensor.name}/{source.kind}", values)
        if source.kind == "bool":
            if numpy_type(tensor) != np.bool_:
                tensor = self._cast(tensor, TensorProto.BOOL, np.bool_)
            return self._cast(tensor, TensorProto.INT8, np.int8)
        if source.kind == "int" and numpy_type(tensor) not in (np.int32, np.int64):
            return self._cast(tensor, TensorProto.INT64, np.int64)
        if source.kind == "float" and numpy_type(tensor) == np.float64:
            return self._cast(tensor, TensorProto.FLOAT, np.float32)
        return tensor

    def _sinks(self, block: AttentionBlock, sinks: SinkRead) -> Tensor:
        """A logit for each query head, in float32."""
        key = (sinks.tensor.name, f"sinks {sinks.index}")
        if key not in self.made:
            heads = block.num_heads
            if isinstance(sinks.tensor, gs.Constant):
                h = np.arange(heads)
                at = tuple(np.asarray(evaluate(i, {"h": h}, {})) for i in sinks.index)
                values = np.broadcast_to(sinks.tensor.values[at], (heads,)).astype(np.float32)
                self.made[key] = self.constant(f"stof/{sinks.tensor.name}/sinks", values)
            else:
                tensor = sinks.tensor
                if numpy_type(tensor) != np.float32:
                    tensor = self._cast(tensor, TensorProto.FLOAT, np.float32)
                self.made[key] = tensor
        return self.made[key]

    # ------------------------------------------------------------------------------ new nodes

    def constant(self, name: str, values: Any) -> Tensor:
        """An initializer; the same one for the same name."""
        key = (name, "constant")
        if key not in self.made:
            unique = self.imported.fresh(name)
            self.made[key] = gs.Constant(unique, np.asarray(values, order="C"))
        return self.made[key]

    def _cast(self, tensor: Tensor, to: int, dtype: Any) -> Tensor:
        name = f"stof/{tensor.name}/{np.dtype(dtype).name}"
        output = self._variable(name, dtype, tensor.shape)
        self._add("Cast", [tensor], output, to=to)
        return output

    def _variable(self, name: str, dtype: Any, shape: Any) -> Tensor:
        return gs.Variable(self.imported.fresh(name), dtype, shape)

    def _add(self, op_type: str, inputs: list[Tensor], output: Tensor, **attributes: Any) -> None:
        self.imported.graph.nodes.append(
            gs.Node(op_type, output.name, attrs=attributes, inputs=inputs, outputs=[output])
        )


def _declared(dim: Expr) -> int | str:
    return int(dim.value) if isinstance(dim, Const) else to_text(dim)
