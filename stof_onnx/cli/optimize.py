"""``stof-onnx optimize``: fuse attention, check the result, write it."""

from __future__ import annotations

import argparse
from typing import TextIO

from stof_onnx.cli import arguments as common
from stof_onnx.ir.errors import InputError
from stof_onnx.ir.target import DESCRIPTIONS

_EXAMPLES = """\
stof-onnx optimize bert.onnx -o bert.stof.onnx --target sm_90
stof-onnx optimize gpt2.onnx -o gpt2.stof.onnx --input-shapes ids:[8,512] mask:[8,512]
stof-onnx optimize bert.onnx -o bert.stof.onnx --fp16
stof-onnx optimize bert.onnx -o bert.stof.onnx --report bert.json -v"""

_TARGETS = "".join(f"  {name:<9} {text}\n" for name, text in DESCRIPTIONS.items())


def add_parser(commands: argparse._SubParsersAction[common.Parser]) -> None:
    """Declare the command."""
    parser = common.add_command(
        commands,
        "optimize",
        "Replace masked attention by stof nodes and check the result. The optimized model is"
        " expanded to standard operators and compared with the original in ONNX Runtime; if"
        " they differ, nothing is written. Each node gets kernels compiled for the targets,"
        " which needs no GPU.",
        _EXAMPLES,
        notes=f"targets:\n{_TARGETS}\n",
    )
    common.add_model(parser, "model", "MODEL", "the ONNX file to optimize")
    common.add_output(parser, "OUT", "where to write the optimized ONNX file")
    parser.add_argument(
        "--target",
        metavar="SM",
        action="append",
        help="GPU architecture to compile kernels for, one of those below, e.g. sm_90; may be"
        " repeated (default: auto, the GPUs of this machine)",
    )
    common.add_input_shapes(parser, "shapes to check with")
    lowering = parser.add_mutually_exclusive_group()
    for option, precision in (("--fp16", "float16"), ("--bf16", "bfloat16")):
        lowering.add_argument(
            option,
            dest="precision",
            action="store_const",
            const=precision,
            help=f"lower a float32 model to {precision} first: softmax, normalisations, masks,"
            " positions, inputs and outputs stay float32, and what it changes is measured",
        )
    parser.add_argument(
        "--autocast",
        action="store_true",
        help="with --fp16 or --bf16: let NVIDIA ModelOpt's AutoCast choose what else stays float32"
        " (pip install 'stof-onnx[autocast]')",
    )
    parser.add_argument(
        "--report",
        metavar="FILE.json",
        type=common.output_file,
        help="also write what was found and done as JSON",
    )
    parser.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="don't compare the result with the original",
    )
    parser.add_argument(
        "--no-kernels",
        dest="kernels",
        action="store_false",
        help="don't compile kernels: the result can be checked and expanded, but not run",
    )
    parser.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="compile every kernel anew (compiled kernels are kept in $STOF_ONNX_CACHE, or else"
        " in stof-onnx in the user's cache directory)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Optimize one model."""
    shapes = common.input_shapes(arguments)
    if arguments.autocast and arguments.precision is None:
        raise InputError("--autocast without a type to lower to", "--fp16 or --bf16 beside it")
    from stof_onnx import api
    from stof_onnx.cli import json_text, render
    from stof_onnx.jit.cache import KernelCache
    from stof_onnx.progress import RichProgress

    if arguments.report is not None:
        json_text.check_report_path(arguments.report, [arguments.model, arguments.output])
    cache = KernelCache() if arguments.cache and arguments.kernels else None
    result = api.optimize(
        arguments.model,
        arguments.output,
        targets=arguments.target or ["auto"],
        input_shapes=shapes,
        check=arguments.check,
        kernels=arguments.kernels,
        precision=arguments.precision,
        autocast=arguments.autocast,
        cache=cache,
        progress=RichProgress(),
    )
    if arguments.report is not None:
        json_text.write_aside(arguments.report, result.report.to_json())
    console = render.console(out)
    render.report(console, result.report, verbose=arguments.verbose)
    if arguments.verbose and cache is not None:
        found = f"{cache.hits} kernels from {cache.directory}" if cache.directory else "not used"
        render.line(console, "cache", f"{found}, {cache.misses} compiled")
    render.written(console, arguments.output)
    if arguments.report is not None:
        render.written(console, arguments.report)
    return 0
