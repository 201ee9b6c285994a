"""Copy the part of the zoo that the tests need into tests/models/zoo.

    python scripts/attention_zoo/copy_to_tests.py zoo/tf5 zoo/tf4 [--add FOLDER/FILE ...]

Takes each file that ``tests/models/zoo/manifest.json`` names, and those that are added, from the
folders that ``export.py`` has written, and writes the manifest again. A name like
``transformers4/bert_base_sdpa_dynamo18.onnx`` is searched in folders made with transformers 4 only;
files in other folders of the tests, which no version of transformers has a part in, in any.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2] / "tests" / "models" / "zoo"
# What the tests and their readers need of an entry.
FIELDS = (
    "family",
    "exporter",
    "implementation",
    "transformers",
    "opset",
    "dtype",
    "static",
    "attention_blocks",
    "blocks",
    "notes",
)


class Exported:
    """A folder that ``export.py`` has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = json.loads((folder / "manifest.json").read_text())
        self.files: dict[str, dict[str, Any]] = manifest["files"]
        self.transformers: str = manifest["environment"]["transformers"]

    def has(self, wanted: Path) -> bool:
        """Whether this folder's file of that name is the one the tests want."""
        major = f"transformers{self.transformers.split('.')[0]}"
        of_other_version = wanted.parent.name.startswith("transformers") and (
            wanted.parent.name != major
        )
        return wanted.name in self.files and not of_other_version

    def copy(self, wanted: Path) -> dict[str, Any]:
        """Copy the file into the tests and return its entry."""
        entry = self.files[wanted.name]
        if "exporter_error" in entry:
            raise SystemExit(f"{wanted.name} is broken: {entry['exporter_error']}")
        (TESTS / wanted.parent).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / wanted.name, TESTS / wanted)
        if wanted.parent.name.startswith("transformers"):
            entry = entry | {"transformers": self.transformers}
        return {field: entry[field] for field in FIELDS if field in entry}


def main() -> int:
    """Parse the command line, copy, and write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--add", nargs="+", default=[], metavar="FOLDER/FILE")
    arguments = parser.parse_args()
    exported = [Exported(folder) for folder in arguments.folders]
    manifest = TESTS / "manifest.json"
    known = json.loads(manifest.read_text())["files"] if manifest.exists() else {}
    entries = {}
    for name in sorted({*known, *arguments.add}):
        source = next((folder for folder in exported if folder.has(Path(name))), None)
        if source is None:
            parser.error(f"none of the folders has {name}")
        entries[name] = source.copy(Path(name))
    manifest.write_text(json.dumps({"files": entries}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
