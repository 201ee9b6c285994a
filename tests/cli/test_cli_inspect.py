"""``stof-onnx inspect``: densities and their sizes, pictures, refused blocks, other softmaxes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.rewriter.graphs import Attention, Graph, build
from tests.rewriter.mask_terms import Mask, Term

EXAMPLE = Path(__file__).parents[2] / "examples" / "bert_bigbird.onnx"
BIGBIRD = "bert_bigbird_sdpa_dynamo.onnx"
CAUSAL = "causal_window_sdpa_dynamo.onnx"


@pytest.fixture
def folder(tmp_path, bert, monkeypatch):
    """The working directory, with some models."""
    for name in (BIGBIRD, CAUSAL, "mlp_dynamo.onnx", "bert_sdpa_dynamo.onnx"):
        shutil.copy(bert.with_name(name), tmp_path / name)
    shutil.copy(EXAMPLE, tmp_path / "example.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(graph: Graph, path) -> onnx.ModelProto:
    model = graph.model()
    onnx.save(model, path)
    return model


def blocks(run_cli, *arguments):
    code, out, err = run_cli("inspect", *arguments, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    return report["attention"] if report["kind"] == "original" else report["stof_nodes"]


# ------------------------------------------------------------------------------------ densities


def test_dynamic_lengths_are_assumed_or_given(run_cli, folder):
    (block,) = blocks(run_cli, CAUSAL)
    density = block["mask"]["density"]
    assert (density["sizes"], density["lengths"]) == ([1, 2, 1024, 1024], "assumed")
    assert [tiles["tile"] for tiles in density["tiles"]] == [[64, 64], [128, 128]]
    # Nine keys a query, fewer for the first eight queries.
    assert density["token_density"] == pytest.approx((9 * 1024 - 36) / 1024**2)
    inputs = onnx.load(CAUSAL).graph.input
    shape = f"{inputs[0].name}:3x20x{inputs[0].type.tensor_type.shape.dim[2].dim_value}"
    (block,) = blocks(run_cli, CAUSAL, "--input-shapes", shape)
    density = block["mask"]["density"]
    assert (density["sizes"], density["lengths"]) == ([3, 2, 20, 20], "input shapes")
    assert density["token_density"] == pytest.approx((9 * 20 - 36) / 400)


def test_a_constant_table_limits_assumed_lengths(run_cli, folder):
    found = blocks(run_cli, BIGBIRD)
    (density,) = {json.dumps(block["mask"]["density"]) for block in found}
    density = json.loads(density)
    length = density["sizes"][2]
    assert density["lengths"] == "table"
    assert found[0]["mask"]["parameters"]["table"] == f"{length}x{length}"
    assert density["not_counted"] == ["attention_mask"]
    beyond = f"{length + 1}"
    shapes = [f"input_ids:1x{beyond}", f"attention_mask:1x{beyond}"]
    code, out, _ = run_cli("inspect", BIGBIRD, "--input-shapes", *shapes)
    assert code == 0
    note = f"a mask can't be measured at {beyond} queries and {beyond} keys: beyond its constant"
    assert out.count(note) == 1


def test_static_lengths_are_the_models(run_cli, folder):
    write(build(Attention(batch=2, queries=24, masks=(Mask((Term("causal"),)),))), "static.onnx")
    (block,) = blocks(run_cli, "static.onnx")
    density = block["mask"]["density"]
    assert (density["sizes"], density["lengths"]) == ([2, 2, 24, 24], "model")
    assert density["token_density"] == pytest.approx(25 / 48)
    assert density["tiles"][0]["density"] == 1.0


@pytest.mark.parametrize("model", ["example.onnx", CAUSAL, "bert_sdpa_dynamo.onnx", "past.onnx"])
@pytest.mark.parametrize("given", [False, True])
def test_an_optimized_file_says_what_its_original_said(run_cli, folder, model, given):
    past = Attention(past="past", masks=(Mask((Term("causal"), Term("padding"))),))
    write(build(past), "past.onnx")
    sizes = {"batch": 2, "sequence": 5, "past": 7, "total": 12}
    inputs = onnx.load(model).graph.input
    dims = {i.name: i.type.tensor_type.shape.dim for i in inputs}
    shapes = [
        f"{name}:{'x'.join(str(d.dim_value or sizes[d.dim_param]) for d in shape)}"
        for name, shape in dims.items()
    ]
    options = ["--input-shapes", *shapes] if given else []
    original = blocks(run_cli, model, *options)
    arguments = ["optimize", model, "-o", "out.onnx", "--no-check", "--no-kernels"]
    assert run_cli(*arguments, "--report", "report.json", *options).code == 0
    written = json.loads((folder / "report.json").read_text())["attention"]
    assert [block["mask"] for block in written] == [block["mask"] for block in original]
    if model == "example.onnx":
        # Named by what its table holds, which takes the table.
        assert original[0]["mask"]["kind"] == "bigbird+padding"
    optimized = [n for n in blocks(run_cli, "out.onnx", *options) if n["head_dim"]]
    assert len(optimized) == len(original)
    for before, after in zip(original, optimized, strict=True):
        for field in ("kind", "parameters", "density", "empty_row"):
            assert after["mask"][field] == before["mask"][field], field
        assert (after["softcap"], after["sinks"]) == (before["softcap"], before["sinks"])
    if given:
        density = original[0]["mask"]["density"]
        assert density["lengths"] == "input shapes"
        assert density["sizes"][2:] == ([5, 12] if model == "past.onnx" else [5, 5])


@pytest.mark.parametrize("damage", ["missing", "column"])
def test_a_damaged_constant_table_is_named(run_cli, folder, damage):
    options = ["--no-check", "--no-kernels"]
    assert run_cli("optimize", BIGBIRD, "-o", "out.onnx", *options).code == 0
    model = onnx.load("out.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("tile_columns"))
    if damage == "missing":
        dims = list(tensor.dims)
        model.graph.initializer.remove(tensor)
        value = helper.make_tensor_value_info(tensor.name, TensorProto.INT32, dims)
        model.graph.input.append(value)
    else:
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[0] = 1000
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, "out.onnx")
    code, out, err = run_cli("inspect", "out.onnx")
    assert (code, out) == (2, "")
    assert "stof-onnx: error: node 'stof/" in err
    assert ", operand '" in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------- pictures


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def test_each_distinct_mask_is_drawn_once(run_cli, folder, matplotlib):
    code, out, err = run_cli("inspect", BIGBIRD, "--plot", "new/pictures")
    assert (code, err) == (0, "")
    (file,) = (folder / "new" / "pictures").iterdir()
    assert file.read_bytes().startswith(b"\x89PNG")
    count = len(blocks(run_cli, BIGBIRD))
    assert count > 1
    assert f"drew        new/pictures/{file.name} ({count} blocks)\n" in out


def test_pictures_of_an_optimized_file(run_cli, folder, matplotlib):
    options = ["--no-check", "--no-kernels"]
    assert run_cli("optimize", BIGBIRD, "-o", "out.onnx", *options).code == 0
    before = {path for path in folder.rglob("*") if path.is_file()}
    for model in (BIGBIRD, "out.onnx"):
        name = model.removesuffix(".onnx")
        found = blocks(run_cli, model, "--plot", name)
        (picture,) = {block["mask"]["picture"] for block in found}
        assert picture.startswith(f"{name}/")
    after = {path for path in folder.rglob("*") if path.is_file()} - before
    first, second = sorted(after)
    assert (first.parent.name, second.parent.name) == (BIGBIRD.removesuffix(".onnx"), "out")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_nothing_is_drawn_where_nothing_is_hidden(run_cli, folder, matplotlib):
    write(build(Attention()), "unmasked.onnx")
    for model in ("mlp_dynamo.onnx", "unmasked.onnx"):
        code, out, _ = run_cli("inspect", model, "--plot", "pictures")
        assert code == 0
        assert "drew        nothing: no block has a mask that hides pairs\n" in out
        assert not (folder / "pictures").exists()


def test_pictures_need_matplotlib(run_cli, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run_cli("inspect", CAUSAL, "--plot", "pictures")
    assert (code, out) == (2, "")
    assert "matplotlib, which isn't installed; run `pip install 'stof-onnx[plot]'`" in err
    assert not (folder / "pictures").exists()
    assert run_cli("inspect", CAUSAL).code == 0


@pytest.mark.parametrize("place", [CAUSAL, f"{CAUSAL}/below", "-"])
def test_pictures_need_a_folder(run_cli, folder, matplotlib, place):
    before = sorted(folder.rglob("*"))
    code, out, err = run_cli("inspect", "missing.onnx", "--plot", place)
    assert (code, out) == (2, "")
    # Known before the model is read.
    assert "missing.onnx" not in err
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


# ------------------------------------------------------------------------------- refused blocks


def test_verbose_says_how_far_a_refused_block_was_read(run_cli, folder):
    hooks = {"scores": lambda g, tensor: g.op("Pow", tensor, g.const(3.0))}
    refused = Attention(masks=(Mask((Term("causal"),)),), hooks=hooks)
    write(build(refused), "refused.onnx")
    (block,) = blocks(run_cli, "refused.onnx")
    assert (block["status"], block["plan"], block["read"]) == ("refused", "", ["Softmax", "Add"])
    assert "Pow" in block["reason"]
    plain = run_cli("inspect", "refused.onnx").out
    assert plain.count("refused     ") == 1
    assert "<- ?" not in plain
    verbose = run_cli("inspect", "refused.onnx", "-v").out
    assert "  read      Softmax <- Add (mask or bias) <- ?\n" in verbose


def softmax_models():
    pooling = Graph()
    hidden = pooling.input("hidden", ["batch", 4], "float32")
    pooling.output(pooling.op("Softmax", hidden), ["batch", 4], "float32", "pooled")
    both = build(Attention())
    hidden = both.input("logits", ["batch", 4], "float32")
    both.output(both.op("Softmax", hidden), ["batch", 4], "float32", "classes")
    return {"pooling": (pooling, 1), "both": (both, 1), "attention": (build(Attention()), 0)}


@pytest.mark.parametrize(("graph", "count"), softmax_models().values(), ids=softmax_models())
def test_other_softmaxes_are_counted(run_cli, folder, graph, count):
    write(graph, "model.onnx")
    report = json.loads(run_cli("inspect", "model.onnx", "--json").out)
    assert report["other_softmaxes"] == count
    text = "1 other Softmax node is not between two products of run-time tensors"
    assert (text in run_cli("inspect", "model.onnx", "-v").out) == (count == 1)
    assert "other Softmax" not in run_cli("inspect", "model.onnx").out


def test_softmaxes_that_nobody_looked_at_are_noted(run_cli, folder):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    inner = helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 2])
    softmax = helper.make_node("Softmax", ["x"], ["s"])
    branch = helper.make_graph([softmax], "branch", [], [inner])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "model", [value, flag], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), "if.onnx")
    out = run_cli("inspect", "if.onnx").out
    assert "note        not looked at: 2 Softmax inside If, Loop, Scan or a function\n" in out
