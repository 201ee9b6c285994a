r"""Export the attention zoo: many Transformer classes, in the forms that exporters write.

The files come from two environments, since transformers 5 and 4 write quite different graphs.
With Python 3.11 and PyTorch's CPU build::

    pip install torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
        onnx==1.23.2 onnx-ir==1.1.0 onnxscript==0.7.2 onnxruntime==1.32.0
    python scripts/attention_zoo/export.py --out zoo/tf5

    pip install torch==2.13.0 transformers==4.46.3 numpy==2.4.6 \
        onnx==1.23.2 onnx-ir==1.1.0 onnxscript==0.7.2 onnxruntime==1.32.0
    python scripts/attention_zoo/export.py --out zoo/tf4

Weights are random with a fixed seed and all models are in eval mode. Each file is run by ONNX
Runtime and compared with PyTorch, with and without padding, at shapes other than the one it was
exported with. ``DIR/manifest.json`` holds what an optimizer should find in each file
("files"; a file that differs from PyTorch has an "exporter_error"), what could not be exported
("failed") and what this version of transformers does not have ("skipped"). A run goes on where
the last one ended; ``--force`` makes the files again.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import importlib.util
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import onnx
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export_test_models import clean

from attention_zoo.checks import compare, open_session
from attention_zoo.exporters import export
from attention_zoo.model import ZooModel
from attention_zoo.random_weights import axis_sizes, make_inputs, randomise

# Each of these modules has MODELS, a tuple of ZooModel.
REGISTRIES = (
    "encoders",
    "decoders",
    "cached_decoders",
    "encoder_decoders",
    "vision",
    "audio",
    "others",
    "handwritten",
    "standard_operator",
    "fused_operators",
)
PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


class ExportFailedError(Exception):
    """A model could not be exported; the message is for the manifest."""


def all_models(registries: Sequence[str]) -> Iterator[ZooModel]:
    """Yield the models of the registries."""
    for registry in registries:
        if importlib.util.find_spec(f"attention_zoo.{registry}"):
            yield from importlib.import_module(f"attention_zoo.{registry}").MODELS


def unavailable(model: ZooModel) -> str | None:
    """Say why the installed transformers cannot make ``model``, or return None."""
    if not model.transformers_class:
        return None
    import transformers

    version = transformers.__version__
    # transformers 4 puts a dummy in place of what it lacks only for missing packages.
    model_class = getattr(transformers, model.transformers_class, None)
    if model_class is None:
        return f"transformers {version} has no {model.transformers_class}"
    if model.implementation == "sdpa" and not getattr(model_class, "_supports_sdpa", False):
        return f"{model.transformers_class} of transformers {version} has no sdpa attention"
    return None


def write(model: ZooModel, file: Path) -> dict[str, object]:
    """Export, clean, save and check; return the manifest's entry.

    The file is saved even if it differs from PyTorch: it is a graph that is out in the world.
    """
    torch.manual_seed(0)
    built = model.build()
    if isinstance(built, onnx.ModelProto):
        open_session(built)
        onnx.save(built, file)
        return manifest_entry(model, built)
    module = built.to(getattr(torch, model.dtype)).eval()
    if not model.keeps_weights:
        randomise(module)
    proto = export(model, module, make_inputs(model, axis_sizes(model, None), "none"))
    clean(proto)
    entry = manifest_entry(model, proto)
    onnx.save(proto, file)
    try:
        comparison = compare(model, module, proto)
    except Exception as problem:  # the file stays interesting, whatever ONNX Runtime says of it
        return entry | {"exporter_error": first_line(problem)}
    difference = comparison.largest_difference
    if difference is not None:
        entry["largest_difference"] = float(f"{difference:.2e}")
        if difference > model.tolerance:
            entry["exporter_error"] = f"differs from PyTorch by {difference:.2e}"
    if comparison.problems:
        entry["exporter_error"] = " ".join(comparison.problems[0].split())[:400]
        entry["cases_not_run"] = len(comparison.problems)
    return entry


def manifest_entry(model: ZooModel, proto: onnx.ModelProto) -> dict[str, object]:
    """Say what an optimizer should find in the file."""
    types = [node.op_type for node in proto.graph.node]
    return {
        "family": model.family,
        "exporter": model.exporter,
        "implementation": model.implementation,
        "opset": {o.domain or "ai.onnx": o.version for o in proto.opset_import},
        "dtype": model.dtype,
        "static": model.static,
        "nodes": len(types),
        "softmax_nodes": types.count("Softmax"),
        "attention_nodes": sum(t.endswith("Attention") for t in types),
        "attention_blocks": len(model.blocks),
        "blocks": [vars(block) for block in model.blocks],
        **({"notes": model.notes} if model.notes else {}),
    }


def first_line(problem: BaseException) -> str:
    """Return the exception's class and the first line of the cause nearest to the model's code."""
    root = problem
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line for line in str(root).strip().splitlines() if line.strip()]
    return f"{type(root).__name__}: {lines[0] if lines else ''}"[:300]


class Manifest:
    """``manifest.json``, written after each model so that a stopped run loses nothing."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content: dict[str, dict[str, object]] = {"files": {}, "failed": {}, "skipped": {}}
        if file.exists():
            self.content |= json.loads(file.read_text())
        self.content["environment"] = {
            package: importlib.metadata.version(package) for package in PACKAGES
        }

    def record(self, section: str, model: ZooModel, entry: object) -> None:
        """Put ``entry`` into a section and take the model out of the others."""
        for name in ("files", "failed", "skipped"):
            self.content[name].pop(self._key(name, model), None)
        self.content[section][self._key(section, model)] = entry
        self.content[section] = dict(sorted(self.content[section].items()))
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        temporary.replace(self.file)

    def knows(self, model: ZooModel) -> bool:
        """Say whether an earlier run has written the file."""
        return self._key("files", model) in self.content["files"]

    @staticmethod
    def _key(section: str, model: ZooModel) -> str:
        return f"{model.name}.onnx" if section == "files" else model.name


