"""Kinds of stored values: each is read, written and checked by the object that describes it.

The payload of a plan is described with them in :mod:`stof_onnx.ir.plan.payload`.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any, Protocol

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.plan.records import canonical_json

REBUILD = "run `stof-onnx optimize` again"

Document = dict[str, Any]
"""A plan, or a part of it, in plain values: dicts, lists, numbers and strings, named as in
docs/plan.md, with indices where records hold objects. It is what JSON shows of a plan."""


def unsound(where: str, came: str, wanted: str = "") -> MalformedNodeError:
    """The error for a plan that breaks a rule of docs/plan.md.

    Args:
        where: path in the document ("variants[0].kernels[1].image").
        came: what is there.
        wanted: what would be right.
    """
    return MalformedNodeError(f"a plan with {where or 'the payload'} {came}", wanted, REBUILD)


class Cursor:
    """A position in the payload."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return len(self._data) - self._at

    def take(self, count: int, where: str) -> bytes:
        """The next bytes.

        Raises:
            MalformedNodeError: the payload ends before.
        """
        if count > self.left:
            raise unsound(where, f"that needs {count} bytes where {self.left} are left")
        self._at += count
        return self._data[self._at - count : self._at]


class Layout(Protocol):
    """How one kind of value is stored."""

    def read(self, cursor: Cursor, where: str) -> Any:
        """The next value, of the right type but not checked further."""

    def write(self, value: Any, out: bytearray) -> None:
        """Append a checked value."""

    def check(self, value: Any, where: str) -> None:
        """Raise MalformedNodeError for a value that can't be stored or isn't allowed here."""


@dataclass(frozen=True)
class Integer:
    """A little-endian integer within bounds; ``code`` is that of :mod:`struct`."""

    code: str
    low: int
    high: int

    def read(self, cursor: Cursor, where: str) -> int:
        """See :class:`Layout`."""
        form = f"<{self.code}"
        return int(struct.unpack(form, cursor.take(struct.calcsize(form), where))[0])

    def write(self, value: int, out: bytearray) -> None:
        """See :class:`Layout`."""
        out += struct.pack(f"<{self.code}", value)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise unsound(where, f"{value!r}", "an integer")
        if not self.low <= value <= self.high:
            raise unsound(where, f"{value}", f"{self.low} to {self.high}")


class PowerOfTwo(Integer):
    """An unsigned 32-bit power of 2."""

    def __init__(self) -> None:
        super().__init__("I", 1, 2**31)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        super().check(value, where)
        if value & (value - 1):
            raise unsound(where, f"{value}", "a power of 2")


@dataclass(frozen=True)
class Float:
    """A 32-bit float, in the document as text, since JSON has no infinity."""

    def read(self, cursor: Cursor, where: str) -> str:
        """See :class:`Layout`."""
        return repr(struct.unpack("<f", cursor.take(4, where))[0])

    def write(self, value: str, out: bytearray) -> None:
        """See :class:`Layout`."""
        out += struct.pack("<f", float(value))

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        try:
            number = float(value) if isinstance(value, str) else math.nan
            struct.pack("<f", number)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isnan(number):
            raise unsound(where, f"{value!r}", "the text of a 32-bit float, not NaN")


@dataclass(frozen=True)
class Choice:
    """A u8 that stands for one of these names."""

    names: tuple[str, ...]

    def read(self, cursor: Cursor, where: str) -> str:
        """See :class:`Layout`."""
        number = cursor.take(1, where)[0]
        if number >= len(self.names):
            raise unsound(where, f"{number}", f"0 to {len(self.names) - 1}")
        return self.names[number]

    def write(self, value: str, out: bytearray) -> None:
        """See :class:`Layout`."""
        out.append(self.names.index(value))

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        if not isinstance(value, str) or value not in self.names:
            raise unsound(where, f"{value!r}", f"one of {', '.join(self.names)}")


def _read_bytes(cursor: Cursor, where: str) -> bytes:
    return cursor.take(U32.read(cursor, where), where)


def _write_bytes(value: bytes, out: bytearray) -> None:
    U32.write(len(value), out)
    out += value


@dataclass(frozen=True)
class Name:
    """Printable ASCII, at least one character."""

    def read(self, cursor: Cursor, where: str) -> str:
        """See :class:`Layout`."""
        return _read_bytes(cursor, where).decode("latin-1")

    def write(self, value: str, out: bytearray) -> None:
        """See :class:`Layout`."""
        _write_bytes(value.encode("ascii"), out)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        text = value if isinstance(value, str) else ""
        if not text or not text.isascii() or not text.isprintable():
            raise unsound(where, f"{value!r}", "printable ASCII characters")


