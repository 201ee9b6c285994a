"""Write a changed graph back into its model or a copy of it.

Only what changed is written anew: inputs that were rewired, new nodes, new constants.
Nodes that nothing needs any more are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from stof_onnx.ir.nesting import reads
from stof_onnx.rewriter.graph import ImportedGraph, Node, constant_values


def export_model(
    imported: ImportedGraph,
    original: onnx.ModelProto,
    domains: Iterable[tuple[str, int]],
    *,
    in_place: bool = False,
) -> onnx.ModelProto:
    """The model with the graph's changes.

    Args:
        imported: the changed graph.
        original: the model it was read from.
        domains: (domain, version) of operators that the changes brought in.
        in_place: change ``original`` and return it, instead of copying it with its weights.
    """
    written = (_node_proto(imported, node) for node in imported.graph.nodes)
    nodes = [*imported.folded.values(), *(node for node in written if node is not None)]
    kept = _sorted(_live(nodes, original.graph), original.graph)
    used = {name for node in kept for name in reads(node)}
    used |= {value.name for value in (*original.graph.input, *original.graph.output)}
    made = {name for node in kept for name in node.output}
    declared = {value.name for value in original.graph.value_info}
    if in_place:
        result = original
        _remove(result.graph, used, made)
    else:
        result = _copy_without_nodes(original, used, made)
    result.graph.node.extend(kept)
    _add_tensors(result.graph, imported, used - made, made - declared)
    known = {entry.domain for entry in result.opset_import}
    result.opset_import.extend(
        onnx.helper.make_opsetid(domain, version)
        for domain, version in domains
        if domain not in known
    )
    return result


def _node_proto(imported: ImportedGraph, node: Node) -> onnx.NodeProto | None:
    """The node as it is now; None if its output is made by another node."""
    outputs = [tensor.name for tensor in node.outputs]
    known = imported.protos.get(id(node))
    if known is None:
        return new_node_proto(node)
    if not outputs:
        return None
    result = onnx.NodeProto()
    result.CopyFrom(known[1])
    inputs = [tensor.name for tensor in node.inputs]
    if inputs != list(result.input):
        del result.input[:]
        result.input.extend(inputs)
    return result


def new_node_proto(node: Node) -> onnx.NodeProto:
    """A node that the rewriter made."""
    return onnx.helper.make_node(
        node.op,
        [tensor.name for tensor in node.inputs],
        [tensor.name for tensor in node.outputs],
        name=node.name,
        domain=node.domain or "",
        **{name: _without_numpy_type(value) for name, value in node.attrs.items()},
    )


def _without_numpy_type(value: Any) -> Any:
    """graphsurgeon keeps element types as numpy types where there is one."""
    if isinstance(value, type | np.dtype):
        return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value))
    return value


def _live(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that an output of the model depends on."""
    maker = {name: node for node in nodes for name in node.output if name}
    live: set[int] = set()
    frontier = [output.name for output in graph.output]
    while frontier:
        node = maker.get(frontier.pop())
        if node is not None and id(node) not in live:
            live.add(id(node))
            frontier += reads(node)
    return [node for node in nodes if id(node) in live]


def _sorted(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """In topological order, otherwise in the given one."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[n] for n in reads(node) if n in maker} - {i} for i, node in enumerate(nodes)]
    done: set[int] = set()
    order: list[int] = []
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            i = stack[-1]
            waiting = [need for need in needs[i] if need not in done]
            if i in done:
                stack.pop()
            elif waiting:
                stack += sorted(waiting, reverse=True)
            else:
                done.add(i)
                order.append(i)
                stack.pop()
    return [nodes[i] for i in order]


def _remove(graph: onnx.GraphProto, used: set[str], made: set[str]) -> None:
    """Take out all nodes, and the tensors that no node uses or makes any more."""
    del graph.node[:]
    for values, names in ((graph.initializer, used), (graph.value_info, made)):
        for position in reversed(range(len(values))):
            if values[position].name not in names:
                del values[position]


def _copy_without_nodes(
    original: onnx.ModelProto, used: set[str], made: set[str]
) -> onnx.ModelProto:
    """A copy of the model that has no nodes, and only the tensors that nodes use or make."""
    result = onnx.ModelProto()
    _copy_fields(original, result, {"graph"})
    source, target = original.graph, result.graph
    _copy_fields(source, target, {"node", "initializer", "value_info"})
    target.initializer.extend(t for t in source.initializer if t.name in used)
    target.value_info.extend(v for v in source.value_info if v.name in made)
    return result


def _copy_fields(source: Any, target: Any, excepted: set[str]) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name in excepted:
            continue
        field = getattr(target, descriptor.name)
        if hasattr(field, "MergeFrom"):
            field.MergeFrom(value)
        else:
            setattr(target, descriptor.name, value)


def _add_tensors(
    graph: onnx.GraphProto, imported: ImportedGraph, used: set[str], undeclared: set[str]
) -> None:
    """Add the rewriter's constants, and the types that it wrote to its tensors."""
    present = {tensor.name for tensor in graph.initializer}
    present |= {sparse.values.name for sparse in graph.sparse_initializer}
    present |= {value.name for value in graph.input}
    for name, tensor in imported.graph.tensors().items():
        if isinstance(tensor, gs.Constant) and name in used and name not in present:
            graph.initializer.append(numpy_helper.from_array(constant_values(tensor), name))
        elif name in undeclared and _is_typed(tensor):
            graph.value_info.append(
                onnx.helper.make_tensor_value_info(
                    name, _without_numpy_type(tensor.dtype), tensor.shape
                )
            )


def _is_typed(tensor: gs.Tensor) -> bool:
    """Whether the rewriter wrote a type and shape that the original didn't declare."""
    return (
        isinstance(tensor, gs.Variable)
        and tensor.dtype is not None
        and tensor.shape is not None
        and all(isinstance(dim, str) or (dim is not None and dim > 0) for dim in tensor.shape)
    )
