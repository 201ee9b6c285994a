"""The command lines of trtexec and Polygraphy that build the same engine.

Option names and the notation of shapes are those of trtexec 10.7 to 11.1 and of
``polygraphy run`` 0.49.20 and newer. ``--stronglyTyped`` and ``--strongly-typed`` are
needed with TensorRT 10; 11 knows strongly typed networks only, and still accepts both.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stof_onnx.engine.profiles import OptimizationProfile
from stof_onnx.ir.shapes import format_shape

_KINDS = {"min": "minimum", "opt": "optimum", "max": "maximum"}


@dataclass(frozen=True)
class PluginLibraries:
    """The two forms of the plugin library; a process must load only one of them.

    Attributes:
        creators: hands its creators to a registry that asks (``trtexec --dynamicPlugins``).
        autoload: registers when it is loaded (Polygraphy's ``--plugins``).
        tensorrt: folder of pip's TensorRT libraries, None without them. Polygraphy loads plugins
            before TensorRT, and then the plugins look for TensorRT where the linker does.
    """

    creators: Path
    autoload: Path
    tensorrt: Path | None = None


@dataclass(frozen=True)
class BuildCommands:
    """Command lines for one model, each as a list of arguments.

    Attributes:
        trtexec: builds the engine and times it.
        polygraphy: to be run one after the other: the last one builds the engine and
            compares its outputs with those that ONNX Runtime gave for the expanded model.
    """

    trtexec: tuple[str, ...]
    polygraphy: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """The lines, quoted for a POSIX shell."""
        return {
            "trtexec": shlex.join(self.trtexec),
            "polygraphy": [shlex.join(line) for line in self.polygraphy],
        }


def command_lines(
    model: Path,
    engine: Path,
    profiles: Sequence[OptimizationProfile],
    libraries: PluginLibraries | None,
    *,
    tf32: bool,
    tolerance: str,
) -> BuildCommands:
    """The command lines that build ``engine`` from ``model``.

    Args:
        model: the optimized ONNX file.
        engine: where the engine goes; what Polygraphy needs in between is put beside it.
        profiles: optimization profiles, none for a static model.
        libraries: the plugin libraries; None if the model has no stof node.
        tf32: whether float32 products may be computed in TF32.
        tolerance: absolute and relative tolerance of the comparison.
    """
    return BuildCommands(
        tuple(_trtexec(model, engine, profiles, libraries, tf32=tf32)),
        tuple(_polygraphy(model, engine, profiles, libraries, tf32=tf32, tolerance=tolerance)),
    )


def _trtexec(
    model: Path,
    engine: Path,
    profiles: Sequence[OptimizationProfile],
    libraries: PluginLibraries | None,
    *,
    tf32: bool,
) -> Iterator[str]:
    yield from ("trtexec", f"--onnx={model}", f"--saveEngine={engine}", "--stronglyTyped")
    if libraries is not None:
        yield f"--dynamicPlugins={libraries.creators}"
    if not tf32:
        yield "--noTF32"
    for number, profile in enumerate(profiles):
        if len(profiles) > 1:
            # Takes the three options behind it; without it each may occur only once.
            yield f"--profile={number}"
        for kind, attribute in _KINDS.items():
            shapes = {name: getattr(shapes, attribute) for name, shapes in profile.items()}
            yield f"--{kind}Shapes={','.join(_trtexec_shapes(shapes))}"


def _trtexec_shapes(shapes: Mapping[str, Sequence[int]]) -> Iterator[str]:
    for name, shape in shapes.items():
        yield f"{name}:{'x'.join(map(str, shape)) or 'scalar'}"


def _polygraphy(
    model: Path,
    engine: Path,
    profiles: Sequence[OptimizationProfile],
    libraries: PluginLibraries | None,
    *,
    tf32: bool,
    tolerance: str,
) -> Iterator[tuple[str, ...]]:
    standard = model
    if libraries is not None:
        # ONNX Runtime doesn't know stof nodes.
        standard = Path(f"{engine}.expanded.onnx")
        yield ("stof-onnx", "expand", str(model), "-o", str(standard))
    inputs, outputs = f"{engine}.inputs.json", f"{engine}.outputs.json"
    usual = ("--input-shapes", *_polygraphy_shapes(profiles[0], "optimum")) if profiles else ()
    yield (
        *("polygraphy", "run", str(standard), "--onnxrt", *usual),
        *("--save-inputs", inputs, "--save-outputs", outputs),
    )
    line = ["polygraphy", "run", str(model), "--trt", "--strongly-typed"]
    if libraries is not None and libraries.tensorrt is not None:
        line = ["env", f"LD_LIBRARY_PATH={libraries.tensorrt}", *line]
    if libraries is not None:
        line += ["--plugins", str(libraries.autoload)]
    if tf32:
        line.append("--tf32")
    for profile in profiles:
        for kind, attribute in _KINDS.items():
            line += [f"--trt-{kind}-shapes", *_polygraphy_shapes(profile, attribute)]
    line += ["--load-inputs", inputs, "--load-outputs", outputs]
    line += ["--atol", tolerance, "--rtol", tolerance, "--save-engine", str(engine)]
    yield tuple(line)


def _polygraphy_shapes(profile: OptimizationProfile, attribute: str) -> Iterator[str]:
    for name, shapes in profile.items():
        yield f"{name}:{format_shape(getattr(shapes, attribute))}"
