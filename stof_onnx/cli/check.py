"""``stof-onnx check``: does an optimized model agree with its original?"""

from __future__ import annotations

import argparse
from typing import TextIO

from stof_onnx.cli import arguments as common

_EXAMPLES = """\
stof-onnx check bert.onnx bert.stof.onnx
stof-onnx check bert.onnx bert.stof.onnx --input-shapes ids:[2,128] mask:[2,128] --atol 1e-4"""


def add_parser(commands: argparse._SubParsersAction[common.Parser]) -> None:
    """Declare the command."""
    parser = common.add_command(
        commands,
        "check",
        "Compare an optimized model with its original. ONNX Runtime runs the original and the"
        " expanded optimized model on generated inputs, with and without padding, at more than"
        " one shape.",
        _EXAMPLES,
    )
    common.add_model(parser, "original", "ORIGINAL", "the ONNX file that was optimized")
    common.add_model(parser, "optimized", "OPTIMIZED", "what `optimize` made of it")
    common.add_tolerances(parser)
    common.add_input_shapes(parser, "shapes to run at")
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Compare two models; 0 when they agree, 1 when they don't."""
    shapes = common.input_shapes(arguments)
    from stof_onnx import api
    from stof_onnx.cli import json_text, render
    from stof_onnx.progress import RichProgress

    result = api.check(
        arguments.original,
        arguments.optimized,
        atol=arguments.atol,
        rtol=arguments.rtol,
        input_shapes=shapes,
        progress=RichProgress(),
    )
    if arguments.json:
        out.write(json_text.dump(result.to_json()))
    else:
        render.check(render.console(out), result.to_json(), verbose=True)
    return 0 if result.passed else 1
