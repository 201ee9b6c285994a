"""``stof-onnx expand``: back to standard operators."""

from __future__ import annotations

import argparse
from typing import TextIO

from stof_onnx.cli import arguments as common

_EXAMPLES = "stof-onnx expand bert.stof.onnx -o bert.plain.onnx"


def add_parser(commands: argparse._SubParsersAction[common.Parser]) -> None:
    """Declare the command."""
    parser = common.add_command(
        commands,
        "expand",
        "Turn every stof node back into standard ONNX operators. The result runs in any ONNX"
        " runtime, without the plugin library.",
        _EXAMPLES,
    )
    common.add_model(parser, "optimized", "OPTIMIZED", "an ONNX file that `optimize` wrote")
    common.add_output(parser, "PLAIN", "where to write the ONNX file of standard operators")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Expand one model."""
    from stof_onnx import api
    from stof_onnx.cli import render

    plain = api.expand(arguments.optimized, arguments.output)
    console = render.console(out)
    render.line(console, "model", arguments.optimized)
    render.line(console, "operators", f"{len(plain.graph.node)}, all of them standard")
    render.written(console, arguments.output)
    return 0
