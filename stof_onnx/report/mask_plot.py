"""Pictures of masks: the kept pairs, with the tiles that kernels skip or take whole."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.errors import MissingDependencyError, OutputError
from stof_onnx.ir.expr import loads
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import MaskProgram
from stof_onnx.ir.mask.tiles import TileMap, TileState, assume_kept, map_tiles
from stof_onnx.ir.tile_grid import unpack_tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_TILE = (64, 64)

# Fewer picture cells than this along an axis are drawn pair by pair.
_MOST_CELLS = 1024
# Of empty, partial and full tiles, and what kept pairs are covered with: told apart in grey and
# by the colour-blind.
_COLOURS = ("#f2f2f2", "#fdd49e", "#9ecae1")
_KEPT, _KEPT_OPACITY = "#08306b", 0.75
_LONGEST_NAME = 80

# Of the picture in inches: title and legend take the margin.
_WIDTH, _MARGIN = 7.0, 1.2


@dataclass(frozen=True)
class MaskPicture:
    """One mask to draw.

    Attributes:
        name: of the file, without suffix; characters that files can't have are replaced.
        kind: shown as the title, e.g. "causal_sliding_window (window_left=256)".
        program: of the mask; its ``keep`` alone is drawn.
        sizes: B, H, Sq and Sk.
        sources: what is known of the operands: arrays and block tables. What others hide
            counts as kept, and the title says so.
        tile: (tile_q, tile_k), multiples of 8.
    """

    name: str
    kind: str
    program: MaskProgram
    sizes: Mapping[str, int]
    sources: Mapping[str, Array | BlockTable] = field(default_factory=dict)
    tile: tuple[int, int] = PLOT_TILE


class MaskPlots:
    """Draws each distinct mask once, as a PNG file of a folder.

    Of a mask that differs between heads or batch entries the first is drawn. A long mask is
    drawn in cells of several pairs, coloured by the share that is kept.

    Args:
        folder: made with the first picture if it doesn't exist. Files of the same names are
            replaced, each at once.

    Attributes:
        files: that were written, in order.

    Raises:
        MissingDependencyError: matplotlib isn't installed.
        OutputError: the folder can't be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        _require_matplotlib()
        self._folder = Path(folder)
        _check_folder(self._folder)
        self._written: dict[tuple[object, ...], Path] = {}

    @property
    def files(self) -> list[Path]:
        """The files that were written, in order."""
        return list(self._written.values())

    def draw(self, picture: MaskPicture) -> Path:
        """Draw a mask, unless one that shows the same pairs in the same tiles was drawn.

        Returns:
            The file, named after the first of the masks that share it.

        Raises:
            OutputError: it can't be written.
            InputError: sizes or a tile that can't be used.
        """
        tiles, not_counted = _tiles(picture)
        key = (picture.kind, not_counted, tiles.shape, tiles.tile, _content(tiles))
        if key not in self._written:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unusable(self._folder, error.strerror or str(error)) from error
            path = _free_path(self._folder, picture.name, set(self.files))
            _write(path, picture, tiles, not_counted)
            self._written[key] = path
        return self._written[key]


def _require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "drawing masks needs matplotlib, which isn't installed",
            next_step="run `pip install 'stof-onnx[plot]'`",
        ) from error


def _check_folder(folder: Path) -> None:
    """Refuse a folder before long work starts; nothing is made yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise _unusable(folder, f"'{existing}' is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _unusable(folder, f"'{existing}' is not writable")


def _unusable(folder: Path, reason: str) -> OutputError:
    return OutputError(
        f"pictures can't be written to '{folder}': {reason}", "a folder for the pictures"
    )


def _tiles(picture: MaskPicture) -> tuple[TileMap, tuple[str, ...]]:
    """The tiles of the first group, and the operands that aren't known."""
    keep = assume_kept(picture.program.keep, picture.sources)
    used = {load.source for load in loads(keep)}
    sources = {
        name: source if isinstance(source, np.ndarray) else source.to_dense()
        for name, source in picture.sources.items()
        if name in used
    }
    sizes = {**picture.sizes, "B": 1, "H": 1}
    not_counted = {load.source for load in loads(picture.program.keep)} - set(picture.sources)
    return map_tiles(keep, sizes, picture.tile, sources), tuple(sorted(not_counted))


def _content(tiles: TileMap) -> tuple[bytes, bytes, bytes]:
    return tiles.states.tobytes(), tiles.pattern_of.tobytes(), tiles.patterns.tobytes()


