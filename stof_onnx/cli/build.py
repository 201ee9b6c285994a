"""``stof-onnx build``: a TensorRT engine, and the command lines that build the same one."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, TextIO

from stof_onnx.cli import arguments as common

if TYPE_CHECKING:
    from stof_onnx.engine import BuildCommands, BuildResult

_EXAMPLES = """\
stof-onnx build bert.stof.onnx -o bert.engine --min-shapes ids:[1,1] mask:[1,1]
    --opt-shapes ids:[4,128] mask:[4,128] --max-shapes ids:[8,512] mask:[8,512]
stof-onnx build bert.stof.onnx -o bert.engine --opt-shapes ids:[8,128] --print-commands
stof-onnx build bert.stof.onnx -o bert.engine --opt-shapes ids:[8,128] --backend tensorrt-rtx"""

_NOTES = """\
A kind of shapes that is left out is taken from the others (min from opt, opt from max,
max from opt); inputs with dimensions of the same name need be named only once. Give
--min-shapes, --opt-shapes and --max-shapes once for each optimization profile.

"""

# The names in --help; what is installed is found out when the command runs.
_BACKENDS = ("tensorrt", "tensorrt-rtx")


def add_parser(commands: argparse._SubParsersAction[common.Parser]) -> None:
    """Declare the command."""
    parser = common.add_command(
        commands,
        "build",
        "Build a TensorRT engine of an optimized model. Also prints the command lines of trtexec"
        " and Polygraphy that build it.",
        _EXAMPLES,
        notes=_NOTES,
    )
    common.add_model(parser, "optimized", "OPTIMIZED", "an ONNX file that `optimize` wrote")
    common.add_output(parser, "ENGINE", "where to write the engine")
    for kind, text in (
        ("min", "smallest shapes of the dynamic inputs"),
        ("opt", "shapes to optimize for"),
        ("max", "largest shapes"),
    ):
        parser.add_argument(
            f"--{kind}-shapes",
            metavar="NAME:SHAPE",
            nargs="+",
            action="append",
            default=[],
            help=f"{text}, as ids:[8,512] or ids:8x512; once for each profile",
        )
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        help="what builds: tensorrt, or tensorrt-rtx, which builds the expanded model (no"
        " plugins) and needs no GPU (default: tensorrt)",
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="let TensorRT compute float32 products in TF32",
    )
    parser.add_argument(
        "--print-commands",
        action="store_true",
        help="build nothing, only print the command lines",
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Build one engine, or print how to."""
    from stof_onnx import engine
    from stof_onnx.cli import json_text, render
    from stof_onnx.ir.shapes import parse_input_shapes
    from stof_onnx.progress import RichProgress

    shapes = {
        f"{kind}_shapes": [
            parse_input_shapes(texts) for texts in getattr(arguments, f"{kind}_shapes")
        ]
        for kind in ("min", "opt", "max")
    }
    if arguments.print_commands:
        commands = engine.build_commands(
            arguments.optimized, arguments.output, **shapes, tf32=arguments.tf32
        )
        if arguments.json:
            out.write(json_text.dump({"commands": commands.to_json()}))
        else:
            _print_commands(commands, out)
        return 0
    result = engine.build(
        arguments.optimized,
        arguments.output,
        **shapes,
        backend=arguments.backend,
        tf32=arguments.tf32,
        progress=RichProgress(),
    )
    for note in result.notes:
        sys.stderr.write(f"stof-onnx: note: {note}\n")
    if arguments.json:
        out.write(json_text.dump(result.to_json()))
        return 0
    console = render.console(out)
    render.line(console, "model", arguments.optimized)
    render.line(console, "backend", f"{result.backend}, {result.seconds:.1f} s")
    _print_profiles(result, out)
    render.written(console, result.engine)
    out.write("\n")
    _print_commands(result.commands, out)
    return 0


def _print_profiles(result: BuildResult, out: TextIO) -> None:
    from stof_onnx.cli import render
    from stof_onnx.ir.shapes import format_shape

    console = render.console(out)
    for number, profile in enumerate(result.profiles):
        for name, shapes in profile.items():
            sizes = (shapes.minimum, shapes.optimum, shapes.maximum)
            text = " .. ".join(format_shape(shape) for shape in sizes)
            render.line(console, f"profile {number}", f"{name} {text}")


def _print_commands(commands: BuildCommands, out: TextIO) -> None:
    # Not through rich: a line that is to be copied must not be folded.
    out.write("with trtexec:\n")
    out.write(f"  {shlex.join(commands.trtexec)}\n")
    out.write("with Polygraphy, compared with ONNX Runtime:\n")
    for line in commands.polygraphy:
        out.write(f"  {shlex.join(line)}\n")
