"""Stands in for TensorRT's Python bindings, which can't be installed everywhere.

Parser, builder and profiles are those of TensorRT for RTX, a TensorRT that builds without a
GPU. It has no plugins: the parser reads the expanded form of a file, if the library that
TENSORRT_DOUBLE_PLUGINS names was loaded before, and refuses stof nodes otherwise, as the
importer does for want of a plugin. What was called is written to the file
TENSORRT_DOUBLE_LOG, a JSON list a line.
"""

import json
import os
import tempfile
from pathlib import Path

import onnx
import tensorrt_rtx_bindings as _rtx
from tensorrt_rtx_bindings import *  # noqa: F403

from stof_onnx.expansion import expand_model

__version__ = os.environ["TENSORRT_DOUBLE_VERSION"]

if __version__.startswith("10."):
    # TensorRT 11 and TensorRT for RTX dropped it.
    _rtx.IBuilderConfig.int8_calibrator = None


def _record(*call):
    with open(os.environ["TENSORRT_DOUBLE_LOG"], "a") as log:
        log.write(json.dumps(call) + "\n")


def init_libnvinfer_plugins(logger, namespace):
    _record("init_libnvinfer_plugins", namespace)
    return True


class Builder(_rtx.Builder):
    def create_network(self, flags=0):
        names = _rtx.NetworkDefinitionCreationFlag.__members__.items()
        _record("create_network", [name for name, flag in names if flags >> int(flag) & 1])
        return super().create_network(flags)

    def build_serialized_network(self, network, config):
        _record("build", config.num_optimization_profiles, config.get_flag(_rtx.BuilderFlag.TF32))
        return super().build_serialized_network(network, config)


class OnnxParser(_rtx.OnnxParser):
    def parse_from_file(self, path):
        library = os.environ["TENSORRT_DOUBLE_PLUGINS"]
        loaded = library in Path("/proc/self/maps").read_text()
        _record("parse_from_file", path, loaded)
        model = onnx.load(path)
        if loaded:
            model = expand_model(model)
        elif any(node.domain == "stof" for node in model.graph.node):
            # Instead of handing it on: the importer of TensorRT for RTX ends the process.
            return super().parse(b"not a model")
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(model, f"{folder}/model.onnx")
            return super().parse_from_file(f"{folder}/model.onnx")
