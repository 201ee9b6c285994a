"""What is in a cubin, as NVIDIA's disassembler reads it."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

# "        /*0030*/              @!P0 LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;"
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)
_WORD = r"\s+/\*[0-9a-f]+\*/\s+\.word\s+"


def nvdisasm() -> Path:
    """The program of the nvidia-cuda-nvdisasm wheel."""
    distribution = importlib.metadata.distribution("nvidia-cuda-nvdisasm")
    (program,) = (file for file in distribution.files or () if file.name == "nvdisasm")
    return Path(str(program.locate()))


@functools.cache
def disassemble(cubin: bytes) -> str:
    """All sections of a cubin as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [nvdisasm(), file.name], check=True, stdout=subprocess.PIPE, text=True
        )
    return done.stdout


def opcode_counts(cubin: bytes, entry: str | None = None) -> Counter[str]:
    """How often each opcode stands in a cubin, by its name without modifiers.

    Args:
        cubin: the file's bytes.
        entry: count only the code of this kernel.

    Returns:
        E.g. ``{"HMMA": 64, "LDGSTS": 8, ...}``; 0 for what doesn't occur.
    """
    text = disassemble(cubin)
    counts: Counter[str] = Counter()
    for section in re.split(r"^(?=\s*\.section\s)", text, flags=re.MULTILINE):
        name = re.match(r"\s*\.section\s+\.text\.([^,]+),", section)
        if name and (entry is None or name[1] == entry):
            counts.update(_INSTRUCTION.findall(section))
    return counts


def registers_and_frame(cubin: bytes, entry: str) -> tuple[int, int]:
    """Registers and stack bytes per thread that the loader is told."""
    text = disassemble(cubin)
    return _attribute(text, "REGCOUNT", entry), _attribute(text, "FRAME_SIZE", entry)


def _attribute(text: str, name: str, entry: str) -> int:
    match = re.search(
        rf"EIATTR_{name}\n(?:(?!EIATTR).)*?{_WORD}index@\({entry}\){_WORD}0x([0-9a-f]+)",
        text,
        re.DOTALL,
    )
    assert match is not None, f"no {name} of {entry}"
    return int(match[1], 16)


def shared_bytes(cubin: bytes, entry: str) -> int:
    """Static shared memory of a kernel, including what the driver reserves."""
    text = disassemble(cubin)
    match = re.search(rf"\.section\s+\.nv\.shared\.{entry},.*?\.zero\s+(\d+)", text, re.DOTALL)
    return int(match[1]) if match else 0
