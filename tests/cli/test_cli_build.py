"""``stof-onnx build``: what it prints where, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
import pytest

from stof_onnx import plugin_library
from stof_onnx.engine import backends
from stof_onnx.rewriter.rewrite import rewrite


@pytest.fixture
def folder(tmp_path, bert, monkeypatch):
    """The working directory, with an optimized model, and two empty plugin libraries."""
    model = rewrite(onnx.load(bert)).model
    onnx.save(model, tmp_path / "planless.onnx")
    for node in model.graph.node:
        if node.domain == "stof":
            plan = onnx.helper.make_tensor(
                "plan", onnx.TensorProto.INT8, [8], b"STOFPLAN", raw=True
            )
            node.attribute.append(onnx.helper.make_attribute("plan", plan))
    onnx.save(model, tmp_path / "bert.onnx")
    for name in (plugin_library.FILE_NAME, plugin_library.AUTOLOAD_FILE_NAME):
        (tmp_path / name).touch()
    monkeypatch.setattr(plugin_library, "path", lambda: tmp_path / plugin_library.FILE_NAME)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SHAPES = ["--min-shapes", "input_ids:[1,1]", "--max-shapes", "input_ids:4x128"]


def test_print_commands_needs_nothing_installed(run_cli, folder, nothing_installed):
    before = files(folder)
    code, out, err = run_cli("build", "bert.onnx", "-o", "e", "--print-commands", *SHAPES)
    assert (code, err) == (0, "")
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == ["trtexec", "stof-onnx", "polygraphy", "polygraphy"]
    assert f"--onnx={folder / 'bert.onnx'}" in lines[0]
    assert "--optShapes=input_ids:4x128,attention_mask:4x128" in lines[0]
    assert files(folder) == before


def test_print_commands_as_json(run_cli, folder, nothing_installed):
    arguments = ["bert.onnx", "-o", "e", "--print-commands", "--json", *SHAPES]
    code, out, err = run_cli("build", *arguments)
    assert (code, err) == (0, "")
    commands = json.loads(out)["commands"]
    assert commands["trtexec"].startswith("trtexec --onnx=")
    assert len(commands["polygraphy"]) == 3


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_rtx_engine(run_cli, folder, options):
    pytest.importorskip("tensorrt_rtx_bindings")
    arguments = ["bert.onnx", "-o", "e", "--backend", "tensorrt-rtx", *SHAPES, *options]
    code, out, err = run_cli("build", *arguments)
    assert code == 0
    assert err.startswith("stof-onnx: note: TensorRT for RTX has no plugins")
    assert "does not run on compute capability 9.0" in err
    assert err.count("\n") == 1
    size = Path("e").stat().st_size
    assert size > 100_000
    if options:
        result = json.loads(out)
        assert (result["backend"], result["engine"], result["bytes"]) == ("tensorrt-rtx", "e", size)
        shapes = {"minimum": [1, 1], "optimum": [4, 128], "maximum": [4, 128]}
        assert result["profiles"] == [{"input_ids": shapes, "attention_mask": shapes}]
        assert result["seconds"] > 0
        assert result["commands"]["trtexec"].startswith("trtexec ")
    else:
        assert "backend     tensorrt-rtx, " in out
        assert "profile 0   input_ids [1,1] .. [4,128] .. [4,128]" in out
        assert "wrote       e (" in out
        assert "\n  trtexec --onnx=" in out
        assert "\n  polygraphy run " in out


def test_nothing_installed(run_cli, folder, nothing_installed):
    before = files(folder)
    code, out, err = run_cli("build", "bert.onnx", "-o", "e", *SHAPES)
    assert (code, out) == (2, "")
    assert err.startswith("stof-onnx: error: TensorRT is not installed; run `pip install ")
    assert err.count("\n") == 1
    assert files(folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bert.onnx"], "required: -o/--output"),
        (["bert.onnx", "-o", "e", "--backend", "tvm"], "invalid choice: 'tvm'"),
        (["bert.onnx", "-o", "e"], "e.g. `stof-onnx build bert.onnx -o e --min-shapes input_ids:["),
        (["bert.onnx", "-o", "e", "--opt-shapes", "input_id:[1,2]"], "did you mean 'input_ids'?"),
        (["bert.onnx", "-o", "e", "--opt-shapes", "input_ids:[1,x]"], "dimension 'x'"),
        (["bert.onnx", "-o", "e", "--opt-shapes", "input_ids:[1]"], "has 1 dimensions"),
        (["bert.onnx", "-o", "bert.onnx", *SHAPES], "same file as input"),
        (["bert.onnx", "-o", "nowhere/e", *SHAPES], "does not exist"),
        (["planless.onnx", "-o", "e", *SHAPES], "run `stof-onnx optimize` again with --target"),
        (["missing.onnx", "-o", "e"], "'missing.onnx' does not exist"),
    ],
)
def test_refused(run_cli, folder, arguments, message):
    before = files(folder)
    code, out, err = run_cli("build", *arguments, "--print-commands")
    assert (code, out) == (2, "")
    assert err.startswith("stof-onnx: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert files(folder) == before


def test_the_example_of_the_error_message_works(run_cli, folder):
    err = run_cli("build", "bert.onnx", "-o", "e", "--print-commands").err
    example = shlex.split(err.split("`")[1])
    assert run_cli(*example[1:], "--print-commands").code == 0