def _free_path(folder: Path, name: str, taken: set[Path]) -> Path:
    stem = re.sub(r"[^\w.+-]+", "_", name).strip("._")[:_LONGEST_NAME] or "mask"
    path, number = folder / f"{stem}.png", 2
    while path in taken:
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def _write(path: Path, picture: MaskPicture, tiles: TileMap, not_counted: tuple[str, ...]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _, queries, keys = tiles.shape
    height = min(max(_WIDTH * queries / keys, _WIDTH / 4), 2 * _WIDTH)
    figure = Figure(figsize=(_WIDTH, height + _MARGIN), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), picture, tiles, not_counted)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(aside, format="png")
        os.replace(aside, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"picture '{path}' can't be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _draw(axes: Axes, picture: MaskPicture, tiles: TileMap, not_counted: tuple[str, ...]) -> None:
    from matplotlib.colors import ListedColormap, to_rgb
    from matplotlib.patches import Patch

    _, queries, keys = tiles.shape
    rows, columns = tiles.states.shape[1:]
    tile_q, tile_k = tiles.tile
    axes.imshow(
        tiles.states[0],
        cmap=ListedColormap(list(_COLOURS)),
        vmin=0,
        vmax=len(_COLOURS) - 1,
        extent=(0, columns * tile_k, rows * tile_q, 0),
        interpolation="nearest",
    )
    share = kept_share(tiles)
    layer = np.empty((*share.shape, 4))
    layer[..., :3] = to_rgb(_KEPT)
    layer[..., 3] = _KEPT_OPACITY * share
    # Cells are powers of two that divide the tile, so the layer ends with a cell of its own.
    cell = cell_size(tiles)
    extent = (0, share.shape[1] * cell, share.shape[0] * cell, 0)
    axes.imshow(layer, extent=extent, interpolation="nearest")
    axes.set(xlim=(0, keys), ylim=(queries, 0), xlabel="key", ylabel="query")
    axes.set_title(_title(picture, tiles, not_counted), fontsize=9, loc="left", wrap=True)
    empty, partial, full = _COLOURS
    legend = {
        "empty tile": to_rgb(empty),
        "partial tile": to_rgb(partial),
        "kept pair in a partial tile": _blended(partial),
        "full tile": _blended(full),
    }
    patches = [Patch(facecolor=colour, label=name) for name, colour in legend.items()]
    axes.figure.legend(handles=patches, loc="outside lower center", ncols=4)


def _blended(colour: str) -> tuple[float, float, float]:
    """A tile's colour under kept pairs."""
    from matplotlib.colors import to_rgb

    below, kept = np.array(to_rgb(colour)), np.array(to_rgb(_KEPT))
    red, green, blue = ((1 - _KEPT_OPACITY) * below + _KEPT_OPACITY * kept).tolist()
    return red, green, blue


def _title(picture: MaskPicture, tiles: TileMap, not_counted: tuple[str, ...]) -> str:
    _, queries, keys = tiles.shape
    lines = [
        f"{picture.kind}",
        f"{queries} queries x {keys} keys, {tiles.token_density:.2%} of the pairs kept",
        f"tiles of {tiles.tile[0]}x{tiles.tile[1]}: {tiles.full_share:.2%} full,"
        f" {tiles.tile_density - tiles.full_share:.2%} partial, {1 - tiles.tile_density:.2%} empty",
    ]
    if not_counted:
        lines.append(f"not counted, known at run time only: {', '.join(not_counted)}")
    return "\n".join(lines)


def cell_size(tiles: TileMap) -> int:
    """Pairs along the side of a picture cell: a power of 2 that divides the tile."""
    side = 1
    smallest = min(tiles.tile)
    while max(tiles.shape[1:]) > _MOST_CELLS * side and smallest % (2 * side) == 0:
        side *= 2
    return side


def kept_share(tiles: TileMap) -> npt.NDArray[np.float32]:
    """Share of the pairs that are kept, by picture cell of the first group.

    Returns:
        float32 [tile rows * tile_q / cell, tile columns * tile_k / cell].
    """
    cell = cell_size(tiles)
    height, width = (side // cell for side in tiles.tile)
    states, pattern_of = tiles.states[0], tiles.pattern_of[0]
    cells = np.zeros((*states.shape, height, width), np.float32)
    cells[states == TileState.FULL] = 1
    used, place = np.unique(pattern_of[pattern_of >= 0], return_inverse=True)
    if len(used):
        shares = np.stack([_cells(tiles.patterns[i], tiles.tile, cell) for i in used])
        cells[pattern_of >= 0] = shares[place]
    share: npt.NDArray[np.float32] = cells.transpose(0, 2, 1, 3).reshape(
        states.shape[0] * height, -1
    )
    return share


def _cells(
    pattern: npt.NDArray[np.uint64], tile: tuple[int, int], cell: int
) -> npt.NDArray[np.float32]:
    keep = unpack_tiles(pattern.reshape(1, 1, -1), tile)
    split = keep.reshape(tile[0] // cell, cell, tile[1] // cell, cell)
    share: npt.NDArray[np.float32] = split.mean(axis=(1, 3), dtype=np.float32)
    return share
