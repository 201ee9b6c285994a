"""`optimize` with a lower precision: what is measured, refused and written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from stof_onnx import api
from stof_onnx.accuracy import check
from stof_onnx.cli import main
from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import CheckFailedError, InputError, MissingDependencyError
from stof_onnx.precision import lower
from stof_onnx.precision.target import PRECISIONS, PrecisionName
from stof_onnx.progress import NullProgress
from tests.precision.graphs import model, random

MODELS = Path(__file__).parents[1] / "models"
SHAPES = {"input_ids": [2, 17]}
# What the type's rounding may change in two layers: 11 and 8 bits, at most some 8 steps.
MOST = {"float16": 4e-3, "bfloat16": 3e-2}
both = pytest.mark.parametrize("precision", PRECISIONS)


@both
@pytest.mark.parametrize("name", ["bert_sdpa_dynamo", "gpt2_eager_torchscript"])
def test_blocks_are_fused_checked_and_measured(name, precision: PrecisionName):
    result = api.optimize(
        MODELS / f"{name}.onnx", precision=precision, kernels=False, input_shapes=SHAPES
    )
    report = result.report
    assert (report.fused, report.refused) == (2, 0)
    assert report.check is not None
    assert report.check["passed"]
    assert report.precision is not None
    (effect,) = report.precision.effects
    assert effect.output == "last_hidden_state"
    assert 1e-4 < effect.rel_l2 < MOST[precision]
    assert effect.max_abs > 0
    # The report's table says it; a note would be for a large effect.
    assert not any("relative L2" in note for note in report.notes)
    onnx.checker.check_model(expand_model(result.model), full_check=True)


def test_without_a_check_nothing_is_measured_and_the_notes_say_so():
    report = api.optimize(
        MODELS / "sliding_window_sdpa_dynamo.onnx", precision="float16", kernels=False, check=False
    ).report
    assert report.precision is not None
    assert report.precision.effects == ()
    assert "what float16 changes was not measured" in report.notes


def test_a_model_without_attention_is_lowered_all_the_same():
    result = api.optimize(MODELS / "mlp_dynamo.onnx", precision="float16", kernels=False)
    assert TensorProto.FLOAT16 in {t.data_type for t in result.model.graph.initializer}
    assert "nothing was fused: the result is the lowered model itself" in result.report.notes
    assert result.report.precision is not None
    assert len(result.report.precision.effects) == 1


LARGE = "g (float[N, 16] x) => (float[N, 16] y) { a = MatMul(x, w) b = MatMul(a, w) y = Tanh(b) }"
OVERFLOWING = "g (float[N, 16] x) => (float[N, 16] y) { a = MatMul(x, w) y = MatMul(a, w) }"


def test_an_output_that_overflows_is_an_error(tmp_path):
    built = model(OVERFLOWING, w=1000 * random(16, 16))
    with pytest.raises(CheckFailedError, match="in float16, output 'y' overflows") as caught:
        api.optimize(built, tmp_path / "out.onnx", precision="float16", kernels=False)
    assert "use --bf16" in str(caught.value)
    assert not list(tmp_path.iterdir())
    api.optimize(built, tmp_path / "out.onnx", precision="bfloat16", kernels=False)


def test_an_overflow_on_the_way_that_does_not_show_is_none():
    built = model(LARGE, w=1000 * random(16, 16))
    report = api.optimize(built, precision="float16", kernels=False).report
    assert report.precision is not None
    assert np.isfinite(report.precision.effects[0].max_abs)


@both
def test_a_wrong_rewrite_is_found_though_rounding_would_hide_it(precision: PrecisionName):
    source = onnx.load(MODELS / "bert_sdpa_dynamo.onnx")
    lowered = lower(source, precision, autocast=False, input_shapes=None, progress=NullProgress())
    wrong = api.optimize(source, precision=precision, kernels=False, check=False).model
    for node in wrong.graph.node:
        for attribute in node.attribute:
            if node.domain == "stof" and attribute.name == "scale":
                attribute.f *= 1.02
    found = check(lowered.twin(lowered.model), lowered.twin(wrong), input_shapes=SHAPES)
    assert not found.passed
    assert found.first_departure is not None


def test_a_lowered_model_is_not_lowered_again():
    with pytest.raises(InputError, match="its precision was chosen before"):
        api.optimize(MODELS / "bert_fp16_sdpa_dynamo.onnx", precision="bfloat16", kernels=False)


def test_autocast_that_is_not_installed_is_missed_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stof-onnx\[autocast\]'"):
        api.optimize("missing.onnx", precision="float16", autocast=True, kernels=False)


@both
def test_autocast_keeps_masks_too(precision: PrecisionName):
    pytest.importorskip("modelopt")
    report = api.optimize(
        MODELS / "bert_sdpa_dynamo.onnx",
        precision=precision,
        autocast=True,
        kernels=False,
        input_shapes=SHAPES,
    ).report
    assert [entry.mask.empty_row for entry in report.attention if entry.mask] == ["mean"] * 2
    assert report.precision is not None
    assert report.precision.tool == "AutoCast"
    assert report.precision.effects[0].rel_l2 < MOST[precision]


# ------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(("option", "name"), [("--fp16", "float16"), ("--bf16", "bfloat16")])
def test_the_command_writes_model_and_report(tmp_path, capsys, option, name):
    source, out = MODELS / "causal_window_sdpa_dynamo.onnx", tmp_path / "out.onnx"
    report = tmp_path / "report.json"
    code = main(
        ["optimize", str(source), "-o", str(out), "--no-kernels", option, "--report", str(report)]
    )
    assert code == 0
    assert f"lowered to {name}" in capsys.readouterr().out
    written = onnx.load(out)
    (node,) = (node for node in written.graph.node if node.domain == "stof")
    assert name.encode() in [a.s for a in node.attribute if a.name == "dtype"]
    data = json.loads(report.read_text())["precision"]
    assert data["precision"] == name
    assert data["lowered"] > 0
    assert [effect["output"] for effect in data["effects"]] == [written.graph.output[0].name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fp16", "--bf16"], "not allowed with argument --fp16"),
        (["--autocast"], "--autocast without a type to lower to; wanted --fp16 or --bf16"),
    ],
)
def test_options_that_contradict_each_other(tmp_path, capsys, options, message):
    source = str(MODELS / "mlp_dynamo.onnx")
    try:
        code = main(["optimize", source, "-o", str(tmp_path / "out.onnx"), *options])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_named():
    with pytest.raises(InputError, match="one of"):
        api.optimize(MODELS / "mlp_dynamo.onnx", precision="fp16", kernels=False)
