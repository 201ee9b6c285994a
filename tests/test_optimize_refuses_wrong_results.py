"""A rewrite that computes something else is found by the check, named, and not written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stof_onnx import cli
from stof_onnx.ir.operators.masked_attention import MaskedAttention
from stof_onnx.rewriter import rewrite as rewriting

MODEL = Path(__file__).parent / "models" / "bert_sdpa_dynamo.onnx"


@pytest.fixture
def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second layer's node gets another scale than the graph's."""
    right = rewriting._attributes
    seen: list[str] = []

    def wrong(block, program) -> MaskedAttention:  # type: ignore[no-untyped-def]
        record = right(block, program)
        seen.append(block.name)
        return record if len(seen) == 1 else dataclasses.replace(record, scale=2 * record.scale)

    monkeypatch.setattr(rewriting, "_attributes", wrong)


def test_a_wrong_rewrite_is_named_and_not_written(
    wrong_scale: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"what was there before")
    assert cli.main(["optimize", str(MODEL), "-o", str(output), "--target", "sm_90"]) == 1
    error = capsys.readouterr().err
    assert "differs from its original, first at node 'stof/node_Softmax_211'" in error
    assert error.count("\n") == 1
    assert output.read_bytes() == b"what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_without_the_check_it_is_written(wrong_scale: None, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    assert cli.main(["optimize", str(MODEL), "-o", str(output), "--no-check"]) == 0
    assert cli.main(["check", str(MODEL), str(output)]) == 1
