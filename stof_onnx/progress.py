"""How long work tells that it is getting on.

Library code takes a :class:`Progress` and knows nothing of terminals. The command
line passes a :class:`RichProgress`; everybody else gets the silent
:class:`NullProgress` unless they bring their own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID


class Task(Protocol):
    """One piece of work that has started."""

    def advance(self, n: int = 1) -> None:
        """Say that ``n`` more steps are done."""


class Progress(Protocol):
    """Something that shows pieces of work; pieces may be nested."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Task]:
        """Start a piece of work, which ends with the context.

        Args:
            description: what is being done, e.g. "Checking".
            total: number of steps; None where nobody knows.
        """


class _NullTask:
    def advance(self, n: int = 1) -> None:
        """Do nothing."""


class NullProgress:
    """Shows nothing."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Task]:
        """Start a piece of work that nobody sees."""
        del description, total
        return contextlib.nullcontext(_NullTask())


class _RichTask:
    def __init__(self, bars: RichBars, identifier: TaskID) -> None:
        self._bars = bars
        self._identifier = identifier

    def advance(self, n: int = 1) -> None:
        """Move the bar by ``n`` steps."""
        self._bars.advance(self._identifier, n)


class RichProgress:
    """Bars on a terminal that vanish when the work is done; nothing elsewhere.

    Args:
        stream: where to draw; sys.stderr if None, so that results on stdout can be piped.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._bars: RichBars | None = None

    @contextlib.contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Task]:
        """Start a piece of work with a bar of its own."""
        if not self._stream.isatty():
            yield _NullTask()
            return
        # A terminal has room for one live display: nested work adds its bar to the outer one's.
        outermost = self._bars is None
        bars = self._bars = self._bars or self._start()
        identifier = bars.add_task(description, total=total)
        try:
            yield _RichTask(bars, identifier)
        finally:
            bars.remove_task(identifier)
            if outermost:
                bars.stop()
                self._bars = None

    def _start(self) -> RichBars:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichBars

        bars = RichBars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=self._stream),
            transient=True,
            # stdout and stderr stay what they are: results must not pass through the display.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        bars.start()
        return bars
