"""What rewriting costs: time and memory of a model file, and how time grows with layers.

    python scripts/rewrite_cost.py MODEL [MODEL ...] [--layers N [N ...]]

Each file is optimized in a fresh process (no check, no kernels) and written beside itself for as
long as it takes. The peak of resident memory, imports included, is compared with the size of the
file and its external data; the exit status is 1 where it is twice that or more, or the time is
more than 15 s. ``--layers`` rewrites generated encoders of narrow layers, one for each N.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_SECONDS = 15.0
MAX_MEMORY = 2.0
_WIDTH, _HEADS = 64, 4


def main() -> int:
    """Measure what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--layers", nargs="*", type=int, default=[])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(_measure(arguments.one)))
        return 0
    is_good = True
    for model in arguments.models:
        command = [sys.executable, __file__, "--one", str(model)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        is_good &= _print(model, json.loads(done.stdout))
    for layers in arguments.layers:
        blocks, seconds = _rewrite_generated(layers)
        print(
            f"{layers:4} layers: {blocks} blocks fused in {seconds:.2f} s,"
            f" {1e3 * seconds / layers:.1f} ms a layer"
        )
    return 0 if is_good else 1


def _measure(model: Path) -> dict[str, Any]:
    """Optimize one file in this process, which must have done nothing else."""
    import stof_onnx

    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        start = time.perf_counter()
        result = stof_onnx.optimize(model, Path(folder) / "out.onnx", kernels=False, check=False)
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "stages": dict(result.report.seconds),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "size": _size(model),
        "blocks": len(result.report.attention),
    }


def _size(model: Path) -> int:
    """Bytes of a model file and its external data."""
    from stof_onnx.model_io.loading import parse_file
    from stof_onnx.model_io.tensors import external_entries, tensors

    parsed = parse_file(model, weights=False)
    places = {external_entries(tensor).get("location") for tensor in tensors(parsed)}
    return sum((model.parent / place).stat().st_size for place in {model.name, *places} if place)


def _print(model: Path, found: dict[str, Any]) -> bool:
    ratio = found["memory"] / found["size"]
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in found["stages"].items())
    print(
        f"{model.name}: {found['size'] / 1e6:.0f} MB, {found['blocks']} blocks,"
        f" {found['seconds']:.1f} s ({stages}), peak {found['memory'] / 1e6:.0f} MB"
        f" = {ratio:.2f} x the file"
    )
    return bool(ratio < MAX_MEMORY and found["seconds"] < MAX_SECONDS)


def _rewrite_generated(layers: int) -> tuple[int, float]:
    """(blocks fused, seconds of processor time) of an encoder with so many layers."""
    from stof_onnx.rewriter.rewrite import FusedBlock, rewrite

    model = encoder(layers)
    start = time.process_time()
    done = rewrite(model)
    seconds = time.process_time() - start
    return sum(isinstance(block, FusedBlock) for block in done.blocks), seconds


def encoder(layers: int) -> Any:
    """An encoder with a padding mask, written as TorchScript's exporter does."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "heads": np.asarray([0, -1, _HEADS, _WIDTH // _HEADS], np.int64),
        "row": np.asarray([0, -1, _WIDTH], np.int64),
        "root": np.asarray((_WIDTH // _HEADS) ** 0.5, np.float32),
        "axes": np.asarray([1, 2], np.int64),
        "one": np.asarray(1, np.float32),
        "lowest": np.asarray(np.finfo(np.float32).min, np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["attention_mask", "axes"], ["mask/4d"]),
        helper.make_node("Cast", ["mask/4d"], ["mask/float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "mask/float"], ["mask/hidden"]),
        helper.make_node("Mul", ["mask/hidden", "lowest"], ["mask"]),
    ]
    current = "x"
    for layer in range(layers):
        for name in ("query", "key", "value", "out"):
            shape = (_WIDTH, _WIDTH)
            constants[f"{layer}/{name}/weight"] = random.normal(0, 0.1, shape).astype(np.float32)
            constants[f"{layer}/{name}/bias"] = np.zeros(_WIDTH, np.float32)
        nodes += [
            helper.make_node(op, inputs, [output], name=output, **attributes)
            for op, inputs, output, attributes in _layer(f"{layer}", current)
        ]
        current = f"{layer}/y"
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", _WIDTH]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", "length", _WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _layer(at: str, source: str) -> list[tuple[str, list[str], str, dict[str, Any]]]:
    """(operator, inputs, output, attributes) of the nodes of one layer."""
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
    for name, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        part = f"{at}/{name}"
        nodes += [
            ("MatMul", [source, f"{part}/weight"], f"{part}/product", {}),
            ("Add", [f"{part}/product", f"{part}/bias"], f"{part}/row", {}),
            ("Reshape", [f"{part}/row", "heads"], f"{part}/split", {}),
            ("Transpose", [f"{part}/split"], part, {"perm": perm}),
        ]
    return [
        *nodes,
        ("MatMul", [f"{at}/query", f"{at}/key"], f"{at}/scores", {}),
        ("Div", [f"{at}/scores", "root"], f"{at}/scaled", {}),
        ("Add", [f"{at}/scaled", "mask"], f"{at}/masked", {}),
        ("Softmax", [f"{at}/masked"], f"{at}/weights", {"axis": -1}),
        ("MatMul", [f"{at}/weights", f"{at}/value"], f"{at}/context", {}),
        ("Transpose", [f"{at}/context"], f"{at}/rows", {"perm": [0, 2, 1, 3]}),
        ("Reshape", [f"{at}/rows", "row"], f"{at}/joined", {}),
        ("MatMul", [f"{at}/joined", f"{at}/out/weight"], f"{at}/out/product", {}),
        ("Add", [f"{at}/out/product", f"{at}/out/bias"], f"{at}/out", {}),
        ("Add", [f"{at}/out", source], f"{at}/y", {}),
    ]


if __name__ == "__main__":
    sys.exit(main())
