"""Progress: silent by default, bars on a terminal and nowhere else."""

from __future__ import annotations

import io

import pytest

from stof_onnx.progress import NullProgress, RichProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress) -> None:
    with progress.task("Outer [work]", 2) as outer:
        with progress.task("Inner", None) as inner:
            inner.advance()
        outer.advance(2)


def test_null_progress_is_silent(capsys):
    work(NullProgress())
    assert capsys.readouterr() == ("", "")


def test_rich_progress_is_silent_off_a_terminal(capsys):
    work(RichProgress())
    stream = io.StringIO()
    work(RichProgress(stream))
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_rich_progress_draws_nested_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = RichProgress(stream)
    work(progress)
    work(progress)
    assert "Outer [work]" in stream.getvalue()
    assert "Inner" in stream.getvalue()


def test_rich_progress_leaves_the_terminal_usable_after_an_error(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(KeyError), RichProgress(stream).task("Failing", 1):
        raise KeyError("k")
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert stream.getvalue().count(hidden) == stream.getvalue().count(shown) > 0
