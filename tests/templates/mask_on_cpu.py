"""Generated masks, compiled for the CPU with sanitizers, and numpy's word on what they yield."""

from __future__ import annotations

import math
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import evaluate
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import MaskProgram, index_grid
from stof_onnx.ir.operators.masked_attention import TableInput
from stof_onnx.ir.plan import DataType, Int32, TensorPointer
from stof_onnx.ir.plan import evaluate as evaluate_quantity
from stof_onnx.templates.mask_source import MaskSource, mask_source

KERNELS = Path(__file__).parents[2] / "plugins" / "kernels"
SHIMS = Path(__file__).parent / "cpu"
FIRST_INPUT = 3

_OPTIONS = (
    "-std=c++17",
    "-O0",
    "-D__device__=",
    "-D__forceinline__=inline",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-unused-parameter",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
)
# bfloat16 has no numpy type: its bits are given as uint16.
_TYPES = {
    "bool": DataType.INT8,
    "int8": DataType.INT8,
    "int32": DataType.INT32,
    "int64": DataType.INT64,
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "uint16": DataType.BF16,
}


@dataclass(frozen=True)
class Case:
    """A program and what it is run on.

    Attributes:
        program: the mask.
        sizes: B, H, Sq, Sk.
        sources: array or table of each operand.
        tile: queries and keys of the tiles that are classified.
        beyond: also call the mask for the rows of the last tile that don't exist.
        table: the form of a run-time table that keep() reads in place of the program.
    """

    program: MaskProgram
    sizes: tuple[int, int, int, int]
    sources: Mapping[str, Array | BlockTable] = field(default_factory=dict)
    tile: tuple[int, int] = (16, 16)
    beyond: bool = True
    table: TableInput | None = None

    def inputs(self) -> list[Array]:
        """The node's inputs from the first operand on."""
        result: list[Array] = []
        for operand in self.program.operands:
            value = self.sources[operand.name]
            result += value.arrays().values() if isinstance(value, BlockTable) else [value]
        if self.table is not None:
            result += run_time_table(self.wanted_keep(), self.table)
        return result

    def source(self) -> MaskSource:
        """The generated C++."""
        types = (DataType.HALF,) * FIRST_INPUT + tuple(_TYPES[str(a.dtype)] for a in self.inputs())
        return mask_source(self.program, types, FIRST_INPUT, table=self.table)

    def wanted_keep(self) -> Array:
        """Kept pairs by numpy, bool [B, H, Sq, Sk]."""
        keep = self.program.evaluate_keep(self._named_sizes(), self._dense())
        return np.broadcast_to(keep, self.sizes)

    def wanted_bias(self) -> Array:
        """The bias by numpy, float32 [B, H, Sq, Sk]."""
        assert self.program.bias is not None
        bias = evaluate(self.program.bias, index_grid(self._named_sizes()), self._dense())
        return np.broadcast_to(bias, self.sizes)

    def _named_sizes(self) -> dict[str, int]:
        return dict(zip(("B", "H", "Sq", "Sk"), self.sizes, strict=True))

    def _dense(self) -> dict[str, Any]:
        return {name: Clamped(_as_dense(value)) for name, value in self.sources.items()}


