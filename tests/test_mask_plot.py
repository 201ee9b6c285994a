"""Pictures of masks: files, their names, what is drawn."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.errors import MissingDependencyError, OutputError
from stof_onnx.ir.expr import Expr, Load
from stof_onnx.ir.expr.build import and_, ge, ge0, integer, sub
from stof_onnx.ir.mask import MaskProgram
from stof_onnx.ir.mask.program import B_INDEX, H_INDEX, K_INDEX, Q_INDEX
from stof_onnx.ir.mask.tiles import map_tiles
from stof_onnx.report.mask_plot import MaskPicture, MaskPlots, cell_size, kept_share

DISTANCE = sub(Q_INDEX, K_INDEX)
CAUSAL = ge0(DISTANCE)
PNG = b"\x89PNG\r\n\x1a\n"


def picture(name: str, keep: Expr, length: int = 100, **more: Any) -> MaskPicture:
    sizes = {"B": 2, "H": 4, "Sq": length, "Sk": length}
    return MaskPicture(name, f"kind of {name}", MaskProgram(keep), sizes, **more)


def draw_masks(pictures: Iterable[MaskPicture], folder: Path) -> list[Path]:
    """The files that are written."""
    plots = MaskPlots(folder)
    assert {plots.draw(picture) for picture in pictures} == set(plots.files)
    return plots.files


@pytest.mark.parametrize("length", [70, 2048, 4100])
@pytest.mark.parametrize("tile", [(64, 64), (16, 32)], ids=str)
def test_cells_hold_the_share_of_kept_pairs(length: int, tile: tuple[int, int]) -> None:
    sizes = {"B": 1, "H": 1, "Sq": length, "Sk": length - 5}
    keep = and_(CAUSAL, ge(integer(300), DISTANCE))
    tiles = map_tiles(keep, sizes, tile, {})
    cell = cell_size(tiles)
    assert cell in {1, 2, 8}
    assert (cell > 1) == (length > 1024)
    inside = MaskProgram(keep).evaluate_keep(sizes, {})[0, 0]
    rows, columns = tiles.states.shape[1] * tile[0], tiles.states.shape[2] * tile[1]
    dense = np.pad(inside, ((0, rows - length), (0, columns - length + 5)))
    expected = dense.reshape(rows // cell, cell, columns // cell, cell).mean(axis=(1, 3))
    found = kept_share(tiles)
    assert found.shape == expected.shape
    # A full tile at the edge is drawn whole: what lies beyond the edge is cut off.
    cut = (length // cell, (length - 5) // cell)
    np.testing.assert_allclose(found[: cut[0], : cut[1]], expected[: cut[0], : cut[1]])


def test_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = BlockTable.from_dense(np.random.default_rng(0).random((100, 100)) < 0.3)
    padding = Load("padding", (B_INDEX, K_INDEX), "bool")
    by_head = Load("by_head", (H_INDEX, Q_INDEX, K_INDEX), "bool")
    files = draw_masks(
        [
            picture("causal", CAUSAL),
            picture(
                "table", Load("t", (integer(0), Q_INDEX, K_INDEX), "bool"), sources={"t": table}
            ),
            picture("padded", and_(CAUSAL, padding)),
            picture("by head", by_head, sources={"by_head": np.ones((4, 100, 100), np.bool_)}),
            picture("long", CAUSAL, 16384),
        ],
        tmp_path / "new" / "folder",
    )
    assert [file.name for file in files] == [
        "causal.png",
        "table.png",
        "padded.png",
        "by_head.png",
        "long.png",
    ]
    assert all(file.read_bytes().startswith(PNG) for file in files)
    assert sorted(files) == sorted((tmp_path / "new" / "folder").iterdir())


def test_equal_masks_share_a_picture_and_others_never_share_a_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    same = MaskPicture("other", "kind of /a b/", MaskProgram(CAUSAL), picture("", CAUSAL).sizes)
    files = draw_masks(
        [
            picture("/a b/", CAUSAL),
            same,
            picture("/a:b/", and_(CAUSAL, ge(integer(9), DISTANCE))),
            picture("...", CAUSAL),
        ],
        tmp_path,
    )
    assert [file.name for file in files] == ["a_b.png", "a_b-2.png", "mask.png"]
    before = files[0].read_bytes()
    assert draw_masks([same], tmp_path) == [tmp_path / "other.png"]
    assert files[0].read_bytes() == before


def test_every_picture_knows_its_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = MaskPlots(tmp_path)
    again = MaskPicture("b", "kind of a", MaskProgram(CAUSAL), picture("", CAUSAL).sizes)
    drawn = [plots.draw(one) for one in (picture("a", CAUSAL), picture("c", CAUSAL), again)]
    assert [file.name for file in drawn] == ["a.png", "c.png", "a.png"]


def test_matplotlib_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stof-onnx\[plot\]'"):
        MaskPlots(tmp_path)


def test_the_folder_is_made_with_the_first_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = MaskPlots(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    assert plots.draw(picture("causal", CAUSAL)) == tmp_path / "new" / "causal.png"


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_that_is_a_file_is_refused(tmp_path: Path, folder: str) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file' is a file; wanted a folder for the pictures"):
        MaskPlots(tmp_path / folder)


@pytest.mark.parametrize("folder", ["locked", "locked/below"])
def test_a_folder_that_is_not_writable_is_refused(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "locked")
    with pytest.raises(OutputError, match="locked' is not writable"):
        MaskPlots(tmp_path / folder)


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")

    def fail(self: Any, file: Path, **_: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure.Figure, "savefig", fail)
    with pytest.raises(OutputError, match="No space left"):
        draw_masks([picture("causal", CAUSAL)], tmp_path)
    assert list(tmp_path.iterdir()) == []
