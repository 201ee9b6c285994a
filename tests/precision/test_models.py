"""Every exported test model, lowered: its interface, its types, its masks."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from stof_onnx.precision.convert import Conversion, convert
from stof_onnx.precision.element_types import element_types
from stof_onnx.precision.target import PRECISIONS, Precision
from stof_onnx.rewriter.rewrite import FusedBlock, Rewrite, rewrite
from tests.precision.graphs import double_casts, types_of

MODELS = Path(__file__).parents[1] / "models"
MANIFEST = json.loads((MODELS / "manifest.json").read_text())
FILES = sorted(name for name in MANIFEST if MANIFEST[name]["dtype"] == "float32")
HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_KEPT = ("Softmax", "LayerNormalization", "ReduceMean", "Pow", "Sqrt", "Cos", "Sin")


@pytest.fixture(params=PRECISIONS.values(), ids=lambda precision: precision.short)
def precision(request) -> Precision:
    return request.param


@functools.cache
def original(name: str) -> onnx.ModelProto:
    return onnx.load(MODELS / name)


@functools.cache
def lowered(name: str, precision: Precision) -> Conversion:
    return convert(original(name), precision)


@functools.cache
def rewritten(name: str, precision: Precision | None) -> Rewrite:
    model = original(name) if precision is None else lowered(name, precision).model
    return rewrite(model)


@pytest.mark.parametrize("name", FILES)
def test_the_result_is_valid_and_the_original_untouched(name, precision):
    before = (MODELS / name).read_bytes()
    result = lowered(name, precision).model
    onnx.checker.check_model(result)
    assert original(name) == onnx.load_model_from_string(before)


@pytest.mark.parametrize("name", FILES)
def test_inputs_and_outputs_stay_as_they_are(name, precision):
    result, source = lowered(name, precision).model, original(name)
    assert list(result.graph.input) == list(source.graph.input)
    assert list(result.graph.output) == list(source.graph.output)


@pytest.mark.parametrize("name", FILES)
def test_products_are_lowered_and_sensitive_operators_are_not(name, precision):
    result = lowered(name, precision).model
    assert set(element_types(result).values()) & HALVES == {precision.elem_type}
    for op_type in _KEPT:
        assert types_of(result, op_type) <= {TensorProto.FLOAT}
    assert precision.elem_type in types_of(result, "MatMul") | types_of(result, "Gemm")


@pytest.mark.parametrize("name", FILES)
def test_weights_take_half_the_space(name, precision):
    size = lowered(name, precision).model.ByteSize()
    assert size < 0.75 * original(name).ByteSize()


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_cast_to_and_fro(name, precision):
    assert double_casts(lowered(name, precision).model) == []


@pytest.mark.parametrize("name", FILES)
def test_the_same_masks_are_found(name, precision):
    def programs(done: Rewrite) -> list[str]:
        return [
            block.attributes.mask.to_json() if isinstance(block, FusedBlock) else "refused"
            for block in done.blocks
        ]

    assert programs(rewritten(name, precision)) == programs(rewritten(name, None))


@pytest.mark.parametrize("name", FILES)
def test_attention_runs_in_the_lowered_type(name, precision):
    fused = [b for b in rewritten(name, precision).blocks if isinstance(b, FusedBlock)]
    assert {block.attributes.dtype for block in fused} <= {precision.name}
    # Masks meet the scores in float32, so what a row without keys yields stays the same.
    masked = [block.attributes for block in fused if not block.attributes.mask.is_empty]
    assert {record.score_dtype for record in masked} <= {"float32"}