class Clamped:
    """An array whose indices are clamped to it, as the kernels' are."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __getitem__(self, index: tuple[Array, ...]) -> Array:
        if self._array.size == 0:  # what is read instead doesn't matter
            return np.zeros(np.broadcast_shapes(*(i.shape for i in index)), self._array.dtype)
        limits = [np.clip(i, 0, n - 1) for i, n in zip(index, self._array.shape, strict=True)]
        return np.asarray(self._array[tuple(limits)])


def run_time_table(keep: Array, form: TableInput) -> list[Array]:
    """What StofMaskTable makes of bool [B, H, Sq, Sk]; noise where readers must not look."""
    groups = keep[: None if form.by_batch else 1, : None if form.by_head else 1]
    table = BlockTable.from_dense(groups.reshape(-1, *keep.shape[2:]), form.tile)
    rows = -(-keep.shape[2] // form.tile[0])
    columns = -(-keep.shape[3] // form.tile[1])
    starts, full = table.row_offsets[:-1], table.full_counts
    noise = np.random.default_rng(1).integers(-(2**31), 2**31, 2**16).astype(np.int32)
    listed = np.full((len(starts), columns), -1, np.int32)
    bitmaps = np.resize(noise, (len(starts), columns, math.prod(form.tile) // 32))
    for row, (start, end) in enumerate(zip(starts, table.row_offsets[1:], strict=True)):
        listed[row, : end - start] = table.tile_columns[start:end]
        for entry in range(start + full[row], end):
            bitmaps[row, table.tile_columns[entry]] = table.bitmaps[table.tile_bitmaps[entry]]
    counts = np.stack([full, np.diff(table.row_offsets) - full], axis=1).astype(np.int32)
    return [x.reshape(-1, rows, *x.shape[1:]) for x in (counts, listed, bitmaps)]


def _as_dense(value: Array | BlockTable) -> Array:
    if isinstance(value, BlockTable):
        return value.to_dense()
    if value.dtype == np.uint16:
        return (value.astype(np.uint32) << 16).view(np.float32)
    return value


@dataclass(frozen=True)
class Outcome:
    """What the compiled mask said.

    Attributes:
        can_be_false, can_be_true: of each tile, bool [B, H, query tiles, key tiles].
        keep: bool [B, H, Sq, Sk].
        bias: float32 [B, H, Sq, Sk]; None without one.
    """

    can_be_false: Array
    can_be_true: Array
    keep: Array
    bias: Array | None


class CompiledMasks:
    """The masks of some cases in one program, which runs any of them.

    Args:
        cases: of which each distinct program is compiled once.
        directory: to build in.
    """

    def __init__(self, cases: Iterable[Case], directory: Path) -> None:
        self._directory = directory
        self._numbers: dict[str, int] = {}
        parts: list[str] = []
        for case in cases:
            source = case.source()
            text = _program(len(parts), source)
            if source.text not in self._numbers:
                self._numbers[source.text] = len(parts)
                parts.append(text)
        runners = ", ".join(f"&program{number}::run" for number in range(len(parts)))
        main = f"""
int main(int, char** arguments) {{
  void (*const programs[])(const Case&, FILE*) = {{{runners}}};
  return run_all(arguments, programs);
}}
"""
        for file in (*SHIMS.iterdir(), KERNELS / "mask_algebra.cuh", KERNELS / "mask_operands.cuh"):
            shutil.copy(file, directory)
        (directory / "masks.cpp").write_text('#include "run_masks.h"\n' + "".join(parts) + main)
        command = [_compiler(), *_OPTIONS, "masks.cpp", "-o", "masks"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Run cases; fails on anything that a sanitizer finds."""
        content = struct.pack("=q", len(cases)) + b"".join(map(self._case, cases))
        (self._directory / "input").write_bytes(content)
        done = subprocess.run(
            ["./masks", "input", "output"],
            cwd=self._directory,
            capture_output=True,
            text=True,
            check=False,
            # Leaks don't matter here, and their detector doesn't run under ptrace.
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
        )
        assert done.returncode == 0, done.stderr[:4000]
        assert not done.stderr, done.stderr[:4000]
        data = (self._directory / "output").read_bytes()
        outcomes = []
        for case in cases:
            outcome, size = _outcome(case, data)
            outcomes.append(outcome)
            data = data[size:]
        assert not data
        return outcomes

    def _case(self, case: Case) -> bytes:
        source = case.source()
        inputs = case.inputs()
        symbols = {
            symbol.name: int(
                np.prod([inputs[symbol.tensor - FIRST_INPUT].shape[axis] for axis in symbol.axes])
            )
            for symbol in source.symbols
        }
        tensors, numbers = [], []
        for parameter in source.parameters:
            argument = parameter.argument
            if isinstance(argument, TensorPointer):
                assert (argument.source, argument.offset) == ("input", 0)
                tensors.append(inputs[argument.tensor - FIRST_INPUT].tobytes())
            else:
                assert isinstance(argument, Int32)
                numbers.append(evaluate_quantity(argument.value, symbols))
        head = (self._numbers[source.text], *case.sizes, *case.tile, case.beyond, len(tensors))
        return (
            struct.pack(f"={len(head)}q", *head)
            + b"".join(struct.pack("=q", len(tensor)) + tensor for tensor in tensors)
            + struct.pack(f"={1 + len(numbers)}q", len(numbers), *numbers)
        )


