"""Every error that stof-onnx raises on purpose.

The command line prints the message of a :class:`StofError` as one line on stderr
and exits with the class's ``exit_code``; a traceback is shown only with ``-vv``.
A message says what came, what was wanted and what to do next.
"""

from __future__ import annotations


class StofError(Exception):
    """Base of all errors raised on purpose.

    Args:
        came: what was found ("'bert.onx' does not exist").
        wanted: what was expected instead, if it isn't obvious.
        next_step: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, came: str, wanted: str = "", next_step: str = "") -> None:
        self.came = came
        self.wanted = wanted
        self.next_step = next_step
        parts = [came]
        if wanted:
            parts.append(f"wanted {wanted}")
        if next_step:
            parts.append(next_step)
        super().__init__("; ".join(parts))


class InputError(StofError):
    """A model, shape, target or path given by the user can't be used."""


class OutputError(StofError):
    """A result can't be written where the user asked."""


class MissingDependencyError(StofError):
    """An optional dependency is needed; ``next_step`` is its install line."""


class CheckFailedError(StofError):
    """An optimized model does not agree with its original."""

    exit_code = 1


class MalformedNodeError(StofError):
    """A stof node's attributes or inputs break the operator's specification."""
