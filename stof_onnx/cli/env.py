"""``stof-onnx env``: what is installed, what is missing and how to get it."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TextIO

from stof_onnx.cli import arguments as common

_EXAMPLES = """\
stof-onnx env
stof-onnx env --json"""

_CORE = (
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime",
    "polygraphy",
    "nvidia-cuda-nvrtc",
    "numpy",
    "rich",
)
# Where the newest release is not what stof-onnx works with.
_RANGES = {"nvidia-cuda-nvrtc": "'nvidia-cuda-nvrtc>=13,<14'"}
_SOURCE_TREE = "run `pip install .` in the source tree"


@dataclass(frozen=True)
class _Optional:
    """Something that only some of the work needs.

    Attributes:
        name: as people call it.
        distributions: PyPI names it comes under, the usual one first.
        purpose: what needs it.
        install: how to get it.
    """

    name: str
    distributions: tuple[str, ...]
    purpose: str
    install: str


# The install lines name the packages and not our extras, which pip only finds in a source tree.
_OPTIONAL = (
    _Optional(
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "building engines for `stof-onnx build`",
        "pip install tensorrt-cu13",
    ),
    _Optional(
        "tensorrt_rtx",
        ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
        "building engines of expanded files, without plugins and without a GPU",
        "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
    ),
)


def add_parser(commands: argparse._SubParsersAction[common.Parser]) -> None:
    """Declare the command."""
    parser = common.add_command(
        commands,
        "env",
        "Show versions, GPUs and the plugin library. Says what is missing, what it is for and"
        " how to get it.",
        _EXAMPLES,
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Print the environment."""
    facts = gather()
    if arguments.json:
        from stof_onnx.cli import json_text

        out.write(json_text.dump(facts))
    else:
        _print(facts, out)
    return 0


def gather() -> dict[str, Any]:
    """The environment as a JSON-serialisable object."""
    from stof_onnx import __version__
    from stof_onnx.jit.cache import survey_cache

    required = {name: _installed_version((name,)) for name in _CORE}
    optional = {entry.name: _installed_version(entry.distributions) for entry in _OPTIONAL}
    library = _plugin_library(__version__)
    cache = survey_cache()
    missing = [
        {
            "name": name,
            "needed_for": "everything",
            "install": f"pip install {_RANGES.get(name, name)}",
        }
        for name, version in required.items()
        if version is None
    ]
    if library["problem"]:
        missing.append(
            {"name": "plugin library", "needed_for": "running stof nodes", "install": _SOURCE_TREE}
        )
    missing += [
        {"name": entry.name, "needed_for": entry.purpose, "install": entry.install}
        for entry in _OPTIONAL
        if optional[entry.name] is None
    ]
    return {
        "stof-onnx": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "required": required,
        "optional": optional,
        "plugin_library": library,
        "kernel_cache": {
            "path": None if cache.directory is None else str(cache.directory),
            "problem": cache.problem,
        },
        "gpu": _gpus(),
        "missing": missing,
    }


def _installed_version(distributions: tuple[str, ...]) -> str | None:
    # Asked of the metadata: importing TensorRT or PyTorch to learn a number would take seconds.
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _plugin_library(package_version: str) -> dict[str, Any]:
    from stof_onnx import plugin_library
    from stof_onnx.ir.errors import MissingDependencyError

    facts: dict[str, Any] = {"path": None, "version": None, "plugins": 0, "problem": ""}
    try:
        facts["path"] = str(plugin_library.path())
        facts["version"] = plugin_library.version()
        facts["plugins"] = plugin_library.plugin_count()
    except MissingDependencyError as error:
        facts["problem"] = error.came
    else:
        if facts["version"] != package_version:
            facts["problem"] = f"its version is not that of the package, {package_version}"
    return facts


def _gpus() -> dict[str, Any]:
    from stof_onnx.gpu_detect import survey_gpus

    survey = survey_gpus()
    devices = [
        {
            "name": gpu.name,
            "compute_capability": "{}.{}".format(*gpu.compute_capability),
            "memory_bytes": gpu.memory_bytes,
        }
        for gpu in survey.gpus
    ]
    return {
        "devices": devices,
        "driver_cuda_version": survey.cuda_version or None,
        "problem": survey.problem,
    }


def _print(facts: dict[str, Any], out: TextIO) -> None:
    # Not through rich: this command has to work, and say so, where rich is missing.
    for label, text in _rows(facts):
        out.write(f"{label:<18} {text}\n")
    if facts["missing"]:
        out.write("\nnot installed, and what needs it:\n")
    for entry in facts["missing"]:
        out.write(f"  {entry['name']:<18} {entry['needed_for']}: {entry['install']}\n")


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "stof-onnx", facts["stof-onnx"]
    yield "python", f"{facts['python']} ({facts['executable']})"
    yield "platform", facts["platform"]
    for name, version in (facts["required"] | facts["optional"]).items():
        yield name, version or "not installed"
    library = facts["plugin_library"]
    if library["version"]:
        count = library["plugins"]
        yield "plugin library", f"{library['version']}, {count} plugins ({library['path']})"
    if library["problem"]:
        yield "plugin library", library["problem"]
    cache = facts["kernel_cache"]
    if cache["path"]:
        yield "kernel cache", cache["path"]
    if cache["problem"]:
        yield "kernel cache", cache["problem"]
    gpu = facts["gpu"]
    for number, device in enumerate(gpu["devices"]):
        memory = f"{device['memory_bytes'] / 2**30:.0f} GiB"
        capability = f"compute capability {device['compute_capability']}"
        yield f"GPU {number}", f"{device['name']}, {capability}, {memory}"
    if gpu["problem"]:
        yield "GPU", f"none: {gpu['problem']}"
    if gpu["driver_cuda_version"]:
        yield "driver", f"runs CUDA up to {gpu['driver_cuda_version']}"
