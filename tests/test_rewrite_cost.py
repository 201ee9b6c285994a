"""What rewriting costs, measured by scripts/rewrite_cost.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stof_onnx.model_io import save_model

SCRIPT = Path(__file__).parents[1] / "scripts" / "rewrite_cost.py"


def _script():
    spec = importlib.util.spec_from_file_location("rewrite_cost", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_weights(layers: int, columns: int) -> onnx.ModelProto:
    """The generated encoder, each layer's result times two matrices of 64 x columns more."""
    graph = (model := _script().encoder(layers)).graph
    current = graph.output[0].name
    for number in range(layers):
        for name, shape in (("up", (64, columns)), ("down", (columns, 64))):
            weight = numpy_helper.from_array(np.zeros(shape, np.float32), f"{number}/{name}")
            graph.initializer.append(weight)
            output = f"{number}/{name}/y"
            graph.node.append(helper.make_node("MatMul", [current, weight.name], [output]))
            current = output
    graph.output[0].name = current
    return model


def test_generated_encoder_is_fused():
    blocks, _ = _script()._rewrite_generated(3)
    assert blocks == 3
    onnx.checker.check_model(_script().encoder(3), full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("embed_limit", [0, 2**30], ids=["external", "embedded"])
def test_memory_is_less_than_twice_the_file(tmp_path, embed_limit):
    path = tmp_path / "model.onnx"
    save_model(with_weights(8, 2**17), path, embed_limit=embed_limit)  # 512 MiB
    command = [sys.executable, str(SCRIPT), str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model.onnx: 537 MB, 8 blocks" in done.stdout
