"""Small models as text, and what to ask of a lowered one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from stof_onnx.precision.element_types import element_types
from stof_onnx.precision.target import BFLOAT16, FLOAT16

PRECISIONS = [FLOAT16, BFLOAT16]
OPSET = 18


def model(text: str, opset: int = OPSET, **weights: np.ndarray) -> ModelProto:
    """A model from the text of its graph, with the given initializers."""
    graph = parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    built = helper.make_model(graph, opset_imports=domains, ir_version=10)
    onnx.checker.check_model(built)
    return built


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def nodes(lowered: ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in lowered.graph.node if node.op_type == op_type]


def types_of(lowered: ModelProto, op_type: str) -> set[int]:
    """The float types that the operators of one type make."""
    types = element_types(lowered)
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    return {types[n] for node in nodes(lowered, op_type) for n in node.output if n} & floats


def double_casts(lowered: ModelProto) -> list[str]:
    """Casts back to float32 of what was cast from it: a needless rounding."""
    types = element_types(lowered)
    made_by = {name: node for node in lowered.graph.node for name in node.output}
    found = []
    for node in nodes(lowered, "Cast"):
        before = made_by.get(node.input[0])
        if before is None or before.op_type != "Cast":
            continue
        wide, narrow, result = (types[n] for n in (before.input[0], node.input[0], node.output[0]))
        if wide == result == TensorProto.FLOAT and narrow != wide:
            found.append(node.name)
    return found
