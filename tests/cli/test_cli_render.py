"""How reports look: what people read must name everything that was decided."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest

from stof_onnx.cli import json_text, render
from stof_onnx.ir.mask import TileStatistics
from stof_onnx.report import (
    AttentionReport,
    DensityReport,
    KernelReport,
    MaskReport,
    Report,
    TableReport,
)
from stof_onnx.report.records import PrecisionEffect, PrecisionReport

DENSITY = DensityReport(
    sizes=(1, 8, 512, 128),
    lengths="assumed",
    token_density=0.104,
    tiles=(TileStatistics((64, 64), 0.25, 0.004), TileStatistics((128, 128), 0.5, 0.0)),
    not_counted=("attention_mask",),
)
FUSED = AttentionReport(
    name="/layer.0/attention/[0]/Softmax",
    status="fused",
    reason="scores, mask and softmax in one node",
    plan="stof",
    mask=MaskReport(
        kind="window+padding",
        parameters={"left": 8, "density": 1 / 3},
        expression="abs(q - k) <= 8 and attention_mask[b, k]",
        empty_row="mean",
        proof="equal at 12 sizes",
        density=DENSITY,
    ),
    num_heads=8,
    kv_num_heads=2,
    head_dim=64,
    query_shape=("batch", "sequence", "512"),
    key_shape=("batch", "sequence", "128"),
    layout="BSHD BSHD BSHD -> BSHD",
    nodes_replaced=14,
)
REFUSED = AttentionReport(
    name="/layer.1/Softmax", status="refused", reason="node 'NonZero_3': data-dependent mask"
)
TABLE = TableReport(
    name="stof/mask_table_0",
    mask=MaskReport("arbitrary", {}, "mask[q, k]", ""),
    tile=(64, 32),
    kernels=(KernelReport("sm_90", "mask_table", {"tile": 64}, 32, 2048, 4096),),
)
REPORT = Report(
    model="bert.onnx",
    attention=(FUSED, REFUSED),
    nodes_before=204,
    nodes_after=191,
    targets=("sm_80", "sm_90"),
    notes=("assumed: masks are 0 or 1",),
    seconds={"rewrite": 0.25},
)
CHECK = {
    "passed": True,
    "first_departure": None,
    "departure": None,
    "worst": {
        "feed": "batch 2, padded",
        "output": {
            "output": "hidden",
            "dtype": "float32",
            "max_abs": 3e-7,
            "rel_l2": 1e-7,
            "tolerance": {"atol": 1e-5, "rtol": 1e-4, "rel_l2": None},
            "passed": True,
            "reason": "",
        },
    },
    "feeds": [{"feed": "batch 2, padded", "outputs": [], "error": "", "passed": True}],
    "notes": ["0/1 masks were padded"],
}
CHECK["feeds"][0]["outputs"] = [CHECK["worst"]["output"]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def text_of(report: Report, *, verbose: int = 0, stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    render.report(render.console(stream), report, verbose=verbose)
    return stream.getvalue()


def rows_of(text: str) -> dict[str, list[str]]:
    """Table rows by their first cell."""
    cells = [[c.strip() for c in line.split("   ") if c.strip()] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 2}


def test_every_block_is_a_row():
    rows = rows_of(text_of(REPORT))
    assert rows[FUSED.name] == [
        "8 (kv 2) x 64",
        "window+padding (left=8, density=0.3333)",
        "<=10.4%",
        "<=25.0%",
        "BSHD BSHD BSHD -> BSHD",
        "fused",
    ]
    assert rows[REFUSED.name] == ["-", "-", "-", "-", "-", "refused"]


def test_counts_targets_notes_and_reasons_are_there():
    text = text_of(REPORT)
    assert "model       bert.onnx\n" in text
    assert "operators   204 -> 191\n" in text
    assert "targets     sm_80, sm_90\n" in text
    assert "attention   2 blocks found, 1 fused, 1 refused\n" in text
    assert f"refused     {REFUSED.name}: {REFUSED.reason}\n" in text
    assert "note        assumed: masks are 0 or 1\n" in text


def test_what_densities_are_shares_of_is_said_once():
    text = text_of(dataclasses.replace(REPORT, attention=(FUSED, FUSED, REFUSED)))
    assert text.count("density     ") == 1
    assert (
        "density     shares of pairs kept and of 64x64 tiles not empty, at 512 queries and 128 keys"
        " (assumed: --input-shapes gives others); upper bounds (<=) without attention_mask, known"
        " at run time\n"
    ) in text
    assert "density   10.4% of the pairs; 64x64 tiles: 25.0% not empty, 0.40% full; 128x128" in (
        text_of(REPORT, verbose=1)
    )


@pytest.mark.parametrize(
    ("softcap", "sinks", "text"),
    [
        (50.0, False, ", softcap 50"),
        (0.0, True, ", sinks"),
        (12.5, True, ", softcap 12.5, sinks"),
        (0.0, False, ""),
    ],
)
def test_softcap_and_sinks_stand_beside_the_mask(softcap, sinks, text):
    entry = dataclasses.replace(FUSED, softcap=softcap, sinks=sinks)
    rows = rows_of(text_of(dataclasses.replace(REPORT, attention=(entry,))))
    assert rows[FUSED.name][1] == f"window+padding (left=8, density=0.3333){text}"


def test_a_block_left_to_tensorrt_is_marked():
    entry = dataclasses.replace(FUSED, plan="native")
    rows = rows_of(text_of(dataclasses.replace(REPORT, attention=(entry,))))
    assert rows[FUSED.name][-1] == "fused, native"


def test_what_a_lower_precision_changes_is_a_table():
    effects = (
        PrecisionEffect("logits", "batch 1, no padding", 0.0123, 0.00045),
        PrecisionEffect("hidden", "", 1.5, 0.25),
    )
    lowered = PrecisionReport("float16", "a tool", 12, {"scores": 2, "operator": 1}, effects)
    text = text_of(dataclasses.replace(REPORT, precision=lowered))
    assert (
        "precision   float16, by a tool: 12 operators, 3 stay in float32 (operator: 1, scores: 2)\n"
    ) in text
    rows = rows_of(text)
    assert rows["logits"] == ["4.5e-04", "1.2e-02", "batch 1, no padding"]
    assert rows["hidden"] == ["2.5e-01", "1.5e+00", "-"]
    unmeasured = dataclasses.replace(lowered, effects=())
    assert "rel L2" not in text_of(dataclasses.replace(REPORT, precision=unmeasured))


def test_other_softmaxes_are_counted_with_verbose():
    report = dataclasses.replace(REPORT, other_softmaxes=3)
    assert "softmax" not in text_of(report).replace("Softmax", "")
    line = "softmax     3 other Softmax nodes are not between two products of run-time tensors\n"
    assert line in text_of(report, verbose=1)
    assert "other Softmax" not in text_of(REPORT, verbose=1)


def test_what_was_read_of_a_refused_block_is_said_with_verbose():
    entry = dataclasses.replace(REFUSED, read=("Softmax", "Add"))
    report = dataclasses.replace(REPORT, attention=(entry,))
    assert "<- ?" not in text_of(report)
    assert "  read      Softmax <- Add (mask or bias) <- ?\n" in text_of(report, verbose=1)
    assert "  read " not in text_of(REPORT, verbose=1)


def test_a_refusal_names_its_node_once():
    name = REFUSED.name
    entry = dataclasses.replace(REFUSED, reason=f"Softmax '{name}': its output is read twice")
    text = text_of(dataclasses.replace(REPORT, attention=(entry,)))
    assert f"refused     Softmax '{name}': its output is read twice\n" in text


def test_what_was_only_looked_at_does_not_look_done():
    text = text_of(dataclasses.replace(REPORT, kind="original", tables=(TABLE,)))
    assert "operators   204 -> 191 if optimized\n" in text
    assert "attention   2 blocks found, 1 would be fused, 1 refused\n" in text
    assert "tables      1 StofMaskTable node would be added, for masks given at run time\n" in text
    assert rows_of(text)[FUSED.name][-1] == "would be fused"


def test_kernels_of_tables_are_listed_and_the_size_of_code_is_labelled():
    text = text_of(dataclasses.replace(REPORT, tables=(TABLE, TABLE)))
    assert "tables      2 StofMaskTable nodes added, for masks given at run time\n" in text
    line = "sm_90: mask_table tile=64 (32 registers, 2.0 KiB shared, 4.0 KiB of code)\n"
    assert f"kernels     {line}" in text
    assert TABLE.name not in text
    verbose = text_of(dataclasses.replace(REPORT, tables=(TABLE,)), verbose=1)
    assert f"{TABLE.name}\n  mask      arbitrary: mask[q, k]\n  tile      64 x 32\n" in verbose


def test_portable_code_is_named_as_such():
    text = text_of(Report("bert.onnx", (), 3, 3, targets=("portable",)))
    assert "targets     portable PTX for compute capability 8.0 and newer\n" in text


def test_verbose_adds_shapes_mask_and_proof():
    assert "proof" not in text_of(REPORT)
    text = text_of(REPORT, verbose=1)
    for fact in (
        "[batch, sequence, 512]",
        "[batch, sequence, 128]",
        "abs(q - k) <= 8 and attention_mask[b, k]",
        "empty row mean",
        "equal at 12 sizes",
        "scores, mask and softmax in one node",
        "rewrite 0.25",
    ):
        assert fact in text


def test_a_model_without_attention():
    text = text_of(Report("mlp.onnx", (), 3, 3))
    assert text == "model       mlp.onnx\noperators   3\nattention   none found\n"


def test_no_colours_and_no_folding_off_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = text_of(REPORT, verbose=1)
    assert "\x1b" not in text
    assert rows_of(text)[FUSED.name][-1] == "fused"


def test_colours_and_the_terminals_width_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    render.console(stream).print(render._attention_table(REPORT, with_layout=False, every=True))
    assert "\x1b[" in stream.getvalue()
    plain = Terminal()
    monkeypatch.setenv("TERM", "dumb")
    render.console(plain).print(render._attention_table(REPORT, with_layout=False, every=True))
    assert "\x1b" not in plain.getvalue()
    assert max(map(len, plain.getvalue().splitlines())) <= 80


# -------------------------------------------------------------------------------------- check


def check_text(result, *, verbose=False) -> str:
    stream = io.StringIO()
    render.check(render.console(stream), result, verbose=verbose)
    return stream.getvalue()


def test_a_passed_check_is_one_line_with_the_worst_error():
    first, note = check_text(CHECK).splitlines()
    assert first == (
        "check       passed, 1 runs agree; worst error 3e-07 of 'hidden' at batch 2, padded"
        " (allowed: 1e-05 absolute, 0.0001 relative)"
    )
    assert note == "note        0/1 masks were padded"


def test_verbose_lists_every_run():
    rows = rows_of(check_text(CHECK, verbose=True))
    assert rows["batch 2, padded"] == ["hidden", "3e-07", "1e-07", "passed"]


def test_a_failed_check_names_the_node():
    departure = {
        "node": "stof_3",
        "op_type": "StofMaskedAttention",
        "output": "context",
        "feed": "batch 1",
        "max_abs": 0.5,
        "rel_l2": 0.1,
    }
    failed_run = {"feed": "batch 1", "outputs": [], "error": "bad shape", "passed": False}
    text = check_text(
        CHECK | {"passed": False, "departure": departure, "feeds": [*CHECK["feeds"], failed_run]}
    )
    assert "check       failed, 1 of 2 runs differ; worst error" in text
    assert "error       batch 1: bad shape\n" in text
    assert (
        "departs at  StofMaskedAttention node 'stof_3', tensor 'context': 0.5 absolute, at batch 1"
        in text
    )


def test_a_check_that_ran_nothing():
    empty = {"passed": False, "departure": None, "worst": None, "feeds": [], "notes": []}
    assert check_text(empty, verbose=True) == (
        "check       failed, 0 of 0 runs differ; no output was compared\n"
    )


# --------------------------------------------------------------------------------------- JSON


def test_json_has_a_mask_kind_for_every_block():
    data = json.loads(json_text.dump(REPORT.to_json()))
    assert [entry["mask"]["kind"] for entry in data["attention"]] == ["window+padding", "unknown"]


def test_json_keeps_its_fields():
    """Scripts read these: a field may be added, none may go or change its name."""
    data = json.loads(json_text.dump(REPORT.to_json()))
    assert set(data) >= {
        *("kind", "model", "attention", "tables", "nodes_before", "nodes_after", "fused"),
        *("refused", "refusal_counts", "targets", "notes", "check", "seconds", "precision"),
        "other_softmaxes",
    }
    fused, refused = data["attention"]
    assert set(fused) == set(refused)
    assert set(fused) >= {
        *("name", "status", "reason", "plan", "read", "mask", "num_heads", "kv_num_heads"),
        *("head_dim", "query_shape", "key_shape", "layout", "softcap", "sinks", "kernels"),
    }
    assert (fused["plan"], refused["plan"], refused["read"]) == ("stof", "", [])
    assert fused["mask"]["density"] == {
        "sizes": [1, 8, 512, 128],
        "lengths": "assumed",
        "token_density": 0.104,
        "tiles": [
            {"tile": [64, 64], "density": 0.25, "full": 0.004},
            {"tile": [128, 128], "density": 0.5, "full": 0.0},
        ],
        "not_counted": ["attention_mask"],
    }
    assert fused["mask"]["picture"] == ""


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_json_is_readable_by_strict_parsers(value):
    text = json_text.dump({"errors": [{"max_abs": value}], "shape": (1, 2)})

    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(text, parse_constant=refuse)
    assert data == {"errors": [{"max_abs": str(value)}], "shape": [1, 2]}
