"""Between ONNX and onnx-graphsurgeon: reading a model, walking it, writing it back.

Surgery happens on a gs.Graph. The result is written by editing a copy of the original
model: nodes that weren't touched, their attributes, initializers, functions and
metadata stay as they were, byte for byte, whatever types they have.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from stof_onnx.ir.errors import InputError
from stof_onnx.ir.nesting import all_names
from stof_onnx.rewriter import ms_types

# Its warnings are about graphs in the making, not about the user's model.
G_LOGGER.severity = G_LOGGER.ERROR

# gs.Node and gs.Tensor carry no type information.
Node = Any
Tensor = Any

_DEFAULT_DOMAINS = (None, "", "ai.onnx")
# Initializers up to this many bytes take part in type inference with their values.
_SMALL = 1024
_DEFAULTS_SINCE = 4
_CONSTANT_DTYPES = {
    "value_int": "int64",
    "value_ints": "int64",
    "value_float": "float32",
    "value_floats": "float32",
}
# Constants of other types (strings, 4-bit and 8-bit floats) are nobody's shape or mask.
_FOLDED_TYPES = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.INT64,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT8,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.BOOL,
    }
)


@dataclass
class ImportedGraph:
    """A model as a graph, with what is needed to write it back.

    Attributes:
        graph: its constants are gs.Constant, also those of Constant nodes; operators of
            other domains than ONNX's have ops named "domain::Op", so that no rule for
            an ONNX operator takes them for its own.
        protos: each original graph node, by id, with its proto (and so kept alive: the id
            of a node that is gone could be given to a new one).
        folded: the original Constant node of each constant, by output name.
        names: every name in use; new ones come from :meth:`fresh`.
    """

    graph: gs.Graph
    protos: dict[int, tuple[Node, onnx.NodeProto]]
    folded: dict[str, onnx.NodeProto]
    names: set[str] = field(default_factory=set)

    def fresh(self, name: str) -> str:
        """A name that isn't in use, this one if possible; it is in use from then on."""
        unique, count = name, 1
        while unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        self.names.add(unique)
        return unique


def import_graph(model: onnx.ModelProto) -> ImportedGraph:
    """Read a model, which is not changed; large initializers are shared, not copied.

    Raises:
        InputError: onnx-graphsurgeon can't read the model.
    """
    unnamed = _unnamed_attribute_tensors(model)
    try:
        graph = gs.import_onnx(model)
    except Exception as error:  # graphsurgeon raises whatever its code stumbles over
        raise InputError(
            f"onnx-graphsurgeon can't read the model: {type(error).__name__}: {error}",
            "tensors for inputs, outputs and initializers",
        ) from error
    finally:
        for tensor in unnamed:
            tensor.ClearField("name")
    imported = ImportedGraph(
        graph,
        {
            id(node): (node, proto)
            for node, proto in zip(graph.nodes, model.graph.node, strict=True)
        },
        {},
        all_names(model.graph),
    )
    _free_overridable(graph, model)
    _apply_types(graph, _inferred_types(model))
    for node in graph.nodes:
        if node.domain not in _DEFAULT_DOMAINS:
            node.op = f"{node.domain}::{node.op}"
        elif node.op == "Constant" and _is_foldable(imported.protos[id(node)][1]):
            imported.folded[node.outputs[0].name] = imported.protos[id(node)][1]
            _fold_constant_node(node)
    graph.nodes = [n for n in graph.nodes if n.op != "Constant" or n.outputs]
    _resolve_constant_identities(graph)
    graph.toposort()
    return imported


def _unnamed_attribute_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Tensors in attributes that have no name: graphsurgeon sets one, in the caller's model."""
    return [
        attribute.t
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.HasField("t") and not attribute.t.HasField("name")
    ]


def _free_overridable(graph: gs.Graph, model: onnx.ModelProto) -> None:
    """An initializer that is an input too is only a default: not a constant.

    Before IR version 4 every initializer had to be an input, and was a constant.
    """
    if model.ir_version < _DEFAULTS_SINCE:
        return
    declared = {value.name: value.type.tensor_type for value in model.graph.input}
    tensors = graph.tensors()
    for tensor in [tensors[name] for name in declared if name in tensors]:
        if isinstance(tensor, gs.Constant):
            dims = [d.dim_param or d.dim_value for d in declared[tensor.name].shape.dim]
            tensor.to_variable(dtype=tensor.dtype, shape=dims)
            # graphsurgeon forgets it, and can't export the tensor without.
            tensor.type = "tensor_type"


