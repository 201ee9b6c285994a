"""The commands on real files: results, output files, and what bad input gets."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil

import onnx
import pytest

from stof_onnx import api
from stof_onnx.ir.errors import CheckFailedError, MissingDependencyError


@pytest.fixture
def folder(tmp_path, bert, monkeypatch):
    """An own directory, the working directory, with one good model and many bad ones."""
    shutil.copy(bert, tmp_path / "bert.onnx")
    content = bert.read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link.onnx").symlink_to("bert.onnx")
    model = onnx.load(bert)
    onnx.save(model, tmp_path / "external.onnx", save_as_external_data=True, location="weights")
    (tmp_path / "weights").unlink()
    for opset in model.opset_import:
        opset.version = 7 if opset.domain in ("", "ai.onnx") else opset.version
    onnx.save(model, tmp_path / "opset7.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    """Names and contents of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


BAD_MODELS = {
    "missing.onnx": "'missing.onnx' does not exist",
    "empty.onnx": "'empty.onnx' is empty",
    "text.onnx": "'text.onnx' is not an ONNX file",
    "truncated.onnx": "'truncated.onnx' is truncated",
    "directory": "'directory' is a directory",
    "external.onnx": "weights",
    "opset7.onnx": "opset 7",
}


@pytest.mark.parametrize(("model", "message"), BAD_MODELS.items())
@pytest.mark.parametrize(
    "command", [["inspect"], ["optimize", "-o", "out.onnx"], ["expand", "-o", "out.onnx"]]
)
def test_bad_models(run_cli, folder, command, model, message):
    before = files(folder)
    code, out, err = run_cli(*command, model)
    assert (code, out) == (2, "")
    assert err.startswith("stof-onnx: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert files(folder) == before


@pytest.mark.parametrize(("model", "message"), BAD_MODELS.items())
@pytest.mark.parametrize("position", [0, 1])
def test_bad_models_of_check(run_cli, folder, position, model, message):
    models = ["bert.onnx", "bert.onnx"]
    models[position] = model
    code, out, err = run_cli("check", *models)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out.onnx", "--target", "sm_12"], "unknown target 'sm_12'"),
        (["-o", "out.onnx", "--target", "sm_90", "--target", "x"], "unknown target 'x'"),
        (["-o", "out.onnx", "--input-shapes", "input_ids"], "input_ids"),
        (["-o", "out.onnx", "--input-shapes", "input_ids:[2,x]"], "input_ids"),
        (["-o", "out.onnx", "--input-shapes", "nothing:[2,8]"], "nothing"),
        (["-o", "out.onnx", "--input-shapes", "input_ids:[2,8,3]"], "input_ids"),
        (
            ["-o", "out.onnx", "--input-shapes", "input_ids:[2,8]", "attention_mask:[2,9]"],
            "attention_mask",
        ),
        (["-o", "out.onnx", "--target", "H100"], "did you mean 'sm_90'?"),
        (["-o", "-"], "can't be written to stdout; a file named - is written as ./-"),
        (["-o", "out.onnx", "--report", "-"], "can't be written to stdout"),
        (["-o", "/dev/null"], "output '/dev/null' is not a regular file"),
        (["-o", "x" * 300], "is too long for its file system"),
        (["-o", "bert.onnx"], "same file as input"),
        (["-o", "link.onnx"], "same file as input"),
        (["-o", "./directory/../bert.onnx"], "same file as input"),
        (["-o", "directory"], "'directory' is a directory"),
        (["-o", "nowhere/out.onnx"], "nowhere' does not exist"),
        (["-o", "/proc/out.onnx"], "/proc"),
        (["-o", "out.onnx", "--report", "out.onnx"], "report 'out.onnx' is the same file"),
        (["-o", "out.onnx", "--report", "bert.onnx"], "report 'bert.onnx' is the same file"),
        (["-o", "out.onnx", "--report", "nowhere/r.json"], "nowhere' does not exist"),
    ],
)
def test_bad_options_of_optimize(run_cli, folder, options, message):
    before = files(folder)
    code, out, err = run_cli("optimize", "bert.onnx", *options)
    assert (code, out) == (2, "")
    assert err.startswith("stof-onnx: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert files(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission(run_cli, folder):
    (folder / "directory").chmod(0o500)
    code, _, err = run_cli("optimize", "bert.onnx", "-o", "directory/out.onnx")
    assert code == 2
    assert "can't be written" in err


def test_optimize_writes_the_model_and_says_so(run_cli, folder):
    code, out, err = run_cli(
        "optimize", "bert.onnx", "-o", "out.onnx", "--target", "sm_90", "--report", "report.json"
    )
    assert (code, err) == (0, "")
    report = json.loads((folder / "report.json").read_text())
    assert report["fused"] == 2
    assert report["targets"] == ["sm_90"]
    assert report["check"]["passed"] is True
    assert report["kind"] == "optimization"
    assert f"attention   {report['fused']} blocks found, {report['fused']} fused" in out
    assert "check       passed, " in out
    assert "wrote       out.onnx (" in out
    assert "wrote       report.json (" in out
    types = [node.op_type for node in onnx.load(folder / "out.onnx").graph.node]
    assert types.count("StofMaskedAttention") == report["fused"]
    assert "Softmax" not in types


def test_optimize_without_check(run_cli, folder, monkeypatch):
    code, out, _ = run_cli("optimize", "bert.onnx", "-o", "out.onnx", "--no-check")
    assert code == 0
    assert "check  " not in out
    assert "note        the result was not compared with the original\n" in out
    assert (folder / "out.onnx").exists()


def test_optimize_without_kernels(run_cli, folder, monkeypatch):
    monkeypatch.setattr(api, "detect_compute_capabilities", lambda: [(7, 5)])
    code, out, err = run_cli("optimize", "bert.onnx", "-o", "out.onnx", "--no-kernels", "-v")
    assert (code, err) == (0, "")
    assert "no kernels were compiled: the result can be checked and expanded, not run" in out
    assert "targets " not in out
    assert "cache " not in out
    assert "compared with the original" not in out


def test_portable_code_comes_with_what_it_takes(run_cli, folder):
    arguments = ["optimize", "bert.onnx", "-o", "out.onnx", "--no-check", "--target"]
    out = run_cli(*arguments, "portable").out
    version = "\\.".join(importlib.metadata.version("nvidia-cuda-nvrtc").split(".")[:2])
    note = rf"portable PTX of NVRTC {version} .* a driver for CUDA {version} or newer; name the GPU"
    assert re.search(note, out)
    assert "PTX" not in run_cli(*arguments, "sm_90").out


def test_verbose_tells_cached_from_compiled_kernels(run_cli, folder, monkeypatch):
    monkeypatch.setenv("STOF_ONNX_CACHE", str(folder / "cache"))
    arguments = ["optimize", "bert.onnx", "-o", "out.onnx", "--no-check", "--target", "sm_90"]
    for found, compiled in ((0, 1), (1, 0)):
        out = run_cli(*arguments, "-v").out
        assert f"cache       {found} kernels from {folder / 'cache'}, {compiled} compiled\n" in out
    assert "cache " not in run_cli(*arguments).out


@pytest.mark.parametrize("options", [[], ["-v"]])
def test_a_cache_that_cannot_be_used_is_one_line(run_cli, folder, monkeypatch, options):
    monkeypatch.setenv("STOF_ONNX_CACHE", str(folder / "bert.onnx"))
    arguments = ["optimize", "bert.onnx", "-o", "out.onnx", "--no-check", "--target", "sm_90"]
    code, _, err = run_cli(*arguments, "--target", "sm_80", *options)
    assert code == 0
    assert err.startswith(f"stof-onnx: note: kernels can't be cached in {folder / 'bert.onnx'}")
    assert err.count("\n") == 1


def test_only_verbose_lists_every_entry_that_cannot_be_used(run_cli, folder, monkeypatch):
    monkeypatch.setenv("STOF_ONNX_CACHE", str(folder / "cache"))
    arguments = ["optimize", "bert.onnx", "-o", "out.onnx", "--no-check", "--target", "sm_90"]
    arguments += ["--target", "sm_80"]
    for options, lines in (([], 1), (["-v"], 2)):
        assert run_cli(*arguments).code == 0
        for entry in (folder / "cache").rglob("*.kernel"):
            entry.write_bytes(b"damaged")
        err = run_cli(*arguments, *options).err
        assert err.count("stof-onnx: note: cached kernel ") == err.count("\n") == lines


def test_a_file_named_like_stdout(run_cli, folder):
    assert run_cli("optimize", "bert.onnx", "-o", "./-", "--no-kernels", "--no-check").code == 0
    assert (folder / "-").exists()


def test_a_failed_check_writes_nothing(run_cli, folder, monkeypatch):
    def fail(*arguments, **options):
        raise CheckFailedError("node 'stof_0' departs from the original")

    monkeypatch.setattr(api, "optimize", fail)
    before = files(folder)
    outcome = run_cli("optimize", "bert.onnx", "-o", "out.onnx", "--report", "report.json")
    assert outcome == (1, "", "stof-onnx: error: node 'stof_0' departs from the original\n")
    assert files(folder) == before


def test_a_model_without_attention_is_no_error(run_cli, folder, bert):
    shutil.copy(bert.with_name("mlp_dynamo.onnx"), folder / "mlp.onnx")
    code, out, err = run_cli("optimize", "mlp.onnx", "-o", "out.onnx")
    assert (code, err) == (0, "")
    assert "attention   none found" in out
    assert "note        nothing was fused: a copy of the model was written\n" in out
    assert "targets" not in out
    assert onnx.load(folder / "out.onnx") == onnx.load(folder / "mlp.onnx")


def test_inspect_json(run_cli, folder):
    before = files(folder)
    code, out, err = run_cli("inspect", "bert.onnx", "--json")
    assert (code, err) == (0, "")
    blocks = json.loads(out)["attention"]
    assert [block["status"] for block in blocks] == ["fused", "fused"]
    for block in blocks:
        assert block["num_heads"] == 2
        assert block["head_dim"] == 32
        assert block["mask"]["kind"] == "padding"
        assert {"name", "reason"} <= block.keys()
    assert files(folder) == before


def test_inspect_text(run_cli, folder):
    code, out, err = run_cli("inspect", "bert.onnx")
    assert (code, err) == (0, "")
    # What was not done must not look as if it had been.
    before, after = re.search(r"^operators   (\d+) -> (\d+) if optimized$", out, re.M).groups()
    assert int(before) == len(onnx.load("bert.onnx").graph.node) > 2 * int(after)
    assert "attention   2 blocks found, 2 would be fused, 0 refused\n" in out
    details = run_cli("inspect", "bert.onnx", "-v").out
    assert "19 nodes would become one" in details
    assert "became" not in details


def test_expand_gives_standard_operators(run_cli, folder):
    assert run_cli("optimize", "bert.onnx", "-o", "out.onnx", "--no-check").code == 0
    code, out, err = run_cli("expand", "out.onnx", "-o", "plain.onnx")
    assert (code, err) == (0, "")
    assert "wrote       plain.onnx (" in out
    plain = onnx.load(folder / "plain.onnx")
    assert {node.domain for node in plain.graph.node} <= {"", "ai.onnx"}


def test_expand_refuses_to_overwrite_its_input(run_cli, folder):
    before = files(folder)
    code, out, err = run_cli("expand", "bert.onnx", "-o", "bert.onnx")
    assert (code, out) == (2, "")
    assert "same file as input" in err
    assert files(folder) == before


def test_check_agrees(run_cli, folder):
    assert run_cli("optimize", "bert.onnx", "-o", "out.onnx", "--no-check").code == 0
    code, out, err = run_cli("check", "bert.onnx", "out.onnx")
    assert (code, err) == (0, "")
    assert "check       passed, " in out


@pytest.mark.parametrize(
    ("models", "next_step"),
    [
        (["out.onnx", "bert.onnx"], "swap the two"),
        (["out.onnx", "out.onnx"], "give the model that the second was made from"),
    ],
)
def test_check_wants_the_original_first(run_cli, folder, models, next_step):
    options = ["--no-check", "--no-kernels"]
    assert run_cli("optimize", "bert.onnx", "-o", "out.onnx", *options).code == 0
    code, out, err = run_cli("check", *models)
    assert (code, out) == (2, "")
    assert "the first model has stof nodes" in err
    assert next_step in err


@pytest.mark.parametrize("command", [["optimize", "-o", "out.onnx"], ["check", "broken.onnx"]])
def test_an_original_that_does_not_load_is_named_as_the_problem(run_cli, folder, command):
    model = onnx.load(folder / "bert.onnx")
    # A double beside floats: the checker lets it pass, as it does with half precision.
    bias = next(t for t in model.graph.initializer if len(t.dims) == 1 and t.data_type == 1)
    wider = onnx.numpy_helper.to_array(bias).astype("float64")
    bias.CopyFrom(onnx.numpy_helper.from_array(wider, bias.name))
    onnx.save(model, "broken.onnx")
    code, out, err = run_cli(*command, "broken.onnx")
    assert (code, out) == (2, "")
    assert "ONNX Runtime can't load the original model: " in err
    assert "the model as it was exported is the problem: export it again" in err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_check_differs(run_cli, folder, options):
    model = onnx.load(folder / "bert.onnx")
    bias = next(
        tensor
        for tensor in model.graph.initializer
        if len(tensor.dims) == 1 and tensor.data_type == onnx.TensorProto.FLOAT
    )
    changed = onnx.numpy_helper.to_array(bias) + 1
    bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
    onnx.save(model, folder / "other.onnx")
    code, out, err = run_cli("check", "bert.onnx", "other.onnx", *options)
    assert (code, err) == (1, "")
    if options:
        assert json.loads(out)["passed"] is False
    else:
        assert "check       failed, " in out


def test_check_obeys_tolerances(run_cli, folder):
    assert run_cli("optimize", "bert.onnx", "-o", "out.onnx", "--no-check").code == 0
    shapes = ["--input-shapes", "input_ids:[2,7]", "attention_mask:2x7"]
    code, out, _ = run_cli("check", "bert.onnx", "out.onnx", "--atol", "1", *shapes)
    assert code == 0
    assert "1 absolute" in out


def test_a_missing_compiler_is_known_before_the_work(monkeypatch):
    def missing():
        raise MissingDependencyError("NVRTC is not installed")

    def work(*arguments, **options):
        raise AssertionError("the model was read")

    monkeypatch.setattr(api, "find_nvrtc", missing)
    monkeypatch.setattr(api, "rewrite", work)
    with pytest.raises(MissingDependencyError):
        api.optimize(onnx.ModelProto(), targets=["sm_90"])
