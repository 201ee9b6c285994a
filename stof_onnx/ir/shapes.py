"""Input shapes as users type them, in the notations of Polygraphy and of trtexec.

``ids:[8,512]`` and ``ids:8x512`` are the same shape. Several may share one argument, as
with trtexec: ``ids:8x512,mask:8x512``. The last colon separates, so names may contain
colons, slashes and dots (``onnx::ids:[8,512]``); names with a comma are not supported.
A scalar is ``x:[]`` or ``x:scalar``, and a name may stand in single quotes, as trtexec has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stof_onnx.ir.errors import InputError

_INT64_MAX = 2**63 - 1
_WANTED = "name:[8,512] or name:8x512"
_COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")
_DIM = re.compile(r"[0-9]{1,19}")
_DYNAMIC = re.compile(r"-1|\?|'.*'|\".*\"|[A-Za-z_]\w*")


def parse_input_shapes(args: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Reads the values of ``--input-shapes``.

    Args:
        args: texts such as ``ids:[8,512]`` or ``ids:8x512,mask:8x512``.

    Returns:
        The shape of each input, in the order given.

    Raises:
        InputError: a text that is no shape, a dimension that isn't a positive number, or
            two different shapes for one name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for arg in args:
        for entry in _COMMA_OUTSIDE_BRACKETS.split(arg):
            name, shape = _parse_entry(entry.strip(), arg)
            if shapes.setdefault(name, shape) != shape:
                both = f"{format_shape(shapes[name])} and {format_shape(shape)}"
                raise InputError(f"input '{name}' is given two shapes, {both}", "one shape")
    return shapes


def format_shape(shape: Sequence[int]) -> str:
    """A shape as :func:`parse_input_shapes` reads it behind ``name:`` : ``[8,512]``."""
    return f"[{','.join(map(str, shape))}]"


def _parse_entry(entry: str, arg: str) -> tuple[str, tuple[int, ...]]:
    """One ``name:shape``; ``arg`` is the whole argument, for messages."""
    within = "" if entry == arg else f" in '{arg}'"
    name, colon, text = (part.strip() for part in entry.rpartition(":"))
    if len(name) > 2 and name[0] == name[-1] == "'":
        name = name[1:-1]
    if not colon or not name:
        raise InputError(f"input shape '{entry}'{within} has no input name", _WANTED)
    if not text:
        next_step = f"write a scalar as {name}:[]"
        raise InputError(f"input '{name}'{within} has no shape", _WANTED, next_step)
    return name, tuple(_parse_dim(dim, name, text) for dim in _split_dims(text, name))


def _split_dims(text: str, name: str) -> list[str]:
    """The texts of the dimensions in ``[8,512]``, ``8x512``, ``[]`` or ``scalar``."""
    if text == "scalar":
        return []
    if "[" not in text and "]" not in text:
        return text.split("x")
    if not (text[0] == "[" and text[-1] == "]" and text.count("[") == text.count("]") == 1):
        raise InputError(f"input '{name}' has shape '{text}'", _WANTED)
    inner = text[1:-1].strip()
    return [dim.strip() for dim in inner.split(",")] if inner else []


def _parse_dim(dim: str, name: str, text: str) -> int:
    if _DIM.fullmatch(dim) and 0 < int(dim) <= _INT64_MAX:
        return int(dim)
    came = f"input '{name}' has dimension '{dim}' in '{text}'"
    if _DYNAMIC.fullmatch(dim):
        next_step = "write the size to optimize for in place of a dynamic dimension"
        raise InputError(came, "a positive number", next_step)
    raise InputError(came, "a positive number", f"write the shape as {_WANTED}")