def _inferred_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Type and shape of each tensor, by ONNX's own inference.

    Large initializers enter as typed inputs, so that nothing big is copied.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "types"
    graph.node.extend(ms_types.stand_ins(model.graph.node))
    graph.input.extend([*model.graph.input, ms_types.shape_input()])
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    for tensor in model.graph.initializer:
        # The shape comes first: to know its size, protobuf would serialize a large tensor.
        if math.prod(tensor.dims) <= _SMALL and tensor.ByteSize() <= _SMALL:
            graph.initializer.append(tensor)
        else:
            info = onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(tensor.dims)
            )
            graph.input.append(info)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=False)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}
    return {
        info.name: info.type.tensor_type
        for info in inferred.graph.value_info
        if info.type.HasField("tensor_type")
    }


def _apply_types(graph: gs.Graph, types: dict[str, onnx.TypeProto.Tensor]) -> None:
    """Types and shapes where the model declares none; shapes serve where no rule does."""
    for name, tensor in graph.tensors().items():
        if not isinstance(tensor, gs.Variable) or name not in types:
            continue
        found = types[name]
        if tensor.dtype is None and found.elem_type:
            with contextlib.suppress(KeyError):
                tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(found.elem_type)
        if tensor.shape is None and found.HasField("shape"):
            dims = [dim.dim_param or dim.dim_value for dim in found.shape.dim]
            # Symbols that inference made up ("unk__3") say no more than no shape.
            if all(isinstance(dim, int) or not dim.startswith("unk__") for dim in dims):
                tensor.shape = dims


def _is_foldable(proto: onnx.NodeProto) -> bool:
    (attribute,) = proto.attribute
    if attribute.name == "value":
        return attribute.t.data_type in _FOLDED_TYPES
    return attribute.name in _CONSTANT_DTYPES


def _fold_constant_node(node: Node) -> None:
    """Turn the output of a Constant node into a gs.Constant with its users kept."""
    (name, value), *_ = node.attrs.items()
    output = node.outputs[0]
    values = value.values if name == "value" else np.asarray(value, _CONSTANT_DTYPES[name])
    node.outputs.clear()
    output.to_constant(values)


def _resolve_constant_identities(graph: gs.Graph) -> None:
    """TorchScript shares equal weights through Identity nodes; read the weight itself."""
    for node in graph.nodes:
        if node.op != "Identity" or not isinstance(node.inputs[0], gs.Constant):
            continue
        output, source = node.outputs[0], node.inputs[0]
        if is_graph_output(graph, output):
            continue
        for user in list(output.outputs):
            for position, tensor in enumerate(user.inputs):
                if tensor is output:
                    user.inputs[position] = source


def node_name(node: Node) -> str:
    """A node's name, or its first output's where it has none."""
    return str(node.name or node.outputs[0].name)


def numpy_type(tensor: Tensor) -> np.dtype[Any] | None:
    """A tensor's type; None if it is unknown or numpy has none (bfloat16)."""
    try:
        return None if tensor.dtype is None else np.dtype(tensor.dtype)
    except TypeError:
        return None


def constant_values(constant: gs.Constant) -> np.ndarray[Any, Any]:
    """A constant's values, read for this once; its attribute ``values`` would keep a copy."""
    values = constant._values
    return np.asarray(values.load() if isinstance(values, LazyValues) else values)


def producer(tensor: Tensor) -> Node | None:
    """The node that makes a tensor; None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(graph: gs.Graph, tensor: Tensor) -> Iterator[Node]:
    """The nodes that read a tensor, each once."""
    seen: set[int] = set()
    for node in tensor.outputs:
        if id(node) not in seen:
            seen.add(id(node))
            yield node


def live_nodes(graph: gs.Graph) -> set[int]:
    """Ids of the nodes that an output of the graph depends on."""
    live: set[int] = set()
    frontier = list(graph.outputs)
    while frontier:
        for node in frontier.pop().inputs:
            if id(node) in live:
                continue
            live.add(id(node))
            frontier += [tensor for tensor in node.inputs if isinstance(tensor, gs.Variable)]
            for value in node.attrs.values():
                for inner in value if isinstance(value, list) else [value]:
                    if isinstance(inner, gs.Graph):
                        frontier += [t for t in inner.tensors().values() if not t.is_empty()]
    return live


def is_graph_output(graph: gs.Graph, tensor: Tensor) -> bool:
    """Whether a tensor is an output of the graph."""
    return any(tensor is output for output in graph.outputs)
