"""Optimized models with plans, and stand-ins for the plugin libraries."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import onnx
import pytest

from stof_onnx import plugin_library
from stof_onnx.rewriter.rewrite import rewrite

MODELS = Path(__file__).parents[1] / "models"


def with_plans(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with some bytes as the plan of each stof node."""
    for node in model.graph.node:
        if node.domain == "stof":
            plan = onnx.helper.make_tensor(
                "plan", onnx.TensorProto.INT8, [8], b"STOFPLAN", raw=True
            )
            node.attribute.append(onnx.helper.make_attribute("plan", plan))
    return model


@pytest.fixture
def libraries(tmp_path, monkeypatch) -> Path:
    """A folder with two empty libraries that pass for the installed ones."""
    folder = tmp_path / "lib dir"
    folder.mkdir()
    compiler = shutil.which("cc") or shutil.which("g++")
    for name in (plugin_library.FILE_NAME, plugin_library.AUTOLOAD_FILE_NAME):
        if compiler is None:
            (folder / name).touch()
        else:
            empty = [compiler, "-shared", "-fPIC", "-x", "c++", "/dev/null", "-o", folder / name]
            subprocess.run(empty, check=True)
    monkeypatch.setattr(plugin_library, "path", lambda: folder / plugin_library.FILE_NAME)
    return folder


@pytest.fixture
def optimized(tmp_path) -> Path:
    """BERT with dynamic batch and sequence, each stof node with a plan."""
    path = tmp_path / "bert.stof.onnx"
    onnx.save(with_plans(rewrite(onnx.load(MODELS / "bert_sdpa_dynamo.onnx")).model), path)
    return path


@pytest.fixture
def planless(tmp_path) -> Path:
    """The same model without plans."""
    path = tmp_path / "planless.onnx"
    onnx.save(rewrite(onnx.load(MODELS / "bert_sdpa_dynamo.onnx")).model, path)
    return path


@pytest.fixture
def static(tmp_path) -> Path:
    """BERT of fixed shapes, each stof node with a plan."""
    path = tmp_path / "static.onnx"
    onnx.save(with_plans(rewrite(onnx.load(MODELS / "bert_static_sdpa_dynamo.onnx")).model), path)
    return path
