"""``stof-onnx inspect``: what would be fused or refused and why, or what a file contains."""

from __future__ import annotations

import argparse
from typing import TextIO

from stof_onnx.cli import arguments as common

_EXAMPLES = """\
stof-onnx inspect bert.onnx
stof-onnx inspect bert.onnx --json | jq '.attention[] | .name + ": " + .mask.kind'
stof-onnx inspect bert.onnx --plot masks --input-shapes ids:[8,4096] mask:[8,4096]
stof-onnx inspect bert.stof.onnx -v"""

_NOTES = """\
The "kind" of --json is "original" or "optimized".

"""


def add_parser(commands: argparse._SubParsersAction[common.Parser]) -> None:
    """Declare the command."""
    parser = common.add_command(
        commands,
        "inspect",
        "List the attention blocks of a model. For each its shapes, its mask, and whether"
        " `optimize` would fuse or refuse it and why. Of an optimized file the stof nodes, with"
        " the kernels that their plans contain. Writes no file but the pictures asked for.",
        _EXAMPLES,
        notes=_NOTES,
    )
    common.add_model(parser, "model", "MODEL", "the ONNX file to look at")
    common.add_input_shapes(parser, "shapes to measure masks at")
    parser.add_argument(
        "--plot",
        metavar="DIR",
        type=common.output_file,
        help="draw each distinct mask as a PNG file in DIR: its pairs, and the tiles of 64x64"
        " that are full, partial and empty (pip install 'stof-onnx[plot]')",
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Inspect one model."""
    shapes = common.input_shapes(arguments)
    from stof_onnx import api
    from stof_onnx.cli import json_text, render
    from stof_onnx.cli.render_contents import contents
    from stof_onnx.progress import RichProgress
    from stof_onnx.report.records import OptimizedReport

    report = api.inspect(
        arguments.model, input_shapes=shapes, plot=arguments.plot, progress=RichProgress()
    )
    if arguments.json:
        out.write(json_text.dump(report.to_json()))
        return 0
    console = render.console(out)
    if isinstance(report, OptimizedReport):
        contents(console, report, verbose=arguments.verbose)
    else:
        render.report(console, report, verbose=arguments.verbose)
    if arguments.plot is not None:
        render.pictures(console, report)
    return 0
