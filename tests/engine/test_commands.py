"""The printed command lines: exact words, and tools that really understand them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stof_onnx import engine, plugin_library
from stof_onnx.engine.commands import PluginLibraries, command_lines
from stof_onnx.engine.profiles import ShapeRange

LIBRARIES = PluginLibraries(Path("/lib/creators.so"), Path("/lib/autoload.so"))
IDS = ShapeRange((1, 1), (4, 128), (8, 512))
SCALAR = ShapeRange((), (), ())


def lines(profiles, libraries=LIBRARIES, *, tf32=False):
    return command_lines(
        Path("/m/a.onnx"), Path("/m/e"), profiles, libraries, tf32=tf32, tolerance="1e-3"
    )


@pytest.mark.parametrize(
    ("profiles", "options"),
    [
        ([], []),
        (
            [{"ids": IDS, "onnx::s": SCALAR}],
            [
                "--minShapes=ids:1x1,onnx::s:scalar",
                "--optShapes=ids:4x128,onnx::s:scalar",
                "--maxShapes=ids:8x512,onnx::s:scalar",
            ],
        ),
        (
            [{"ids": IDS}, {"ids": IDS}],
            [
                f"--{word}"
                for number in (0, 1)
                for word in (
                    f"profile={number}",
                    "minShapes=ids:1x1",
                    "optShapes=ids:4x128",
                    "maxShapes=ids:8x512",
                )
            ],
        ),
    ],
)
def test_trtexec(profiles, options):
    start = ["trtexec", "--onnx=/m/a.onnx", "--saveEngine=/m/e", "--stronglyTyped"]
    plugins = ["--dynamicPlugins=/lib/creators.so"]
    assert list(lines(profiles).trtexec) == [*start, *plugins, "--noTF32", *options]
    assert list(lines(profiles, tf32=True).trtexec) == [*start, *plugins, *options]
    assert list(lines(profiles, None).trtexec) == [*start, "--noTF32", *options]


def test_polygraphy_of_a_static_model():
    expand, reference, run = lines([]).polygraphy
    assert shlex.join(expand) == "stof-onnx expand /m/a.onnx -o /m/e.expanded.onnx"
    assert shlex.join(reference) == (
        "polygraphy run /m/e.expanded.onnx --onnxrt"
        " --save-inputs /m/e.inputs.json --save-outputs /m/e.outputs.json"
    )
    assert shlex.join(run) == (
        "polygraphy run /m/a.onnx --trt --strongly-typed --plugins /lib/autoload.so"
        " --load-inputs /m/e.inputs.json --load-outputs /m/e.outputs.json"
        " --atol 1e-3 --rtol 1e-3 --save-engine /m/e"
    )


def test_plugins_find_the_tensorrt_that_pip_installed():
    libraries = replace(LIBRARIES, tensorrt=Path("/site/tensorrt_libs"))
    *_, run = lines([], libraries).polygraphy
    assert run[:3] == ("env", "LD_LIBRARY_PATH=/site/tensorrt_libs", "polygraphy")


def test_polygraphy_without_stof_nodes_needs_no_expansion():
    reference, run = lines([], None, tf32=True).polygraphy
    assert reference[2] == run[2] == "/m/a.onnx"
    assert "--plugins" not in run
    assert "--tf32" in run


def test_one_library_a_process():
    commands = lines([{"ids": IDS}])
    for line in (commands.trtexec, *commands.polygraphy):
        text = shlex.join(line)
        assert not ("creators.so" in text and "autoload.so" in text)


def run_tool(line, *more):
    """Runs a printed line with the tools of this Python."""
    program, *arguments = line
    main = {"stof-onnx": "stof_onnx.cli", "polygraphy": "polygraphy.tools"}[program]
    code = f"import sys; from {main} import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *more], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_polygraphy_understands_every_line(libraries, optimized, tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    commands = engine.build_commands(
        optimized,
        folder / "bert.engine",
        min_shapes=[{"input_ids": (1, 1)}, {"input_ids": (1, 1)}],
        opt_shapes=[{"input_ids": (2, 20)}, {"input_ids": (1, 60)}],
    )
    quoted = commands.to_json()["polygraphy"]
    expand, reference, run = map(shlex.split, quoted)
    run_tool(expand)
    assert "PASSED" in run_tool(reference)
    assert (folder / "bert.engine.inputs.json").stat().st_size > 0
    # Without a GPU the last line is not run, but turned into the script that would run.
    script = folder / "script.py"
    run_tool(run, "--gen-script", str(script))
    text = script.read_text()
    for part in (
        f"LoadPlugins(plugins=['{libraries / plugin_library.AUTOLOAD_FILE_NAME}'], obj=",
        f"obj='{optimized}')",
        "NetworkFromOnnxPath(load_plugins, strongly_typed=True",
        "Profile().add('input_ids', min=[1, 1], opt=[2, 20], max=[2, 20])",
        "Profile().add('input_ids', min=[1, 1], opt=[1, 60], max=[1, 60])"
        ".add('attention_mask', min=[1, 1], opt=[1, 60], max=[1, 60])",
    ):
        assert part in text, text
