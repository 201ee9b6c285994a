"""The ``stof-onnx`` command.

Results go to stdout, everything else to stderr. One file for each command, with

- ``add_parser(commands)``: declares its arguments and an example;
- ``run(arguments, out)``: does the work, writes the result to ``out`` and returns
  the exit code.

Nothing here imports ONNX or rich before a command runs: ``--help`` and
``--version`` answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from stof_onnx.cli import build, check, env, expand, inspect, optimize
from stof_onnx.cli.arguments import EXIT_CODES, Parser, VersionAction
from stof_onnx.ir.errors import StofError

_COMMANDS = (optimize, inspect, expand, check, build, env)

EXIT_BAD_INPUT = 2
EXIT_BUG = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

_SHOW_TRACEBACK = 2

# Since 1.32 ONNX Runtime reports its use to Microsoft on Linux too, keeps a database in the user's
# cache directory for that, and complains on stderr where it can't. Nobody who runs this command
# asked for it. Read when the library is loaded; whoever sets the variable has the last word.
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="stof-onnx",
        description="Replaces masked attention in exported ONNX Transformers by TensorRT"
        " plugin nodes, and proves that the answer stays the same.",
        epilog="example:\n  stof-onnx optimize bert.onnx -o bert.stof.onnx --target sm_90\n\n"
        + EXIT_CODES,
    )
    parser.add_argument("--version", action=VersionAction)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit code, as ``stof-onnx --help`` documents it.
    """
    _open_closed_streams()
    # What the handlers below rely on if parsing the arguments itself fails.
    arguments = argparse.Namespace(verbose=0)
    try:
        build_parser().parse_args(argv, arguments)
        return _run(arguments, sys.stdout)
    except SystemExit as stop:  # --help, --version and usage errors
        return stop.code if isinstance(stop.code, int) else EXIT_BAD_INPUT
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, arguments)
    except StofError as error:
        return _fail(str(error), error.exit_code, arguments)
    except OSError as error:
        return _fail(str(error), EXIT_BAD_INPUT, arguments)
    except MemoryError:
        return _fail("out of memory", EXIT_BAD_INPUT, arguments)
    except Exception as error:
        again = "" if arguments.verbose >= _SHOW_TRACEBACK else " and run with -vv"
        text = f"{type(error).__name__}: {error}; this is a bug: please report it{again}"
        return _fail(text, EXIT_BUG, arguments)


def _run(arguments: argparse.Namespace, out: TextIO) -> int:
    # A file name or tensor name that the terminal's encoding lacks is no reason to fail.
    reconfigure = getattr(out, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    os.environ.setdefault(_NO_TELEMETRY, "1")
    with contextlib.ExitStack() as stack:
        # Libraries that print (onnx-graphsurgeon's and Polygraphy's loggers do) must not get
        # between the results: whoever reads stdout may be parsing JSON.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if arguments.verbose < _SHOW_TRACEBACK and not sys.warnoptions:
            stack.enter_context(warnings.catch_warnings())
            _only_cache_warnings(every=arguments.verbose > 0)
        code: int = arguments.run(arguments, out)
    # Here, and not at exit, where nobody could catch the broken pipe or the full disk.
    out.flush()
    return code


def _fail(text: str, code: int, arguments: argparse.Namespace) -> int:
    """Say what went wrong in one line; with -vv show where."""
    # Where nobody reads stderr, the exit code has to say it.
    with contextlib.suppress(OSError):
        if arguments.verbose >= _SHOW_TRACEBACK:
            traceback.print_exc()
        print(f"stof-onnx: error: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201
    return code


def _only_cache_warnings(*, every: bool) -> None:
    """Hide warnings, but say in a line on stderr that the kernel cache can't be used.

    Args:
        every: of its entries too; otherwise the first warning stands for all.
    """
    from stof_onnx.jit.errors import CacheWarning

    said: set[str] = set()

    def show(message: Warning | str, *details: Any, **options: Any) -> None:
        del details, options
        text = str(message)
        if text not in said and (every or not said):
            sys.stderr.write(f"stof-onnx: note: {text}\n")
        said.add(text)

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", CacheWarning)
    warnings.showwarning = show


def _open_closed_streams() -> None:
    """Put /dev/null where the caller closed a standard stream.

    Python has None there, which nobody expects. And the next file to be opened, perhaps the
    model that is written, would get the stream's number and what C++ libraries print to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _silence_stdout() -> None:
    # Python flushes stdout once more at exit, which would complain about the closed pipe.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
