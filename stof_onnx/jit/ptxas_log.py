"""Reads registers, shared memory and spills from what ``ptxas -v`` writes."""

from __future__ import annotations

import re

from stof_onnx.jit.job import Resources

_ENTRY = re.compile(r"^ptxas info\s*: Compiling entry function '(?P<name>[^']+)'")
_FUNCTION = re.compile(
    r"(?P<frame>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads"
)
_REGISTERS = re.compile(r"\bUsed (\d+) registers\b")
_SHARED = re.compile(r"\b(\d+) bytes smem\b")
_CUMULATIVE_STACK = re.compile(r"\b(\d+) bytes cumulative stack size\b")
_TIME = re.compile(r"^ptxas info\s*: Compile time\b")


def without_times(log: str) -> str:
    """The log without the lines that differ from one run to the next."""
    return "".join(line for line in log.splitlines(keepends=True) if not _TIME.match(line))


def read_resources(log: str, entry: str) -> Resources | None:
    """What the log says about one kernel.

    The kernel's part of the log goes from its "Compiling entry function" to the next one:
    a line on the kernel's own frame and spills, one on its registers and memory, then a line
    on frame and spills of each function that was not inlined. Those are given for every
    kernel, whether it calls the function or not, so the sums are an upper bound.

    Args:
        log: NVRTC's log of a compilation to a cubin, with ``--ptxas-options=-v``.
        entry: name of the kernel.

    Returns:
        None if the log does not mention the kernel, or not in the known form.
    """
    part = _part_of(entry, log.splitlines())
    functions = [match for line in part if (match := _FUNCTION.search(line))]
    used = next((line for line in part if _REGISTERS.search(line)), None)
    if not functions or used is None:
        return None
    # Absent when it is zero.
    stack = _number(_CUMULATIVE_STACK, used)
    return Resources(
        registers=_number(_REGISTERS, used),
        static_shared_bytes=_number(_SHARED, used),
        local_bytes=max(stack, int(functions[0]["frame"])),
        spill_stores_bytes=sum(int(function["stores"]) for function in functions),
        spill_loads_bytes=sum(int(function["loads"]) for function in functions),
    )


def mentions(log: str, entry: str) -> bool:
    """Whether the log says that the kernel was compiled."""
    return bool(_part_of(entry, log.splitlines()))


def _part_of(entry: str, lines: list[str]) -> list[str]:
    part: list[str] = []
    inside = False
    for line in lines:
        start = _ENTRY.match(line)
        if start:
            inside = start["name"] == entry
        if inside:
            part.append(line)
    return part


def _number(pattern: re.Pattern[str], line: str) -> int:
    match = pattern.search(line)
    return int(match[1]) if match else 0
