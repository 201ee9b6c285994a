"""Lower a float32 model to float16 or bfloat16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper

from stof_onnx.ir.errors import InputError
from stof_onnx.model_io import first_line
from stof_onnx.precision.casts import CastPlacer
from stof_onnx.precision.element_types import all_graphs, element_types, infer, is_standard
from stof_onnx.precision.selection import select
from stof_onnx.precision.shell import shell
from stof_onnx.precision.target import BFLOAT16, Precision

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CONSTANT_TYPES = {"value": None, "value_float": np.float32, "value_floats": np.float32}
# Attributes that hold the type of a result.
_TYPE_ATTRIBUTES = ("to", "dtype")
_ZERO = numpy_helper.from_array(np.zeros(1, np.float32))


@dataclass(frozen=True)
class Conversion:
    """A model in two precisions.

    Attributes:
        model: float32 at its inputs and outputs.
        lowered: operators that compute in the 16-bit type.
        kept: operators that stay in float32, by reason.
    """

    model: ModelProto
    lowered: int
    kept: Mapping[str, int] = field(default_factory=dict)


def require_float32(model: ModelProto, precision: Precision) -> None:
    """Check that there is something to lower and that the model hasn't been lowered before.

    Single operators of 16 bits inside a float32 model are no objection; they stay as they are.

    Raises:
        InputError: otherwise.
    """
    interface = (*model.graph.input, *model.graph.output)
    own = {v.type.tensor_type.elem_type for v in interface}
    own |= {t.data_type for graph in all_graphs(model.graph) for t in graph.initializer}
    half = next((elem_type for elem_type in _HALVES if elem_type in own), None)
    if half is not None:
        name = TensorProto.DataType.Name(half).lower()
        raise InputError(
            f"the model has {name} weights, inputs or outputs, so its precision was chosen before",
            f"a float32 model to lower to {precision.name}",
            f"leave out --{precision.short}, or export the model in float32",
        )
    if TensorProto.FLOAT not in element_types(model).values():
        raise InputError(
            "the model has no float32 tensors",
            f"a float32 model to lower to {precision.name}",
            f"leave out --{precision.short}",
        )


def convert(model: ModelProto, precision: Precision) -> Conversion:
    """Lower a model, keeping softmax, normalisations, masks and positions in float32.

    Where each type begins and ends is decided in :mod:`stof_onnx.precision.selection` and written
    by :mod:`stof_onnx.precision.casts`; weights and attributes are converted by ONNX Runtime's
    float16 tool.

    Args:
        model: a float32 model; not changed.
        precision: what to lower it to.

    Returns:
        The model with float32 inputs and outputs. Its local functions are inlined.

    Raises:
        InputError: the model isn't float32, or contradicts ONNX's rules in a way that matters.
    """
    require_float32(model, precision)
    source = prepared(model)
    selection = select(source, precision)
    placed = CastPlacer(source, selection, precision)
    result = shell(source)
    result.graph.node.extend(placed.nodes)
    _add_value_info(result, source, placed, precision)
    weights = []
    for tensor in (*source.graph.initializer, *placed.copies):
        if tensor.name in placed.initializers:
            weights.append(tensor)
        else:
            result.graph.initializer.append(tensor)
    _lower_nodes(result, set(placed.lowered), weights, precision)
    _keep_softmax(result)
    _require_consistent(source, result, precision)
    return Conversion(result, len(placed.lowered), dict(Counter(selection.kept.values())))


def prepared(model: ModelProto) -> ModelProto:
    """The model without local functions and, in the main graph, without float32 Constant nodes.

    It is ``model`` itself where there are none.
    """
    return _without_constant_nodes(_inlined(model))


# ------------------------------------------------------------------------------- preparation


def _inlined(model: ModelProto) -> ModelProto:
    """The model with its functions' bodies in the graph; weights take no part in it."""
    if not model.functions:
        return model
    light = shell(model)
    light.functions.extend(model.functions)
    light.graph.node.extend(model.graph.node)
    light.graph.value_info.extend(model.graph.value_info)
    result = inliner.inline_local_functions(light)
    result.graph.initializer.extend(model.graph.initializer)
    return result


def _without_constant_nodes(model: ModelProto) -> ModelProto:
    """The model with the float32 numbers of its main graph's Constant nodes as initializers."""
    if not any(_constant(node) is not None for node in model.graph.node):
        return model
    result = shell(model)
    result.graph.value_info.extend(model.graph.value_info)
    result.graph.initializer.extend(model.graph.initializer)
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        tensor = _constant(node)
        if tensor is None or node.output[0] in outputs:
            result.graph.node.append(node)
        else:
            result.graph.initializer.append(tensor)
    return result