def write_in_child(model: ZooModel, file: Path, limit: int) -> dict[str, object]:
    """Call ``write`` in a process of its own: exporters crash, hang and keep memory.

    Raises:
        ExportFailedError: the child raised, died or took longer than ``limit`` seconds.
    """
    # A fork needs no second import of torch; it is safe since this process computes nothing.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_write_and_send, args=(model, file, sender))
    child.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            child.kill()
            raise ExportFailedError(f"took longer than {limit} s")
        ok, result = receiver.recv()
    except EOFError:
        child.join()
        raise ExportFailedError(f"the exporter's process died, code {child.exitcode}") from None
    finally:
        child.join()
    if not ok:
        raise ExportFailedError(result)
    entry: dict[str, object] = result
    return entry


def _write_and_send(model: ZooModel, file: Path, sender: Connection) -> None:
    # A failing exporter prints the whole graph.
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        sender.send((True, write(model, file)))
    except Exception as problem:  # whatever it is, the parent reports it
        sender.send((False, first_line(problem)))


def export_all(models: list[ZooModel], folder: Path, *, force: bool, limit: int) -> None:
    """Write the files and the manifest and print a line for each."""
    manifest = Manifest(folder / "manifest.json")
    for number, model in enumerate(models, start=1):
        file = folder / f"{model.name}.onnx"
        head = f"{number:>3}/{len(models)} {model.name:<46}"
        if not force and file.exists() and manifest.knows(model):
            continue
        reason = unavailable(model)
        if reason:
            manifest.record("skipped", model, reason)
            print(f"{head} skipped: {reason}", flush=True)
            continue
        start = time.monotonic()
        try:
            entry = write_in_child(model, file, limit)
        except ExportFailedError as problem:
            file.unlink(missing_ok=True)
            manifest.record("failed", model, str(problem))
            print(f"{head} FAILED: {problem}", flush=True)
            continue
        manifest.record("files", model, entry)
        found = f"{entry['softmax_nodes']}+{entry['attention_nodes']}/{len(model.blocks)}"
        verdict = entry.get("exporter_error") or entry.get("largest_difference", "")
        seconds = time.monotonic() - start
        print(f"{head} {file.stat().st_size:>8} {found:>6} {seconds:>4.0f}s {verdict}", flush=True)


def main() -> int:
    """Parse the command line, export, and print a table."""
    parser = argparse.ArgumentParser(description="Export small Transformers in many forms.")
    parser.add_argument("--out", type=Path, help="folder of the files and manifest.json")
    parser.add_argument("--only", nargs="+", metavar="GLOB", default=["*"], help="names to make")
    parser.add_argument(
        "--registry", nargs="+", choices=REGISTRIES, default=REGISTRIES, help="where to look"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--force", action="store_true", help="make files that exist again")
    parser.add_argument("--limit", type=int, default=300, help="seconds a file may take")
    arguments = parser.parse_args()
    models = [
        model
        for model in all_models(arguments.registry)
        if any(fnmatch.fnmatch(model.name, glob) for glob in arguments.only)
    ]
    if arguments.list:
        print("\n".join(model.name for model in models))
        return 0
    if arguments.out is None:
        parser.error("--out DIR or --list is needed")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{'':>7} {'file':<46} {'bytes':>8} {'found':>6} {'time':>5} difference")
    export_all(models, arguments.out, force=arguments.force, limit=arguments.limit)
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Some forward methods iterate over sets of strings, so the order of nodes, and with it
        # the bytes of a file, would change from run to run.
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    sys.exit(main())
