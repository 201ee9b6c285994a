"""Building an engine of an optimized model, and saying how else it could be built."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto

from stof_onnx import plugin_library
from stof_onnx.accuracy.precision import computes_in_half, runnable
from stof_onnx.engine import rtx_build, tensorrt_build
from stof_onnx.engine.backends import Backend, choose_backend, tensorrt_folder
from stof_onnx.engine.commands import BuildCommands, PluginLibraries, command_lines
from stof_onnx.engine.profiles import GivenShapes, OptimizationProfile, optimization_profiles
from stof_onnx.expansion import expand_model
from stof_onnx.ir.errors import InputError, OutputError
from stof_onnx.ir.nesting import nested_nodes
from stof_onnx.ir.operators.registry import DOMAIN
from stof_onnx.model_io import check_output_path, load_model, save_model
from stof_onnx.progress import NullProgress, Progress

PathLike = str | os.PathLike[str]
ShapesOfProfiles = GivenShapes | Sequence[GivenShapes]

_NO_STOF_NODES = "the model has no stof node: nothing in it needs the plugin library"
_NO_PLAN = (
    "the model's stof nodes have no kernels: the printed command lines need a file that was"
    " optimized with --target"
)
_RTX = (
    "TensorRT for RTX has no plugins: this engine is of the expanded model, without stof-onnx's"
    " kernels, and does not run on compute capability 9.0"
)
_BFLOAT16 = (
    "ONNX Runtime has no bfloat16 on the CPU: the printed comparison with Polygraphy can't run"
    " there; `stof-onnx check` compares float32 copies"
)
# Different kernels round differently; what is wrong is wrong by far more.
_TOLERANCE = "1e-3"
_REDUCED_TOLERANCE = "2e-2"


@dataclass(frozen=True)
class BuildResult:
    """An engine that was built.

    Attributes:
        backend: "tensorrt" or "tensorrt-rtx".
        engine: path of the engine.
        size: its size in bytes.
        profiles: its optimization profiles; none for a static model.
        commands: command lines that build the model with other tools.
        notes: what a user should know about the engine.
        seconds: wall time of the build.
    """

    backend: Backend
    engine: str
    size: int
    profiles: tuple[OptimizationProfile, ...]
    commands: BuildCommands
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable object."""
        return {
            "backend": self.backend,
            "engine": self.engine,
            "bytes": self.size,
            "profiles": [
                {name: dataclasses.asdict(shapes) for name, shapes in profile.items()}
                for profile in self.profiles
            ],
            "commands": self.commands.to_json(),
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before the build."""

    model: ModelProto
    profiles: tuple[OptimizationProfile, ...]
    libraries: PluginLibraries | None
    commands: BuildCommands
    notes: tuple[str, ...]


def build(
    optimized: PathLike,
    output: PathLike,
    *,
    min_shapes: ShapesOfProfiles = (),
    opt_shapes: ShapesOfProfiles = (),
    max_shapes: ShapesOfProfiles = (),
    backend: str | None = None,
    tf32: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Build a TensorRT engine of an optimized model.

    Args:
        optimized: the ONNX file that :func:`stof_onnx.optimize` wrote.
        output: where to write the engine, all or nothing.
        min_shapes: smallest shapes of dynamic inputs, by name; a sequence of such mappings
            for more than one optimization profile.
        opt_shapes: shapes to optimize for, likewise.
        max_shapes: largest shapes, likewise. Kinds that are left out are filled in from
            the others.
        backend: "tensorrt", with the plugin library; or "tensorrt-rtx", for the expanded
            model; None for the former.
        tf32: let TensorRT compute float32 products in TF32.
        progress: is told that the build runs.

    Raises:
        InputError: the model, a shape or the backend can't be used; or a stof node has no
            plan, which the plugin needs.
        OutputError: the output can't be written.
        MissingDependencyError: TensorRT or the plugin library isn't installed.
        EngineBuildError: TensorRT built no engine.
    """
    chosen = choose_backend(backend)
    shapes = (min_shapes, opt_shapes, max_shapes)
    plan = _prepare(Path(optimized), Path(output), shapes, chosen, tf32=tf32)
    start = time.perf_counter()
    with _written_aside(Path(output)) as engine:
        with (progress or NullProgress()).task("Building the engine", None):
            if chosen == "tensorrt-rtx":
                _build_expanded(plan, engine, tf32=tf32)
            else:
                library = plan.libraries.autoload if plan.libraries else None
                tensorrt_build.build_engine(
                    Path(optimized), engine, plan.profiles, plugin_library=library, tf32=tf32
                )
        size = engine.stat().st_size
    return BuildResult(
        backend=chosen,
        engine=os.fspath(output),
        size=size,
        profiles=plan.profiles,
        commands=plan.commands,
        notes=(*plan.notes, _RTX) if chosen == "tensorrt-rtx" else plan.notes,
        seconds=round(time.perf_counter() - start, 3),
    )


def build_commands(
    optimized: PathLike,
    output: PathLike,
    *,
    min_shapes: ShapesOfProfiles = (),
    opt_shapes: ShapesOfProfiles = (),
    max_shapes: ShapesOfProfiles = (),
    tf32: bool = False,
) -> BuildCommands:
    """The command lines of trtexec and Polygraphy for a build, without building anything.

    Arguments and errors are those of :func:`build`; TensorRT needn't be installed.
    """
    shapes = (min_shapes, opt_shapes, max_shapes)
    return _prepare(Path(optimized), Path(output), shapes, "tensorrt", tf32=tf32).commands


def _prepare(
    optimized: Path,
    output: Path,
    shapes: tuple[ShapesOfProfiles, ShapesOfProfiles, ShapesOfProfiles],
    backend: Backend,
    *,
    tf32: bool,
) -> _Plan:
    check_output_path(output, [optimized])
    model = load_model(optimized)
    nodes = [
        node for node in (*model.graph.node, *nested_nodes(model.graph)) if node.domain == DOMAIN
    ]
    notes = [] if nodes else [_NO_STOF_NODES]
    bare = next((node for node in nodes if not _has_plan(node)), None)
    if bare is not None:
        if backend == "tensorrt":
            raise _without_plan(bare, optimized)
        notes.append(_NO_PLAN)
    command = f"stof-onnx build {optimized} -o {output}"
    profiles = optimization_profiles(model, *map(_as_profiles, shapes), command=command)
    libraries = None
    if nodes:
        libraries = PluginLibraries(
            plugin_library.path(), plugin_library.autoload_path(), tensorrt_folder()
        )
    bfloat16 = bool(runnable(model)[1])
    reduced = tf32 or bfloat16 or computes_in_half(model)
    commands = command_lines(
        optimized.absolute(),
        output.absolute(),
        profiles,
        libraries,
        tf32=tf32,
        tolerance=_REDUCED_TOLERANCE if reduced else _TOLERANCE,
    )
    if bfloat16:
        notes.append(_BFLOAT16)
    return _Plan(model, profiles, libraries, commands, tuple(notes))


def _as_profiles(shapes: ShapesOfProfiles) -> Sequence[GivenShapes]:
    return [shapes] if isinstance(shapes, Mapping) else shapes


def _has_plan(node: NodeProto) -> bool:
    return any(
        entry.name == "plan" and entry.t.data_type == TensorProto.INT8 for entry in node.attribute
    )


def _without_plan(node: NodeProto, file: Path) -> InputError:
    return InputError(
        f"{node.op_type} node '{node.name}' of '{file}' has no kernels (no INT8 tensor `plan`)",
        "a file that was optimized for a GPU",
        "run `stof-onnx optimize` again with --target, e.g. --target sm_90",
    )


def _build_expanded(plan: _Plan, engine: Path, *, tf32: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="stof-onnx-") as folder:
        file = Path(folder, "expanded.onnx")
        save_model(expand_model(plan.model), file)
        rtx_build.build_engine(file, engine, plan.profiles, tf32=tf32)


@contextlib.contextmanager
def _written_aside(output: Path) -> Iterator[Path]:
    """A path beside ``output`` for the engine, renamed to it if nothing was raised."""
    target = Path(os.path.realpath(output))
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield aside
        with aside.open("rb+") as stream:
            # Without this a power cut after the rename can leave an empty file.
            os.fsync(stream.fileno())
        os.replace(aside, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"engine '{output}' can't be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