def _compiler() -> str:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    return compiler


def _program(number: int, source: MaskSource) -> str:
    lines = []
    tensors = numbers = 0
    for parameter in source.parameters:
        kind = parameter.declaration.removesuffix("* __restrict__")
        if kind != parameter.declaration:
            element = kind.removeprefix("const ")
            lines.append(f"{kind}* {parameter.name} = c.tensor<{element}>({tensors});")
            tensors += 1
        else:
            lines.append(f"const int {parameter.name} = c.number({numbers});")
            numbers += 1
    body = "\n  ".join([*lines, "const int B = c.B, H = c.H, Sq = c.Sq, Sk = c.Sk;"])
    return f"""
namespace program{number} {{
{source.text}

void run(const Case& c, FILE* output) {{
  {body}
  run({source.value}, c, output);
}}
}}  // namespace program{number}
"""


def _outcome(case: Case, data: bytes) -> tuple[Outcome, int]:
    batch, heads, queries, keys = case.sizes
    tiles = (batch, heads, -(-queries // case.tile[0]), -(-keys // case.tile[1]))
    tile_count, pairs = int(np.prod(tiles)), int(np.prod(case.sizes))
    states = np.frombuffer(data, np.uint8, tile_count).reshape(tiles)
    keep = np.frombuffer(data, np.uint8, pairs, tile_count).astype(bool).reshape(case.sizes)
    size = tile_count + pairs
    bias = None
    if case.program.bias is not None:
        bias = np.frombuffer(data[size : size + 4 * pairs], np.float32).reshape(case.sizes)
        size += 4 * pairs
    return Outcome(states & 1 > 0, states & 2 > 0, keep, bias), size


def dense_states(keep: Array, tile: tuple[int, int]) -> tuple[Array, Array]:
    """(some pair is dropped, some pair is kept) of each tile of a bool [B, H, Sq, Sk]."""
    batch, heads, queries, keys = keep.shape
    shape = (batch, heads, -(-queries // tile[0]), -(-keys // tile[1]))
    dropped, kept = np.empty(shape, bool), np.empty(shape, bool)
    for i, j in product(range(shape[2]), range(shape[3])):
        rows = slice(i * tile[0], (i + 1) * tile[0])
        columns = slice(j * tile[1], (j + 1) * tile[1])
        part = keep[:, :, rows, columns]
        dropped[:, :, i, j] = ~part.all((2, 3))
        kept[:, :, i, j] = part.any((2, 3))
    return dropped, kept


def check(case: Case, outcome: Outcome) -> None:
    """Elements are exact and what is said of tiles is true."""
    wanted = case.wanted_keep()
    np.testing.assert_array_equal(outcome.keep, wanted, err_msg=case.program.to_text())
    dropped, kept = dense_states(wanted, case.tile)
    wrong = (dropped & ~outcome.can_be_false) | (kept & ~outcome.can_be_true)
    assert not wrong.any(), f"tiles {np.argwhere(wrong)[:4]} of {case.program.to_text()}"
    if case.program.bias is not None:
        np.testing.assert_array_equal(outcome.bias, case.wanted_bias())
