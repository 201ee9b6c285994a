"""``stof-onnx inspect`` of optimized files."""

from __future__ import annotations

import json

import onnx
import pytest

import stof_onnx
from stof_onnx import NodeReport, OptimizedReport
from tests.rewriter.graphs import Attention, build
from tests.rewriter.mask_terms import Mask, Term

TARGETS = ["--target", "sm_90", "--target", "sm_80"]


@pytest.fixture
def folder(tmp_path, bert, monkeypatch):
    """The working directory: a model whose mask has a run-time table, and BERT."""
    onnx.save(build(Attention(masks=(Mask((Term("dense"),)),))).model(), tmp_path / "dense.onnx")
    onnx.save(onnx.load(bert), tmp_path / "bert.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def optimized(folder, run_cli):
    """An optimized file with an attention node and the table of its mask."""
    assert run_cli("optimize", "dense.onnx", "-o", "out.onnx", "--no-check", *TARGETS).code == 0
    return folder / "out.onnx"


def test_json_names_nodes_masks_and_kernels(run_cli, optimized):
    code, out, err = run_cli("inspect", optimized, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["kind"], report["model"]) == ("optimized", str(optimized))
    assert report["targets"] == ["sm_90", "sm_80"]
    assert report["nodes"] == len(onnx.load(optimized).graph.node)
    nodes = {node["operator"]: node for node in report["stof_nodes"]}
    assert nodes.keys() == {"StofMaskedAttention", "StofMaskTable"}
    for node in nodes.values():
        assert node["has_plan"] is True
        assert node["plan_bytes"] > 1000
        assert node["producer"].startswith("stof-onnx ")
        assert "NVRTC 13." in node["producer"]
        assert node["tile"] == [64, 64]
        assert node["mask"]["kind"] == "dense"
        assert [kernel["target"] for kernel in node["kernels"]] == ["sm_90", "sm_80"]
        for kernel in node["kernels"]:
            assert kernel["registers"] > 0
            assert kernel["shared_bytes"] > 0
            assert kernel["image_bytes"] > 1000
            assert kernel["tactic"]
    attention = nodes["StofMaskedAttention"]
    assert (attention["num_heads"], attention["head_dim"], attention["dtype"]) == (2, 4, "float32")


def test_text_names_them_too(run_cli, optimized):
    code, out, err = run_cli("inspect", optimized)
    assert (code, err) == (0, "")
    assert f"model       {optimized}, which is optimized already\n" in out
    assert ", 2 of them stof nodes\n" in out
    assert "targets     sm_90, sm_80\n" in out
    assert "plans       in 2 of 2 nodes (" in out
    assert "written by  stof-onnx " in out
    kernels = [line for line in out.splitlines() if line.startswith("kernels ")]
    assert len(kernels) == 2
    for line in kernels:
        assert "masked_attention_mma " in line
        assert " mask_table " in line
        assert " registers, " in line
        assert " of code)" in line
    (row,) = [line for line in out.splitlines() if " StofMaskTable " in line]
    assert row.split()[-2:] == ["sm_90,", "sm_80"]
    assert "tile      64 x 64\n" in run_cli("inspect", optimized, "-v").out


def test_a_file_without_plans_says_that_it_cannot_run(run_cli, folder):
    options = ["--no-check", "--no-kernels"]
    assert run_cli("optimize", "bert.onnx", "-o", "out.onnx", *options).code == 0
    out = run_cli("inspect", "out.onnx").out
    assert "plans       in 0 of 2 nodes\n" in out
    assert "stof nodes without a plan can be checked and expanded, but not run" in out
    report = json.loads(run_cli("inspect", "out.onnx", "--json").out)
    assert [node["has_plan"] for node in report["stof_nodes"]] == [False, False]
    assert report["targets"] == []


@pytest.mark.parametrize("damage", ["plan", "num_heads"])
def test_a_damaged_node_is_named(run_cli, optimized, damage):
    model = onnx.load(optimized)
    (node,) = [node for node in model.graph.node if node.op_type == "StofMaskedAttention"]
    attribute = next(entry for entry in node.attribute if entry.name == damage)
    if damage == "plan":
        attribute.t.raw_data = b"STOFPLAN" + attribute.t.raw_data[8:][::-1]
    else:
        attribute.i = 0
    onnx.save(model, optimized)
    code, out, err = run_cli("inspect", optimized)
    assert (code, out) == (2, "")
    assert f"node '{node.name}': " in err
    assert err.count("\n") == 1


def test_an_operator_of_another_release_is_named(run_cli, optimized):
    model = onnx.load(optimized)
    model.graph.node[0].domain = "stof"
    model.graph.node[0].op_type = "StofFuture"
    onnx.save(model, optimized)
    code, _, err = run_cli("inspect", optimized)
    assert code == 2
    assert "unknown operator 'StofFuture'" in err


def test_optimize_still_refuses_it(run_cli, optimized):
    code, out, err = run_cli("optimize", optimized, "-o", "again.onnx")
    assert (code, out) == (2, "")
    assert "already contains stof nodes" in err


def test_the_public_function_returns_a_record_of_its_own(optimized):
    report = stof_onnx.inspect(optimized)
    assert isinstance(report, OptimizedReport)
    assert report.targets == ("sm_90", "sm_80")
    json.dumps(report.to_json())


def test_targets_are_those_that_all_nodes_have():
    mask = stof_onnx.MaskReport("none", {}, "all pairs", "nan")
    kernel = {
        name: stof_onnx.KernelReport(name, "template", {}, 1, 1, 1) for name in ("sm_80", "sm_90")
    }
    both = NodeReport("a", "x", mask, 1, plan_bytes=1, kernels=tuple(kernel.values()))
    one = NodeReport("b", "x", mask, 1, plan_bytes=1, kernels=(kernel["sm_90"],))
    assert OptimizedReport("m", 2, (both, one)).targets == ("sm_90",)
    assert OptimizedReport("m", 1, (both,)).targets == ("sm_80", "sm_90")


# -------------------------------------------------------------------- tables in other reports


def test_inspect_of_an_original_counts_the_tables_that_would_be_added(run_cli, folder):
    assert "tables      1 StofMaskTable node would be added, for masks given at run time\n" in (
        run_cli("inspect", "dense.onnx").out
    )
    report = json.loads(run_cli("inspect", "dense.onnx", "--json").out)
    assert report["kind"] == "original"
    (table,) = report["tables"]
    assert (table["tile"], table["mask"]["kind"], table["kernels"]) == ([64, 64], "dense", [])


def test_optimize_reports_the_tables_it_added(run_cli, folder):
    arguments = ["optimize", "dense.onnx", "-o", "out.onnx", "--no-check", *TARGETS]
    code, out, _ = run_cli(*arguments, "--report", "report.json", "-v")
    assert code == 0
    assert "tables      1 StofMaskTable node added, for masks given at run time\n" in out
    assert "; mask_table " in out
    (table,) = json.loads((folder / "report.json").read_text())["tables"]
    assert f"\n{table['name']}\n" in out
    assert [kernel["target"] for kernel in table["kernels"]] == ["sm_90", "sm_80"]
    types = {node.name: node.op_type for node in onnx.load("out.onnx").graph.node}
    assert types[table["name"]] == "StofMaskTable"
