"""TensorRT's ONNX importer hands a plugin creator exactly the attributes that a stof node has.

The importer is that of TensorRT for RTX, which runs without a GPU. It finds creators of ours in its
registry that record what they get and then create nothing, since TensorRT for RTX has no plugin
layers; so an import ends at a model's first stof node, as expected. It runs in a process of its
own: the library may end the process on errors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from stof_onnx import api, plugin_host
from stof_onnx.ir.operators.registry import DOMAIN
from stof_onnx.ir.plan import ATTRIBUTE, as_tensor
from stof_onnx.rewriter.rewrite import rewrite

pytest.importorskip("tensorrt_rtx_bindings")

ROOT = Path(__file__).parents[1]
MODELS = Path(__file__).parent / "models"

# Runs in the other process: creators as JSON in the first argument, a path a line on stdin, what
# the creator got as a JSON line on stdout.
IMPORT = r"""
import json, sys
import numpy as np
import tensorrt_rtx_bindings as trt

class Log(trt.ILogger):
    def __init__(self):
        super().__init__()

    def log(self, severity, message):
        pass

class Recorder(trt.IPluginCreatorV3One):
    def __init__(self, name, version, namespace, fields):
        super().__init__()
        self.name, self.plugin_version, self.plugin_namespace = name, version, namespace
        self.field_names = trt.PluginFieldCollection(
            [trt.PluginField(n, np.array([]), trt.PluginFieldType(t)) for n, t in fields])

    def create_plugin(self, name, fields, phase):
        got = {f.name: [int(f.type), np.asarray(f.data).tobytes().hex()] for f in fields}
        print(json.dumps({"operator": self.name, "node": name, "fields": got}), flush=True)

registry = trt.get_plugin_registry()
for creator in json.loads(sys.argv[1]):
    registry.register_creator(Recorder(*creator), creator[2])
log = Log()
for line in sys.stdin:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parser.parse(open(line.strip(), "rb").read())
    print(json.dumps({"end": line.strip()}), flush=True)
"""


def import_models(paths: list[Path]) -> dict[str, dict]:
    """By file name: what the creator of the first stof node got."""
    creators = [(c.name, c.version, c.namespace, c.fields) for c in plugin_host.creators()]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, json.dumps(creators)],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    result: dict[str, dict] = {}
    seen: list[dict] = []
    for line in done.stdout.splitlines():
        if line.startswith('{"operator"'):
            seen.append(json.loads(line))
        elif line.startswith('{"end"'):
            assert len(seen) == 1, (line, seen)
            result[Path(json.loads(line)["end"]).name] = seen.pop()
    assert len(result) == len(paths), f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return result


def first_stof_node(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.domain == DOMAIN)


def wanted_fields(node: onnx.NodeProto) -> dict[str, list]:
    fields = [plugin_host.field_of(a.name, helper.get_attribute_value(a)) for a in node.attribute]
    skipped = ("plugin_version", "plugin_namespace")  # by which the creator was found
    return {f.name: [f.type, f.data.hex()] for f in fields if f.name not in skipped}


def assert_received(answer: dict, node: onnx.NodeProto) -> None:
    assert (answer["operator"], answer["node"]) == (node.op_type, node.name)
    assert answer["fields"] == wanted_fields(node)


def test_every_model_reaches_the_creator_as_it_was_written(tmp_path):
    # Every byte value, and more than a small buffer holds.
    plan = np.tile(np.arange(256, dtype=np.uint8), 200).tobytes()
    nodes, paths = {}, []
    for source in sorted(MODELS.glob("*.onnx")):
        model = rewrite(onnx.load(source)).model
        stof_nodes = [node for node in model.graph.node if node.domain == DOMAIN]
        if not stof_nodes:  # models without attention, and one whose attention is refused
            continue
        for node in stof_nodes:
            node.attribute.append(helper.make_attribute(ATTRIBUTE, as_tensor(plan)))
        path = tmp_path / source.name
        onnx.save(model, path)
        paths.append(path)
        nodes[source.name] = stof_nodes[0]
    assert len(paths) > 20
    answers = import_models(paths)
    for name, node in nodes.items():
        assert_received(answers[name], node)


def test_a_compiled_plan_arrives_whole(tmp_path):
    source = MODELS / "bert_bigbird_sdpa_dynamo.onnx"
    path = tmp_path / "optimized.onnx"
    model = api.optimize(source, path, targets=["sm_90"], check=False).model
    answer = import_models([path])[path.name]
    node = first_stof_node(model)
    assert_received(answer, node)
    kind, data = answer["fields"][ATTRIBUTE]
    del kind
    plugin_host.check_plan(bytes.fromhex(data))
    # What the importer passes on is what a plugin is made of.
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plugin_host.Plugin.from_attributes(node.op_type, attributes)
