"""The table of attention blocks: what each is, how much of its mask is kept, what becomes of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from stof_onnx.report.records import DensityReport, LengthsFrom, MaskReport

# With more blocks than this, those that don't differ share a row.
MOST_ROWS = 12

_LENGTHS: dict[LengthsFrom, str] = {
    "model": "fixed in the model",
    "input shapes": "from --input-shapes",
    "assumed": "assumed: --input-shapes gives others",
    "table": "the most its constant table has: --input-shapes gives others",
}


@dataclass(frozen=True)
class Row:
    """One block or stof node.

    Attributes:
        name: of the block.
        cells: what the columns behind the name show.
        style: of the last cell.
    """

    name: str
    cells: tuple[str, ...]
    style: str = ""


def block_table(titles: Sequence[str], rows: Sequence[Row], *, every: bool) -> Table:
    """A table with a row for each block.

    Args:
        titles: of the columns; "pairs" and "tiles" are numbers.
        rows: in graph order.
        every: show each block, however many there are.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        is_number = title in DENSITY_TITLES
        fixed = is_number or title in ("heads", "status")
        table.add_column(
            title,
            justify="right" if is_number else "left",
            no_wrap=fixed,
            overflow="ellipsis" if fixed else "fold",
        )
    for row in rows if every or len(rows) <= MOST_ROWS else _shared(rows):
        table.add_row(row.name, *row.cells[:-1], Text(row.cells[-1], style=row.style))
    return table


def _shared(rows: Sequence[Row]) -> list[Row]:
    """One row for all blocks that differ in nothing but their names, where the first one was."""
    groups: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.cells, row.style), []).append(row.name)
    return [Row(names_text(names), *key) for key, names in groups.items()]


def names_text(names: Sequence[str]) -> str:
    """Several names as one, e.g. "/layers.0-23/attn/Softmax (24 blocks)"."""
    if len(names) == 1:
        return names[0]
    split = [re.split(r"(\d+)", name) for name in names]
    varying = [
        position
        for position, parts in enumerate(itertools.zip_longest(*split))
        if len(set(parts)) > 1
    ]
    text = f"{names[0]} .. {names[-1]}"
    if len(varying) == 1 and varying[0] % 2:
        (position,) = varying
        parts = list(split[0])
        parts[position] = _numbers_text([int(name[position]) for name in split])
        text = "".join(parts)
    return f"{text} ({len(names)} blocks)"


def _numbers_text(numbers: Sequence[int]) -> str:
    first, second, last = numbers[0], numbers[1], numbers[-1]
    if list(numbers) == list(range(first, last + 1)):
        return f"{first}-{last}"
    if len(numbers) == 2:
        return f"{first},{last}"
    step = second - first
    if step > 0 and list(numbers) == list(range(first, last + 1, step)):
        return f"{first},{second}..{last}"
    return f"{first}..{last}"


def heads_text(num_heads: int, kv_num_heads: int, head_dim: int) -> str:
    """Heads and their size, as "8 (kv 2) x 64"; 0 is what isn't known."""
    if not num_heads:
        return "-"
    shared = f" (kv {kv_num_heads})" if kv_num_heads not in (0, num_heads) else ""
    return f"{num_heads}{shared} x {head_dim or '?'}"


def mask_text(mask: MaskReport | None, softcap: float = 0.0, sinks: bool = False) -> str:
    """The families of a mask with their parameters, and what else is done to the scores."""
    parts = ["-" if mask is None else mask.title]
    if softcap:
        parts.append(f"softcap {softcap:g}")
    if sinks:
        parts.append("sinks")
    return ", ".join(parts)


DENSITY_TITLES = ("pairs", "tiles")


def density_cells(mask: MaskReport | None) -> tuple[str, str]:
    """The shares of kept pairs and of tiles that aren't empty, at the smallest tile."""
    density = None if mask is None else mask.density
    if density is None:
        return "-", "-"
    bound = "<=" if density.not_counted else ""
    return (
        f"{bound}{_share(density.token_density)}",
        f"{bound}{_share(density.tiles[0].density)}",
    )


def density_notes(masks: Iterable[MaskReport | None]) -> list[str]:
    """What the table's densities are shares of, and at which sizes: a line for each."""
    lines: dict[str, None] = {}
    for mask in masks:
        density = None if mask is None else mask.density
        if density is not None:
            tile = _tile(density.tiles[0].tile)
            text = f"shares of pairs kept and of {tile} tiles not empty, {_sizes(density)}"
            lines[text] = None
    return list(lines)


def density_details(density: DensityReport) -> str:
    """Everything that was measured of a mask."""
    shares = [f"{_share(density.token_density)} of the pairs"]
    shares += [
        f"{_tile(tiles.tile)} tiles: {_share(tiles.density)} not empty, {_share(tiles.full)} full"
        for tiles in density.tiles
    ]
    return f"{'; '.join(shares)}; {_sizes(density)}"


def _sizes(density: DensityReport) -> str:
    queries, keys = density.sizes[2:]
    text = f"at {queries} queries and {keys} keys ({_LENGTHS[density.lengths]})"
    if density.not_counted:
        text += f"; upper bounds (<=) without {', '.join(density.not_counted)}, known at run time"
    return text


def _tile(tile: tuple[int, int]) -> str:
    return "{}x{}".format(*tile)


def _share(share: float) -> str:
    """A share in percent with three digits; what isn't quite all or nothing doesn't look it."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    percent = 100 * share
    if percent >= 99.9:
        return ">99.9%"
    if percent < 0.01:
        return "<0.01%"
    return f"{percent:.2f}%" if percent < 1 else f"{percent:.1f}%"


# ---------------------------------------------------------------------------- refused blocks

_PRODUCTS = frozenset({"MatMul", "com.microsoft::FusedMatMul", "Einsum"})
_ABOVE = {
    "Add": "mask or bias",
    "Sub": "mask, or the maximum",
    "Where": "mask",
    "Mul": "scale or softcap",
    "Div": "scale or softcap",
    "Tanh": "softcap",
    "Max": "floor",
    "Concat": "sinks",
}
_BELOW = {"Where": "NaN guard", "Slice": "without sinks"}


def reading_text(read: Sequence[str]) -> str:
    """How much of an attention block was recognised before something differed.

    Args:
        read: operators from the Softmax up to the product of query and key, then down from the
            Softmax to the product with value, then those of the operands.
    """
    above, rest = _until_product(read)
    text = " <- ".join(_named(above, _ABOVE, "query x key"))
    if not _is_complete(above):
        return f"{text} <- ?"
    below, operands = _until_product(rest)
    text = f"{text}; {' -> '.join(['Softmax', *_named(below, _BELOW, 'x value')])}"
    if not _is_complete(below):
        return f"{text} -> ?"
    return f"{text}; operands: {', '.join(operands) or '?'}"


def _until_product(read: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    end = next((i + 1 for i, op in enumerate(read) if op in _PRODUCTS), len(read))
    return read[:end], read[end:]


def _is_complete(part: Sequence[str]) -> bool:
    return bool(part) and part[-1] in _PRODUCTS


def _named(part: Sequence[str], roles: dict[str, str], product: str) -> list[str]:
    roles = {**roles, **dict.fromkeys(_PRODUCTS, product)}
    return [f"{op} ({roles[op]})" if op in roles else op for op in part]
