"""Which operators take a 16-bit type, by their ONNX schema and by ONNX Runtime's lists."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import onnx
from onnx import NodeProto
from onnx.defs import OpSchema

from stof_onnx.ir.nesting import subgraphs
from stof_onnx.precision.element_types import is_standard
from stof_onnx.precision.target import Precision

# Of ONNX Runtime's own operators, those whose float inputs and outputs all have one type T that
# may be float16 or bfloat16.
_ONE_TYPE = frozenset(
    {
        "Attention",
        "BiasGelu",
        "FastGelu",
        "FusedMatMul",
        "Gelu",
        "GroupQueryAttention",
        "MultiHeadAttention",
        "QuickGelu",
        "RotaryEmbedding",
    }
)


def unsupported(node: NodeProto, opset: int, precision: Precision) -> str | None:
    """Why a node's float32 tensors can't all have a 16-bit type; None if they can.

    Args:
        node: of the main graph.
        opset: version of ONNX's own operators.
        precision: the type.
    """
    if any(True for _ in subgraphs(node)):
        return "holds a graph"
    if "Sequence" in node.op_type or "Optional" in node.op_type:
        return "what is in a sequence or optional value stays as it is"
    if not is_standard(node):
        known = node.domain == "com.microsoft" and node.op_type in _ONE_TYPE
        return None if known else "its types are unknown"
    if node.op_type in _blocked():
        return "on ONNX Runtime's list of operators that need float32"
    schema = _schema(node.op_type, opset)
    if schema is None:
        return "its types are unknown"
    wanted = f"tensor({precision.name})"
    for allowed in _allowed(node, schema):
        if "tensor(float)" in allowed and wanted not in allowed:
            return f"opset {opset} has no {precision.name} for it"
    return None


def _allowed(node: NodeProto, schema: OpSchema) -> Iterator[set[str]]:
    """The types that each input and output in use may have."""
    types = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for position, name in enumerate(names):
            if name:
                text = formals[min(position, len(formals) - 1)].type_str
                yield types.get(text, {text})


@functools.cache
def _schema(op_type: str, opset: int) -> OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None


@functools.cache
def _blocked() -> frozenset[str]:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    return frozenset(DEFAULT_OP_BLOCK_LIST)