@dataclass(frozen=True)
class JsonObject:
    """A JSON object in its canonical text."""

    def read(self, cursor: Cursor, where: str) -> Document:
        """See :class:`Layout`."""
        text = _read_bytes(cursor, where).decode("latin-1")
        try:
            value = json.loads(text)
            sound = isinstance(value, dict) and canonical_json(value) == text
        except (ValueError, RecursionError):
            value, sound = {}, False
        if not sound:
            raise unsound(where, f"{text[:80]!r}", "a JSON object, keys sorted, without spaces")
        return dict(value)

    def write(self, value: Document, out: bytearray) -> None:
        """See :class:`Layout`."""
        _write_bytes(canonical_json(value).encode("ascii"), out)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        try:
            sound = isinstance(value, dict) and json.loads(canonical_json(value)) == value
        except (TypeError, ValueError, RecursionError):
            sound = False
        if not sound:
            raise unsound(where, f"{str(value)[:80]!r}", "a JSON object")


@dataclass(frozen=True)
class Blob:
    """Bytes, at least one."""

    def read(self, cursor: Cursor, where: str) -> bytes:
        """See :class:`Layout`."""
        return _read_bytes(cursor, where)

    def write(self, value: bytes, out: bytearray) -> None:
        """See :class:`Layout`."""
        _write_bytes(value, out)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        if not isinstance(value, bytes) or not value:
            raise unsound(where, "that is empty or isn't bytes", "at least one byte")


@dataclass(frozen=True)
class ListOf:
    """A count and that many values."""

    element: Layout
    at_least: int = 0

    def read(self, cursor: Cursor, where: str) -> list[Any]:
        """See :class:`Layout`."""
        count = U32.read(cursor, where)
        if count > cursor.left:  # every element has a byte or more
            raise unsound(where, f"of {count} elements where {cursor.left} bytes are left")
        return [self.element.read(cursor, f"{where}[{i}]") for i in range(count)]

    def write(self, value: list[Any], out: bytearray) -> None:
        """See :class:`Layout`."""
        U32.write(len(value), out)
        for element in value:
            self.element.write(element, out)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        if not isinstance(value, list) or len(value) < self.at_least:
            came = f"of {len(value)} elements" if isinstance(value, list) else f"{value!r}"
            raise unsound(where, came, f"a list of at least {self.at_least}")
        for i, element in enumerate(value):
            self.element.check(element, f"{where}[{i}]")


@dataclass(frozen=True)
class Three:
    """Three values: x, y and z."""

    element: Layout

    def read(self, cursor: Cursor, where: str) -> list[Any]:
        """See :class:`Layout`."""
        return [self.element.read(cursor, f"{where}[{i}]") for i in range(3)]

    def write(self, value: list[Any], out: bytearray) -> None:
        """See :class:`Layout`."""
        for element in value:
            self.element.write(element, out)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        if not isinstance(value, list) or len(value) != 3:
            raise unsound(where, f"{value!r}", "three values")
        for i, element in enumerate(value):
            self.element.check(element, f"{where}[{i}]")


class Record:
    """Named fields, one after the other."""

    def __init__(self, **fields: Layout) -> None:
        self._fields = fields

    def read(self, cursor: Cursor, where: str) -> Document:
        """See :class:`Layout`."""
        return {
            name: field.read(cursor, _member(where, name)) for name, field in self._fields.items()
        }

    def write(self, value: Document, out: bytearray) -> None:
        """See :class:`Layout`."""
        for name, field in self._fields.items():
            field.write(value[name], out)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        if not isinstance(value, dict) or set(value) != set(self._fields):
            came = f"of {sorted(map(str, value))}" if isinstance(value, dict) else f"{value!r}"
            raise unsound(where, came, f"the fields {', '.join(self._fields)}")
        for name, field in self._fields.items():
            field.check(value[name], _member(where, name))


class OneOf:
    """A record whose first field, ``kind``, says which fields follow."""

    def __init__(self, **cases: Record) -> None:
        self._kind = Choice(tuple(cases))
        self._cases = cases

    def read(self, cursor: Cursor, where: str) -> Document:
        """See :class:`Layout`."""
        kind = self._kind.read(cursor, _member(where, "kind"))
        return {"kind": kind, **self._cases[kind].read(cursor, where)}

    def write(self, value: Document, out: bytearray) -> None:
        """See :class:`Layout`."""
        self._kind.write(value["kind"], out)
        self._cases[value["kind"]].write(value, out)

    def check(self, value: Any, where: str) -> None:
        """See :class:`Layout`."""
        if not isinstance(value, dict):
            raise unsound(where, f"{value!r}", "an object")
        self._kind.check(value.get("kind"), _member(where, "kind"))
        rest = {name: member for name, member in value.items() if name != "kind"}
        self._cases[value["kind"]].check(rest, where)


def _member(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


U32 = Integer("I", 0, 2**32 - 1)
I64 = Integer("q", -(2**63), 2**63 - 1)
