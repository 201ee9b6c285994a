"""The process in which TensorRT for RTX builds: a JSON request on stdin, an engine file.

It writes the file ``answer`` last, with a list of errors, empty if all went well: where
there is none, the library ended the process.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve one request, made by :func:`stof_onnx.engine.rtx_build.build_engine`."""
    request = json.load(sys.stdin)
    try:
        trt = importlib.import_module(request["module"])
    except (ImportError, OSError) as error:
        errors = [f"{request['module']} can't be imported: {error}"]
    else:
        errors = _build(trt, request)
    Path(request["answer"]).write_text(json.dumps(errors))


def _build(trt: Any, request: Mapping[str, Any]) -> list[str]:
    """Write the engine; returns what went wrong."""
    log = _make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # From the file, so that external data is found.
    if not parser.parse_from_file(request["model"]):
        return [parser.get_error(i).desc() for i in range(parser.num_errors)] or ["parse error"]
    config = builder.create_builder_config()
    # No compute capability is named: then it needs no GPU, and the engine serves all of them.
    if not request["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, sizes in shapes.items():
            profile.set_shape(name, *sizes)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None or engine.nbytes == 0:
        return log.errors or ["no engine, and no reason given"]
    Path(request["engine"]).write_bytes(memoryview(engine))
    return []


def _make_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    return Log()


if __name__ == "__main__":
    main()
