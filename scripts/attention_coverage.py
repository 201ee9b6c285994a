"""What stof-onnx fuses in a folder of ONNX files, as a table.

    python scripts/attention_coverage.py DIR [DIR ...] [--json FILE] [--markdown FILE]
                                         [--no-check] [--verbose]

Every file is optimized (no kernels are compiled) and, unless ``--no-check`` is given, its expanded
form is compared with the original in ONNX Runtime, as ``stof-onnx optimize`` does. A folder's
``manifest.json``, if it has one, says how many attention blocks its files and those below it
hold; a file with another number of them, one that fails the check, and one that isn't read at all
are marked, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import stof_onnx
from stof_onnx.ir.errors import StofError


@dataclass
class Coverage:
    """What became of one file.

    Attributes:
        file: its path.
        exporter: who wrote it, by the manifest; "" if it doesn't say.
        blocks: attention-like blocks found.
        fused: how many of them became stof nodes.
        expected: attention blocks by the manifest; None if it doesn't say.
        expected_fused: of these, how many are to be fused.
        may_fuse: of these, how many may be fused or stay.
        masks: kinds of the fused blocks' masks, with how often each occurs.
        dense: why masks are read at run time as they are.
        refused: reasons of the other blocks.
        error: largest relative L2 difference of the check; None if it didn't run.
        seconds: of reading and rewriting.
        failure: why the file could not be optimized, or failed the check.
    """

    file: str
    exporter: str = ""
    blocks: int = 0
    fused: int = 0
    expected: int | None = None
    expected_fused: int | None = None
    may_fuse: int = 0
    masks: dict[str, int] = field(default_factory=dict)
    dense: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    error: float | None = None
    seconds: float = 0.0
    failure: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the file is as the manifest wants it and computes what it did."""
        if self.failure or self.expected_fused is None:
            return not self.failure
        return 0 <= self.fused - self.expected_fused <= self.may_fuse

    @property
    def mask_list(self) -> str:
        """The kinds of masks with how often each occurs."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.masks.items()))

    @property
    def error_text(self) -> str:
        """The error in two digits; "" if the check didn't run."""
        return "" if self.error is None else f"{self.error:.1e}"


def cover(file: Path, expected: dict[str, Any] | None, *, check: bool) -> Coverage:
    """Optimize one file."""
    result = Coverage(str(file))
    if expected is not None:
        result.exporter = expected.get("exporter", "")
        result.expected = expected["attention_blocks"]
        statuses = [block["status"] for block in expected["blocks"]]
        result.expected_fused = statuses.count("fused")
        result.may_fuse = statuses.count("either")
    start = time.perf_counter()
    try:
        report = stof_onnx.optimize(file, kernels=False, check=check).report
    except StofError as error:
        result.failure = str(error)
        return result
    except Exception as error:  # one file must not end the survey of the others
        result.failure = f"{type(error).__name__}: {error}"
        return result
    result.seconds = report.seconds.get("rewrite", time.perf_counter() - start)
    result.blocks, result.fused = len(report.attention), report.fused
    fused = [block.mask for block in report.attention if block.mask is not None]
    result.masks = dict(Counter(mask.kind for mask in fused))
    result.dense = sorted({m.proof for m in fused if m.proof.startswith("read at run time")})
    result.refused = [block.reason for block in report.attention if block.status == "refused"]
    if report.check is not None and report.check["worst"] is not None:
        result.error = report.check["worst"]["output"]["rel_l2"]
    return result


def files_of(folders: list[Path]) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Each ONNX file with what its folder's manifest expects of it."""
    for folder in folders:
        manifest = folder / "manifest.json"
        expected = json.loads(manifest.read_text()) if manifest.exists() else {}
        expected = expected.get("files", expected)
        for file in sorted(folder.rglob("*.onnx")):
            yield file, expected.get(file.relative_to(folder).as_posix())


def line(result: Coverage) -> str:
    """One row of the table."""
    error = result.error_text
    wanted = "" if result.expected_fused is None else f"{result.expected_fused}"
    mark = "ok" if result.is_good else "[bold red]!![/]"
    numbers = f"{result.blocks:>6} {result.fused:>5} {wanted:>6} {error:>8} {result.seconds:>6.2f}"
    return f"{mark} {escape(Path(result.file).name):<56} {numbers}  {result.mask_list}"


def summary(results: list[Coverage]) -> str:
    """The totals in one sentence."""
    good = sum(result.is_good for result in results)
    blocks, fused = sum(r.blocks for r in results), sum(r.fused for r in results)
    return f"{good} of {len(results)} files as expected; {fused} of {blocks} blocks fused"


def markdown(results: list[Coverage]) -> str:
    """The table as Markdown, with the reasons of the files that aren't as expected below it."""
    head = ("file", "exporter", "fused/found", "masks", "worst error")
    rows = [head, ("---",) * len(head)]
    reasons = []
    for result in results:
        name = Path(result.file).name
        found = f"{result.fused}/{result.blocks}"
        if not result.is_good:
            found += f" (wanted {result.expected_fused})" if not result.failure else " (failed)"
            why = [result.failure] if result.failure else dict.fromkeys(result.refused)
            reasons += [f"- `{name}`: {reason}" for reason in why or ["blocks not found"]]
        rows.append((f"`{name}`", result.exporter, found, result.mask_list, result.error_text))
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    below = ["", "Not as expected:", "", *reasons] if reasons else []
    return "\n".join([summary(results) + ".", "", table, *below]) + "\n"


def main() -> int:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write a table here")
    parser.add_argument("--no-check", action="store_true", help="don't run the models")
    parser.add_argument("--verbose", "-v", action="store_true", help="reasons below each file")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"   {'file':<56} {'blocks':>6} {'fused':>5} {'wanted':>6} {'error':>8} {'s':>6}")
    results = []
    for file, expected in files_of(arguments.folders):
        result = cover(file, expected, check=not arguments.no_check)
        results.append(result)
        console.print(line(result))
        told = [("failed", result.failure)] if result.failure else []
        if arguments.verbose or not result.is_good:
            told += [("refused", reason) for reason in dict.fromkeys(result.refused)]
        if arguments.verbose:
            told += [("dense", reason) for reason in result.dense]
        for what, text in told:
            console.print(f"     [dim]{what}:[/] {escape(text)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(results))
    console.print(summary(results))
    return 0 if all(result.is_good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
