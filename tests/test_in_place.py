"""Models that are rewritten in place, which saves a copy of their weights, as other ones are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

import stof_onnx
from stof_onnx.model_io import load_model
from stof_onnx.rewriter.rewrite import rewrite

MODELS = sorted((Path(__file__).parent / "models").glob("*.onnx"))
BERT = Path(__file__).parent / "models" / "bert_sdpa_torchscript.onnx"


def _serialized(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_model_is_the_same_as_a_copy(path):
    model = load_model(path)
    before = _serialized(model)
    copied = rewrite(model)
    assert _serialized(model) == before
    in_place = rewrite(model, in_place=True)
    assert in_place.model is model
    assert in_place.is_changed == copied.is_changed == (_serialized(model) != before)
    assert _serialized(model) == _serialized(copied.model)
    # The node that some fields keep is another object, and looks the same.
    assert str(in_place.blocks) == str(copied.blocks)
    onnx.checker.check_model(model)


@pytest.mark.parametrize("path", [BERT, BERT.with_name("mlp_dynamo.onnx")], ids=["fused", "not"])
def test_optimize_reports_the_same_of_a_path(path, tmp_path):
    model = load_model(path)
    before = _serialized(model)
    copied = stof_onnx.optimize(model, check=False, kernels=False)
    assert _serialized(model) == before
    in_place = stof_onnx.optimize(path, tmp_path / "out.onnx", check=False, kernels=False)
    assert in_place.model == copied.model == load_model(tmp_path / "out.onnx")
    ignored = {"model": "", "seconds": {}, "notes": ()}
    reports = [dataclasses.replace(r.report, **ignored) for r in (in_place, copied)]
    assert reports[0] == reports[1]


def test_what_is_compared_with_its_original_is_not_rewritten_in_place(monkeypatch):
    asked = []

    def watched(*args, in_place: bool, **options):
        asked.append(in_place)
        return rewrite(*args, in_place=in_place, **options)

    monkeypatch.setattr("stof_onnx.api.rewrite", watched)
    for options in ({}, {"precision": "float16", "check": False}, {"check": False}):
        stof_onnx.optimize(BERT, kernels=False, **options)
    assert asked == [False, False, True]
