"""A real TensorRT parser and builder takes every expanded model.

TensorRT for RTX builds engines without a GPU. It has no plugin layers, so what it can show
is that the expanded form is ONNX that TensorRT accepts. It runs in a process of its own:
an abort of the library must not take the tests with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from stof_onnx.expansion import expand_model
from stof_onnx.rewriter.rewrite import rewrite

pytest.importorskip("tensorrt_rtx_bindings", reason="pip install '.[test]' on Linux x86_64")

ROOT = Path(__file__).resolve().parent
MODELS = sorted([*(ROOT / "models").glob("*.onnx"), *(ROOT.parent / "examples").glob("*.onnx")])
# Smallest, usual and largest size of each dynamic dimension, batch first.
BATCH, LENGTH = (1, 2, 4), (1, 32, 128)

BUILD = """
import json, sys
import tensorrt_rtx_bindings as trt

BATCH, LENGTH = json.loads(sys.argv[1])

def build(path):
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            return "parser: " + "; ".join(errors)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        free = [BATCH, *[LENGTH] * (len(shape) - 1)]
        sizes = [
            [d if d >= 0 else choices[which] for d, choices in zip(shape, free, strict=True)]
            for which in range(3)
        ]
        profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return "builder: no engine" if engine is None else f"engine of {len(bytes(engine))} bytes"

for path in sys.argv[2:]:
    print(json.dumps([path, build(path)]), flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What TensorRT said of each expanded model, by file name."""
    folder = tmp_path_factory.mktemp("expanded")
    paths = []
    for path in MODELS:
        expanded = expand_model(rewrite(onnx.load(path)).model)
        onnx.save(expanded, folder / path.name)
        paths.append(str(folder / path.name))
    run = subprocess.run(
        [sys.executable, "-c", BUILD, json.dumps([BATCH, LENGTH]), *paths],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    found = {Path(path).name: answer for path, answer in lines}
    return {path.name: found.get(path.name, f"nothing: {run.stderr[-600:]}") for path in MODELS}


@pytest.mark.parametrize("name", [path.name for path in MODELS])
def test_tensorrt_builds_an_engine_of_the_expanded_model(name: str, answers: dict[str, str]):
    assert answers[name].startswith("engine of "), answers[name]
