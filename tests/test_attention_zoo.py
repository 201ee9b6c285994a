"""Small exported models of many families, exporters and idioms: what becomes of each block.

``models/zoo/manifest.json`` says what is in each file, ``models/zoo/README.md`` where it is from.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

import stof_onnx
from stof_onnx.report import AttentionReport, Report
from stof_onnx.rewriter.rewrite import INTERNAL_ERROR

ZOO = Path(__file__).parent / "models" / "zoo"
MANIFEST: dict[str, dict[str, Any]] = json.loads((ZOO / "manifest.json").read_text())["files"]
FILES = sorted(MANIFEST)
FUSED_FILES = [
    name for name in FILES if any(b["status"] == "fused" for b in MANIFEST[name]["blocks"])
]
DECOYS = [name for name in FILES if all(b["status"] == "refused" for b in MANIFEST[name]["blocks"])]
PROVEN = ("equal to the original subgraph", "no mask in the graph")
SIZES = re.compile(r"[a-z_]+ \d+(, [a-z_]+ \d+)*")
PADDINGS = ("no padding", "right padding", "left padding", "random holes", "an all-padding row")
EXPORTERS = {"dynamo18", "dynamo20", "dynamo23", "dynamo24", "torchscript17", "graph"}
# Those that users bring first, and what was written by hand.
FAMILIES = {
    *("bert", "roberta", "distilbert", "mpnet", "vit", "clip", "swin", "whisper", "deberta"),
    *("gpt2", "llama", "mistral", "qwen3", "gemma2", "gemma3", "gptoss", "falcon", "bloom"),
    *("t5", "bart", "bigbird"),
    *("handwritten", "standard_operator", "fused_operator", "fused_by_optimizer"),
}
# Relative L2. A file's own rounding decides where it isn't float32.
LARGEST_ERROR = {"float32": 1e-5}


@functools.cache
def report_of(name: str) -> Report:
    return stof_onnx.optimize(ZOO / name, kernels=False, check=True).report


def blocks_of(name: str) -> list[tuple[AttentionReport, dict[str, Any]]]:
    """The fused blocks with what the manifest says of them."""
    pairs = zip(report_of(name).attention, MANIFEST[name]["blocks"], strict=True)
    return [(block, wanted) for block, wanted in pairs if wanted["status"] == "fused"]


def feeds_of(name: str) -> list[str]:
    check = report_of(name).check
    assert check is not None
    return [feed["feed"] for feed in check["feeds"]]


@pytest.mark.parametrize("name", sorted({*FILES} - {*DECOYS}))
def test_every_block_is_found_and_fused(name):
    blocks = report_of(name).attention
    wanted = [block["status"] for block in MANIFEST[name]["blocks"]]
    assert len(blocks) == MANIFEST[name]["attention_blocks"]
    for block, status in zip(blocks, wanted, strict=True):
        assert status in {block.status, "either"}, block.reason
        assert INTERNAL_ERROR not in block.reason


@pytest.mark.parametrize("name", DECOYS)
def test_what_must_stay_is_refused_with_a_reason_or_not_taken_for_attention(name):
    blocks = report_of(name).attention
    assert len(blocks) <= MANIFEST[name]["attention_blocks"]
    for block in blocks:
        assert block.status == "refused"
        assert block.reason
        assert INTERNAL_ERROR not in block.reason


@pytest.mark.parametrize("name", FUSED_FILES)
def test_masks_heads_and_head_dims_are_those_of_the_manifest(name):
    for block, wanted in blocks_of(name):
        assert block.mask is not None
        assert block.mask.kind == wanted["mask"], block.mask.expression
        assert block.num_heads == wanted["num_heads"]
        assert block.kv_num_heads == wanted["kv_num_heads"]
        assert block.head_dim == wanted["head_dim"]


@pytest.mark.parametrize("name", FUSED_FILES)
def test_masks_are_proven_not_taken_as_they_are(name):
    proofs = [block.mask.proof for block, _ in blocks_of(name) if block.mask is not None]
    assert [proof for proof in proofs if not proof.startswith(PROVEN)] == []


@pytest.mark.parametrize("name", FUSED_FILES)
def test_the_rewritten_model_computes_what_the_original_does(name):
    # `optimize` has compared all outputs, or it had raised CheckFailedError.
    check = report_of(name).check
    assert check is not None
    assert check["passed"]
    output = check["worst"]["output"]
    assert output["rel_l2"] < LARGEST_ERROR.get(MANIFEST[name]["dtype"], output["rel_l2"] + 1)


@pytest.mark.parametrize("name", FUSED_FILES)
def test_it_was_compared_at_several_lengths_with_and_without_padding(name):
    feeds = feeds_of(name)
    sizes = {match[0] for feed in feeds if (match := SIZES.match(feed))}
    assert len(sizes) >= 3 or MANIFEST[name]["static"]
    masks = [block["mask"] for block in MANIFEST[name]["blocks"]]
    if name.startswith("transformers") and any("padding" in mask for mask in masks):
        for padding in PADDINGS:
            assert any(feed.endswith(padding) for feed in feeds)


# ------------------------------------------------------------------------------- the files


def test_the_manifest_and_the_readme_have_each_file():
    files = {file.relative_to(ZOO).as_posix() for file in ZOO.rglob("*.onnx")}
    assert files == set(MANIFEST)
    readme = (ZOO / "README.md").read_text()
    assert [name for name in FILES if f"`{Path(name).stem}`" not in readme] == []


def test_every_family_and_exporter_is_there():
    families = {entry["family"] for entry in MANIFEST.values()}
    assert families >= FAMILIES
    for version in ("4", "5"):
        of_version = [m for n, m in MANIFEST.items() if n.startswith(f"transformers{version}/")]
        assert {entry["implementation"] for entry in of_version} == {"sdpa", "eager"}
        assert {entry["exporter"] for entry in of_version} >= {"dynamo18", "torchscript17"}
    assert {entry["exporter"] for entry in MANIFEST.values()} == EXPORTERS
    assert len(FILES) - len(DECOYS) >= 80
