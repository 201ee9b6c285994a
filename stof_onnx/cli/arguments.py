"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

_TEXT_WIDTH = 78

EXIT_CODES = """\
exit codes:
  0    done (check: the models agree; optimize: also if nothing could be fused, in
       which case OUT is a copy of MODEL)
  1    the optimized model doesn't agree with its original; nothing was written
  2    bad input, usage or environment; nothing was written
  3    a bug of stof-onnx
  130  interrupted
  141  the reader of stdout went away
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose texts stay as written."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        # An abbreviation that works today would change its meaning with a new option.
        options.setdefault("allow_abbrev", False)
        # Examples must stay as written, which argparse grants to all texts or to none.
        options["description"] = textwrap.fill(options.get("description") or "", _TEXT_WIDTH)
        super().__init__(**options)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit, but not before what was printed is out: nobody could catch a broken pipe later."""
        sys.stdout.flush()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with code 2."""
        self.exit(2, f"stof-onnx: error: {' '.join(message.split())}; see `{self.prog} --help`\n")


class VersionAction(argparse.Action):
    """``--version``, looked up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option: Any = None
    ) -> None:
        """Print the version on stdout."""
        del namespace, values, option
        from stof_onnx import __version__

        sys.stdout.write(f"stof-onnx {__version__}\n")
        parser.exit()


def add_command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    description: str,
    examples: str,
    *,
    notes: str = "",
) -> Parser:
    """Add a command with its examples, the exit codes and ``-v``.

    Args:
        commands: where to add it.
        name: of the command.
        description: one paragraph; its first sentence is shown in ``stof-onnx --help``.
        examples: command lines, one a line.
        notes: what else belongs below the options.
    """
    lines = "".join(f"  {line}\n" for line in examples.splitlines())
    parser = commands.add_parser(
        name,
        help=description.split(". ", maxsplit=1)[0].rstrip("."),
        description=description,
        epilog=f"examples:\n{lines}\n{notes}{EXIT_CODES}",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say more; -vv also shows the traceback of an error",
    )
    return parser


def add_model(parser: Parser, dest: str, metavar: str, text: str) -> None:
    """Add a model file as positional argument."""
    parser.add_argument(dest, metavar=metavar, help=text)


def add_output(parser: Parser, metavar: str, text: str) -> None:
    """Add ``-o``."""
    parser.add_argument(
        "-o", "--output", metavar=metavar, required=True, type=output_file, help=text
    )


def add_input_shapes(parser: Parser, text: str) -> None:
    """Add ``--input-shapes``."""
    parser.add_argument(
        "--input-shapes",
        metavar="NAME:SHAPE",
        nargs="+",
        action="extend",
        default=[],
        help=f"{text}, as ids:[8,512] or ids:8x512; may be repeated; give it after the models",
    )


def output_file(text: str) -> str:
    """A path to write to; for argparse.

    Raises:
        argparse.ArgumentTypeError: "-", which is stdout to many programs.
    """
    if text == "-":
        raise argparse.ArgumentTypeError(
            "files can't be written to stdout; a file named - is written as ./-"
        )
    return text


def add_json(parser: Parser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_tolerances(parser: Parser) -> None:
    """Add ``--atol`` and ``--rtol``."""
    for name, kind in (("--atol", "absolute"), ("--rtol", "relative")):
        parser.add_argument(
            name,
            type=_tolerance,
            metavar="X",
            help=f"{kind} tolerance (default: by the outputs' types)",
        )


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    # The negation also refuses NaN, with which every comparison would fail.
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number >= 0, e.g. 1e-4")
    return value


def input_shapes(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The parsed ``--input-shapes``, None where there were none.

    Raises:
        InputError: a shape can't be read.
    """
    if not arguments.input_shapes:
        return None
    from stof_onnx.ir.shapes import parse_input_shapes

    return dict(parse_input_shapes(arguments.input_shapes))