def _constant(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node of float32 numbers, under the name of its output."""
    if node.op_type != "Constant" or node.attribute[0].name not in _CONSTANT_TYPES:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        if attribute.t.data_type != TensorProto.FLOAT:
            return None
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
    return numpy_helper.from_array(np.asarray(numbers, np.float32), node.output[0])


# -------------------------------------------------------------------------------- conversion


def _add_value_info(
    result: ModelProto, source: ModelProto, placed: CastPlacer, precision: Precision
) -> None:
    """What the model said about its inner tensors, with the lowered ones' new type."""
    weights = {tensor.name for tensor in source.graph.initializer}
    for value in source.graph.value_info:
        if value.name in weights:
            continue
        added = result.graph.value_info.add()
        added.CopyFrom(value)
        if value.name in placed.tensors:
            added.type.tensor_type.elem_type = precision.elem_type
    known = {value.name for value in result.graph.value_info}
    # ONNX infers nothing for operators that aren't its own.
    for name in sorted(placed.tensors - known):
        result.graph.value_info.append(
            helper.make_tensor_value_info(name, precision.elem_type, None)
        )


def _lower_nodes(
    model: ModelProto, lowered: set[int], weights: Iterable[TensorProto], precision: Precision
) -> None:
    """Let ONNX Runtime's tool convert the lowered nodes' weights and attributes.

    It is given operators and weights alone. With the types of tensors it would put Casts of its
    own around every node in float32, also between two of them.

    Args:
        model: gets the weights; its lowered nodes' attributes are changed.
        lowered: positions of the lowered nodes.
        weights: float32 ones that only lowered nodes read.
        precision: what to lower to.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    is_float16 = precision.elem_type == TensorProto.FLOAT16
    body = ModelProto()
    body.opset_import.extend(model.opset_import)
    body.graph.node.extend(model.graph.node)
    for number, node in enumerate(body.graph.node):
        node.name = str(number)  # the tool finds nodes by their names, which are optional
    if is_float16:
        body.graph.initializer.extend(weights)
    else:
        body.graph.initializer.extend(map(_bfloat16, weights))
    convert_float_to_float16(
        body,
        disable_shape_infer=True,
        op_block_list=[],
        node_block_list=[
            n.name for number, n in enumerate(body.graph.node) if number not in lowered
        ],
    )
    model.graph.initializer.extend(body.graph.initializer)
    for original, node in zip(model.graph.node, body.graph.node, strict=True):
        if not is_float16:
            _retype(original, node)
        node.name = original.name
        original.CopyFrom(node)


def _keep_softmax(model: ModelProto) -> None:
    """The softmax inside ONNX's Attention, in float32 unless the model says otherwise."""
    for node in model.graph.node:
        is_attention = node.op_type == "Attention" and is_standard(node)
        if is_attention and all(a.name != "softmax_precision" for a in node.attribute):
            node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))


def _retype(original: NodeProto, node: NodeProto) -> None:
    """Make bfloat16 of what the tool made float16 in a node's attributes."""
    before = {attribute.name: attribute for attribute in original.attribute}
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.BFLOAT16
        elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
            # What the original doesn't have is a default, which is 0.
            exact = before[attribute.name].t if attribute.name in before else _ZERO
            attribute.t.CopyFrom(_bfloat16(exact))


def _bfloat16(tensor: TensorProto) -> TensorProto:
    """A float32 tensor rounded to nearest, ties to even; finite numbers stay finite."""
    values = numpy_helper.to_array(tensor)
    largest = np.float32(BFLOAT16.largest)
    values = np.where(np.isfinite(values), np.clip(values, -largest, largest), values)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")
    return TensorProto(
        name=tensor.name,
        data_type=TensorProto.BFLOAT16,
        dims=tensor.dims,
        raw_data=rounded.tobytes(),
    )


def _require_consistent(source: ModelProto, result: ModelProto, precision: Precision) -> None:
    """Check the types of the result, where ONNX finds none wrong in the original."""
    try:
        infer(source, strict=True)
    except onnx.shape_inference.InferenceError:
        return
    try:
        infer(result, strict=True)
    except onnx.shape_inference.InferenceError as error:
        raise InputError(
            f"the model can't be lowered to {precision.name}: {first_line(error)}",
            next_step=f"leave out --{precision.short}, and please report this with the model",
        ) from error
