"""Building engines: with TensorRT for RTX as it is, and with a stand-in for TensorRT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import polygraphy
import polygraphy.mod
import pytest

import stof_onnx
from stof_onnx import engine, plugin_library
from stof_onnx.engine import backends, rtx_build
from stof_onnx.engine.errors import EngineBuildError
from stof_onnx.ir.errors import InputError, MissingDependencyError, OutputError

OLD_POLYGRAPHY = polygraphy.mod.version(polygraphy.__version__) < polygraphy.mod.version("0.49.26")
DOUBLE = Path(__file__).parent / "tensorrt_double"
SHAPES = {"input_ids": (2, 20)}


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------- what is installed


@pytest.fixture
def installed(monkeypatch):
    """Sets which modules can be found."""

    def install(*names):
        monkeypatch.setattr(
            backends.importlib.util, "find_spec", lambda name: name if name in names else None
        )

    return install


@pytest.mark.parametrize(
    ("modules", "asked", "chosen"),
    [
        (["tensorrt", "tensorrt_rtx"], None, "tensorrt"),
        (["tensorrt"], None, "tensorrt"),
        (["tensorrt_rtx_bindings"], "tensorrt-rtx", "tensorrt-rtx"),
        (["tensorrt", "tensorrt_rtx"], "tensorrt-rtx", "tensorrt-rtx"),
        (["tensorrt", "tensorrt_rtx"], "tensorrt", "tensorrt"),
    ],
)
def test_the_backend(installed, modules, asked, chosen):
    installed(*modules)
    assert backends.choose_backend(asked) == chosen


@pytest.mark.parametrize(
    ("modules", "asked", "message"),
    [
        ([], None, "TensorRT is not installed; run `pip install tensorrt-cu13`"),
        # An engine without our kernels has to be asked for.
        (["tensorrt_rtx"], None, "TensorRT is not installed; .* use --backend tensorrt-rtx; "),
        (["tensorrt_rtx"], "tensorrt", "backend tensorrt is not installed; run `pip install ten"),
        (["tensorrt"], "tensorrt-rtx", "tensorrt-rtx is not installed; run `pip install ten"),
    ],
)
def test_what_is_missing(installed, modules, asked, message):
    installed(*modules)
    with pytest.raises(MissingDependencyError, match=message):
        backends.choose_backend(asked)


def test_an_unknown_backend():
    with pytest.raises(InputError, match="'tensorflow'; wanted one of tensorrt, tensorrt-rtx"):
        backends.choose_backend("tensorflow")


# -------------------------------------------------------------------------- TensorRT for RTX


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx_bindings")


def test_rtx_builds_the_expanded_model(rtx, libraries, planless, tmp_path):
    before = files(tmp_path)
    output = tmp_path / "bert.engine"
    result = engine.build(
        planless,
        output,
        min_shapes={"input_ids": (1, 1)},
        opt_shapes=SHAPES,
        max_shapes={"input_ids": (4, 128)},
        backend="tensorrt-rtx",
    )
    assert result.backend == "tensorrt-rtx"
    assert result.size == output.stat().st_size > 100_000
    assert "does not run on compute capability 9.0" in result.notes[-1]
    assert any("no kernels" in note for note in result.notes)
    after = files(tmp_path)
    assert set(after) - set(before) == {output}
    assert {path: after[path] for path in before} == before


def test_rtx_builds_the_example(rtx, libraries, tmp_path):
    source = Path(__file__).parents[2] / "examples" / "bert_bigbird.onnx"
    if not source.exists():
        pytest.skip("the installed package comes without the examples")
    stof_onnx.optimize(source, tmp_path / "big.onnx", targets=["sm_89"], check=False)
    shapes = {"input_ids": (1, 512)}
    result = engine.build(
        tmp_path / "big.onnx", tmp_path / "e", opt_shapes=shapes, backend="tensorrt-rtx"
    )
    assert result.size > 100_000


def test_rtx_builds_static_models_and_two_profiles(rtx, libraries, static, optimized, tmp_path):
    result = engine.build(static, tmp_path / "static", backend="tensorrt-rtx")
    assert result.profiles == ()
    assert result.size > 0
    shapes = [SHAPES, {"input_ids": (1, 64)}]
    result = engine.build(
        optimized, tmp_path / "two", opt_shapes=shapes, backend="tensorrt-rtx", tf32=True
    )
    assert len(result.profiles) == 2


def test_rtx_refuses_a_model(rtx, tmp_path):
    path = tmp_path / "unknown.onnx"
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4]) for n in "xy"]
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, ir_version=8), path)
    # Either it says why, or it ends the process: both are errors, and no file stays behind.
    with pytest.raises(EngineBuildError, match="TensorRT for RTX"):
        rtx_build.build_engine(path, tmp_path / "engine", [], tf32=False)
    assert not (tmp_path / "engine").exists()


def test_a_process_that_crashes_is_an_error(monkeypatch, libraries, planless, tmp_path):
    crash = tmp_path / "modules" / "crashing.py"
    crash.parent.mkdir()
    crash.write_text("import os, sys\nprint('CUDA lost', file=sys.stderr)\nos.abort()\n")
    monkeypatch.syspath_prepend(crash.parent)
    monkeypatch.setattr(rtx_build, "module_name", lambda backend: "crashing")
    monkeypatch.setattr(engine.building, "choose_backend", lambda name: "tensorrt-rtx")
    before = files(tmp_path)
    with pytest.raises(EngineBuildError, match=r"ended with exit status -6; it said: .*CUDA lost"):
        engine.build(planless, tmp_path / "e", opt_shapes=SHAPES)
    assert {p: c for p, c in files(tmp_path).items() if p.suffix != ".pyc"} == before


# ------------------------------------------------------------------ TensorRT, by a stand-in


def run_double(arguments, folder, libraries, *, version="11.1.0", preload=True):
    """Runs ``stof-onnx build`` beside the stand-in; returns the process and what it called."""
    log = folder / "calls"
    log.unlink(missing_ok=True)
    code = (
        "import sys; from stof_onnx import plugin_library, cli; from pathlib import Path;"
        f"plugin_library.path = lambda: Path({str(libraries / plugin_library.FILE_NAME)!r});"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    name = plugin_library.AUTOLOAD_FILE_NAME if preload else "never"
    path = [str(DOUBLE), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", code, "build", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "TENSORRT_DOUBLE_LOG": str(log),
            "TENSORRT_DOUBLE_VERSION": version,
            "TENSORRT_DOUBLE_PLUGINS": str(libraries / name),
        },
        check=False,
    )
    if OLD_POLYGRAPHY and "pip install --upgrade polygraphy" in done.stderr:
        pytest.skip("this Polygraphy asks for what only TensorRT 10 itself has")
    calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return done, calls


@pytest.mark.parametrize("version", ["10.16.1.11", "11.1.0.106"])
def test_tensorrt_parses_the_file_itself_with_the_plugins_loaded(
    rtx, libraries, optimized, tmp_path, version
):
    shapes = ["--opt-shapes", "input_ids:[2,20]", "--opt-shapes", "input_ids:[1,64]"]
    done, calls = run_double(
        [optimized, "-o", "bert.engine", "--json", *shapes], tmp_path, libraries, version=version
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert calls == [
        ["create_network", ["STRONGLY_TYPED"]],
        ["init_libnvinfer_plugins", ""],
        ["parse_from_file", str(optimized), True],
        ["build", 2, False],
    ]
    result = json.loads(done.stdout)
    assert result["backend"] == "tensorrt"
    assert result["bytes"] == (tmp_path / "bert.engine").stat().st_size > 100_000
    assert result["profiles"][1]["attention_mask"]["optimum"] == [1, 64]


def test_tensorrt_builds_static_models_and_tf32(rtx, libraries, static, tmp_path):
    arguments = [static, "-o", "e", "--tf32"]
    done, calls = run_double(arguments, tmp_path, libraries, version="10.16.1.11")
    assert (done.returncode, done.stderr) == (0, "")
    # Polygraphy adds a profile of the fixed shapes.
    assert calls[-1] == ["build", 1, True]
    assert "wrote       e (" in done.stdout


def test_tensorrt_without_the_plugin_is_one_clear_error(rtx, libraries, optimized, tmp_path):
    arguments = [optimized, "-o", "e", "--opt-shapes", "input_ids:[2,20]"]
    done, calls = run_double(arguments, tmp_path, libraries, preload=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("stof-onnx: error: TensorRT builds no engine of ")
    assert done.stderr.count("\n") == 1
    assert calls[-1][0] == "parse_from_file"
    assert not (tmp_path / "e").exists()


def test_a_polygraphy_that_does_not_know_the_tensorrt(
    rtx, libraries, static, tmp_path, monkeypatch
):
    # What Polygraphy 0.49.20 does with TensorRT 11, whose configuration has no calibrator.
    patch = tmp_path / "modules" / "sitecustomize.py"
    patch.parent.mkdir()
    patch.write_text(
        "from polygraphy.backend.trt import CreateConfig\n"
        "def call_impl(self, builder, network):\n"
        "    return builder.create_builder_config().int8_calibrator\n"
        "CreateConfig.call_impl = call_impl\n"
    )
    monkeypatch.syspath_prepend(patch.parent)
    done, _ = run_double([static, "-o", "e"], tmp_path, libraries)
    assert done.returncode == 2
    assert "Polygraphy doesn't know TensorRT 11.1.0" in done.stderr
    assert "pip install --upgrade polygraphy" in done.stderr
    assert not (tmp_path / "e").exists()


def test_tensorrt_that_cannot_be_imported(optimized, libraries, tmp_path, monkeypatch):
    broken = tmp_path / "modules" / "tensorrt" / "__init__.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(broken.parents[1])
    with pytest.raises(MissingDependencyError, match=r"libnvinfer.*pip install tensorrt-cu13"):
        engine.build(optimized, tmp_path / "e", opt_shapes=SHAPES, backend="tensorrt")


# ------------------------------------------------------------------------ models and outputs


def test_a_node_without_plan_is_refused(installed, planless, tmp_path):
    installed("tensorrt")
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"StofMaskedAttention node .* --target sm_90"):
        engine.build(planless, tmp_path / "e", opt_shapes=SHAPES)
    assert files(tmp_path) == before


def test_a_plan_of_another_type_is_none(installed, optimized, tmp_path):
    installed("tensorrt")
    model = onnx.load(optimized)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "plan":
                attribute.t.data_type = onnx.TensorProto.UINT8
    onnx.save(model, optimized)
    with pytest.raises(InputError, match="no INT8 tensor"):
        engine.build(optimized, tmp_path / "e", opt_shapes=SHAPES)


def test_a_model_without_stof_nodes_is_built_with_a_note(rtx, tmp_path):
    source = Path(__file__).parents[1] / "models" / "mlp_dynamo.onnx"
    inputs = onnx.load(source).graph.input
    shapes = {
        value.name: [dim.dim_value or 4 for dim in value.type.tensor_type.shape.dim]
        for value in inputs
    }
    result = engine.build(source, tmp_path / "e", opt_shapes=shapes, backend="tensorrt-rtx")
    assert "no stof node" in result.notes[0]
    # No library is named, and none was needed.
    assert "lugins" not in json.dumps(result.commands.to_json())


@pytest.mark.parametrize("output", ["bert.stof.onnx", "./bert.stof.onnx", "nowhere/e", "."])
def test_bad_outputs(installed, optimized, tmp_path, monkeypatch, output):
    installed("tensorrt")
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    with pytest.raises(OutputError):
        engine.build(optimized, output, opt_shapes=SHAPES)
    assert files(tmp_path) == before


def test_a_missing_second_library(installed, optimized, libraries, tmp_path):
    installed("tensorrt")
    (libraries / plugin_library.AUTOLOAD_FILE_NAME).unlink()
    with pytest.raises(MissingDependencyError, match=r"autoload.so does not exist.*pip install \."):
        engine.build(optimized, tmp_path / "e", opt_shapes=SHAPES)
