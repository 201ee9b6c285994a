"""Optimization profiles: which shapes of its dynamic inputs an engine accepts.

Shapes are given per profile as up to three mappings (smallest, usual, largest). What is
left out is filled in as trtexec fills it in; dimensions of the same name have the same
size, so one input's shape often says those of the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, TensorShapeProto

from stof_onnx.accuracy.domains import graph_inputs
from stof_onnx.accuracy.shapes import Sizing, SymbolicShapes
from stof_onnx.ir.errors import InputError
from stof_onnx.ir.shapes import format_shape

GivenShapes = Mapping[str, Sequence[int]]

_KINDS = ("min", "opt", "max")
# Which of the others stands in for a missing kind, the first one that there is (trtexec's rule).
_STAND_INS = {"min": ("opt", "max"), "opt": ("max", "min"), "max": ("opt", "min")}
# Of the example in the error message.
_EXAMPLE_SIZES = {"min": Sizing(1, 1), "opt": Sizing(4, 128), "max": Sizing(8, 512)}


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input that an engine accepts.

    Attributes:
        minimum: smallest size of each axis.
        optimum: the shape that TensorRT optimizes for.
        maximum: largest size of each axis.
    """

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


OptimizationProfile = dict[str, ShapeRange]


def optimization_profiles(
    model: ModelProto,
    min_shapes: Sequence[GivenShapes] = (),
    opt_shapes: Sequence[GivenShapes] = (),
    max_shapes: Sequence[GivenShapes] = (),
    *,
    command: str = "stof-onnx build MODEL -o ENGINE",
) -> tuple[OptimizationProfile, ...]:
    """The profiles of an engine.

    Args:
        model: the ONNX model.
        min_shapes: smallest shapes by input name, one mapping for each profile.
        opt_shapes: shapes to optimize for, likewise.
        max_shapes: largest shapes, likewise.
        command: what the example in an error message starts with.

    Returns:
        A range for each dynamic input in each profile; no profile if there is no dynamic input.

    Raises:
        InputError: an unknown input, a shape that contradicts the model or another shape, a
            dynamic input without a shape, or min <= opt <= max violated.
    """
    given = dict(zip(_KINDS, (min_shapes, opt_shapes, max_shapes), strict=True))
    count = max(map(len, given.values()))
    for kind, shapes in given.items():
        if shapes and len(shapes) != count:
            raise InputError(
                f"--{kind}-shapes is given {len(shapes)} times, another one {count} times",
                "each that is used once for each optimization profile",
            )
    skeleton = _inputs_only(model)
    dynamic = _dynamic_inputs(skeleton)
    if dynamic and not count:
        raise _missing(skeleton, dynamic, "", command)
    profiles = tuple(
        _profile(
            skeleton,
            {kind: shapes[number] for kind, shapes in given.items() if shapes},
            f" in profile {number}" if count > 1 else "",
            command,
        )
        for number in range(count)
    )
    return profiles if dynamic else ()


def _inputs_only(model: ModelProto) -> ModelProto:
    """A model of the same inputs whose dynamic dimensions all have names.

    Unlike the check, which may choose sizes, a build mustn't take two unnamed dimensions
    for the same one.
    """
    skeleton = ModelProto()
    for value in graph_inputs(model):
        copy = skeleton.graph.input.add()
        copy.CopyFrom(value)
        for axis, dim in enumerate(copy.type.tensor_type.shape.dim):
            if not (_is_static(dim) or dim.dim_param):
                dim.dim_param = f"{value.name}[{axis}]"
    return skeleton


def _is_static(dim: TensorShapeProto.Dimension) -> bool:
    return dim.HasField("dim_value") and dim.dim_value > 0


def _dynamic_inputs(skeleton: ModelProto) -> list[str]:
    return [
        value.name
        for value in skeleton.graph.input
        if not all(_is_static(dim) for dim in value.type.tensor_type.shape.dim)
    ]


def _profile(
    skeleton: ModelProto, given: Mapping[str, GivenShapes], where: str, command: str
) -> OptimizationProfile:
    resolved = {
        kind: _resolve(skeleton, shapes, f" of --{kind}-shapes{where}", command)
        for kind, shapes in given.items()
    }
    for kind in _KINDS:
        if kind not in resolved:
            resolved[kind] = next(resolved[k] for k in _STAND_INS[kind] if k in given)
    profile = {}
    for name in _dynamic_inputs(skeleton):
        shapes = ShapeRange(*(resolved[kind][name] for kind in _KINDS))
        _require_order(name, shapes, where)
        profile[name] = shapes
    return profile


def _resolve(
    skeleton: ModelProto, given: GivenShapes, where: str, command: str
) -> dict[str, tuple[int, ...]]:
    """The shape of each input, from those given for some of them."""
    names = [value.name for value in skeleton.graph.input]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise InputError(
                f"the model has no input '{name}'",
                f"one of {SymbolicShapes(skeleton).describe()}",
                f"did you mean '{close[0]}'?" if close else "correct the shapes",
            )
    symbolic = SymbolicShapes(skeleton, given)
    # What depends on the size of a free dimension is what nobody gave a shape for.
    one, other = (symbolic.resolve(dict.fromkeys(symbolic.free, size)) for size in (1, 1009))
    missing = [name for name in names if one[name] != other[name]]
    if missing:
        raise _missing(skeleton, missing, where, command)
    return one


def _missing(skeleton: ModelProto, names: Sequence[str], where: str, command: str) -> InputError:
    symbolic = SymbolicShapes(skeleton)
    example = ""
    for kind, sizing in _EXAMPLE_SIZES.items():
        shapes = symbolic.resolve(symbolic.sizes(sizing))
        texts = (f"{name}:{format_shape(shapes[name])}" for name in _dynamic_inputs(skeleton))
        example += f" --{kind}-shapes {' '.join(texts)}"
    listed = ", ".join(f"'{name}'" for name in names)
    plural = "s" if len(names) > 1 else ""
    return InputError(
        f"dynamic input{plural} {listed} of the model {'have' if plural else 'has'} no shape"
        + where.replace(" of ", " in ", 1),
        f"shapes for {symbolic.describe()}",
        f"e.g. `{command}{example}`",
    )


def _require_order(name: str, shapes: ShapeRange, where: str) -> None:
    sizes = zip(shapes.minimum, shapes.optimum, shapes.maximum, strict=True)
    for axis, (low, usual, high) in enumerate(sizes):
        if not low <= usual <= high:
            raise InputError(
                f"input '{name}'{where} has sizes min {low}, opt {usual}, max {high}"
                f" in axis {axis}",
                "min <= opt <= max",
                "correct the shapes",
            )
