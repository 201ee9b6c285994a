"""What the modules of this package share: the type of a path, and one-line messages."""

from __future__ import annotations

import os

PathLike = str | os.PathLike[str]


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first non-empty line of an error's text, for one-line messages."""
    for line in str(error).splitlines():
        if line.strip():
            text = line.strip()
            return text if len(text) <= limit else text[: limit - 3] + "..."
    return type(error).__name__
