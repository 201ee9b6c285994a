"""TensorRT for RTX parses and builds every expanded test model, on a CPU.

It is a real ONNX parser and engine builder that needs no GPU; its engines aren't run. The
library ends the process on some errors, so each group of models has a process of its own.
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

pytest.importorskip("tensorrt_rtx_bindings")

MODELS = Path(__file__).parent / "models"
EXAMPLES = Path(__file__).parents[1] / "examples"
GROUPS = {
    "bert": "bert_[!b]*.onnx",
    "bigbird": "bert_bigbird_*.onnx",
    "gpt2": "gpt2_*.onnx",
    "modernbert": "modernbert_*.onnx",
    "others": "[!bg][!o]*.onnx",
}

# Runs in the other process: a path a line on stdin, a JSON line for each on stdout.
BUILD = r"""
import json, sys
import tensorrt_rtx_bindings as trt

class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)

# Smallest, usual and largest batch and length.
PROFILE = ((1, 1), (2, 32), (4, 128))

def build(path):
    log = Log()
    builder = trt.Builder(log)
    # The only kind of network that TensorRT 11 has.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(open(path, "rb").read()):
        return [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        shapes = []
        for sizes in PROFILE:
            shape = list(tensor.shape)
            dynamic = [axis for axis, dim in enumerate(shape) if dim == -1]
            for axis in dynamic:
                shape[axis] = sizes[min(axis, 1)]
            shapes.append(shape)
        if dynamic:
            profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return [] if engine is not None and engine.nbytes > 0 else log.errors or ["no engine"]

for line in sys.stdin:
    path = line.strip()
    print(json.dumps({"path": path, "errors": build(path)}), flush=True)
"""


def build_engines(paths: list[Path]) -> dict[str, list[str]]:
    """Errors of each model, by file name; a model that ended the process has one, too."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        input="\n".join(str(path) for path in paths),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"path"')]
    errors = {Path(answer["path"]).name: answer["errors"] for answer in answers}
    ended = [f"the process ended with {done.returncode}: {done.stderr[-2000:]}"]
    return {path.name: errors.get(path.name, ended) for path in paths}


@pytest.mark.parametrize("group", GROUPS)
def test_expanded_models_are_parsed_and_built(group, tmp_path):
    paths = []
    for source in sorted(MODELS.glob(GROUPS[group])):
        path = tmp_path / source.name
        onnx.save(expand_model(rewrite(onnx.load(source)).model), path)
        paths.append(path)
    assert paths
    failed = {name: errors for name, errors in build_engines(paths).items() if errors}
    assert not failed, failed


def test_expanded_examples_are_parsed_and_built(tmp_path):
    # Whatever examples there are; the installed package comes without them.
    for source in sorted(EXAMPLES.glob("*.onnx")):
        path = tmp_path / source.name
        onnx.save(expand_model(rewrite(onnx.load(source)).model), path)
        assert build_engines([path]) == {path.name: []}


def test_every_model_is_in_one_group():
    grouped = [path.name for pattern in GROUPS.values() for path in MODELS.glob(pattern)]
    assert sorted(grouped) == sorted(path.name for path in MODELS.glob("*.onnx"))


def test_a_node_that_the_parser_does_not_know_is_an_error(tmp_path):
    # So that the tests above can fail.
    path = tmp_path / "unknown.onnx"
    dims = [1, 4]
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, dims) for n in "xy"]
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, ir_version=8), path)
    assert build_engines([path])[path.name]
