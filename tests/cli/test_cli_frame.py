"""What all commands share: help, usage errors, exit codes, what goes to which stream."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import stof_onnx
from stof_onnx import api
from stof_onnx.ir.errors import CheckFailedError, InputError
from stof_onnx.ir.target import DESCRIPTIONS

COMMANDS = ["optimize", "inspect", "expand", "check", "build", "env"]


def subprocess_environment() -> dict[str, str]:
    """So that a child sees the package under test, whatever its working directory."""
    return {**os.environ, "PYTHONPATH": str(Path(stof_onnx.__file__).parents[1])}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_the_exit_codes(run_cli, command):
    code, out, err = run_cli(command, "--help")
    assert (code, err) == (0, "")
    assert f"examples:\n  stof-onnx {command}" in out
    assert "exit codes:\n  0 " in out


def test_help_lists_every_command(run_cli):
    code, out, err = run_cli("--help")
    assert (code, err) == (0, "")
    assert all(f"\n    {command} " in out for command in COMMANDS)
    assert "example:\n  stof-onnx optimize" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(run_cli, command):
    lines = run_cli(command, "--help").out.split("examples:")[0].splitlines()
    assert max(map(len, lines)) <= 80


def test_help_of_optimize_describes_every_target(run_cli):
    out = run_cli("optimize", "--help").out
    for name, text in DESCRIPTIONS.items():
        assert f"\n  {name:<9} {text}\n" in out


def test_version(run_cli):
    assert run_cli("--version") == (0, f"stof-onnx {stof_onnx.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["optimize"], "required: MODEL, -o/--output"),
        (["optimize", "m.onnx"], "required: -o/--output"),
        (["inspect", "m.onnx", "--jsn"], "unrecognized arguments: --jsn"),
        (["inspect", "m.onnx", "--js"], "unrecognized arguments: --js"),
        (["check", "a.onnx", "b.onnx", "--atol", "small"], "'small' is not a number >= 0"),
        (["check", "a.onnx", "b.onnx", "--rtol", "-1"], "'-1' is not a number >= 0"),
        (["check", "a.onnx", "b.onnx", "--atol", "nan"], "'nan' is not a number >= 0"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(run_cli, arguments, message):
    code, out, err = run_cli(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("stof-onnx: error: ")
    assert message in err
    assert err.endswith("--help`\n")
    assert err.count("\n") == 1


def test_python_m_runs_the_same_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "stof_onnx", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=subprocess_environment(),
        check=True,
    )
    assert done.stdout == f"stof-onnx {stof_onnx.__version__}\n"


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_import_nothing_heavy(tmp_path, option):
    code = (
        "import sys; from stof_onnx.cli import main; main(sys.argv[1:]);"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'polygraphy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, option],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=subprocess_environment(),
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


# ----------------------------------------------------------------------- errors and exit codes


def raising(error):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("came", "wanted", "do this"), 2, "came; wanted wanted; do this"),
        (InputError("two\n  lines"), 2, "two lines"),
        (CheckFailedError("node 'a' departs"), 1, "node 'a' departs"),
        (PermissionError(13, "Permission denied", "x"), 2, "[Errno 13] Permission denied: 'x'"),
        (MemoryError(), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            KeyError("k"),
            3,
            "KeyError: 'k'; this is a bug: please report it and run with -vv",
        ),
    ],
)
def test_errors_are_one_line_without_a_traceback(run_cli, monkeypatch, error, code, line):
    monkeypatch.setattr(api, "inspect", raising(error))
    assert run_cli("inspect", "m.onnx") == (code, "", f"stof-onnx: error: {line}\n")


@pytest.mark.parametrize("error", [InputError("came"), KeyError("k")])
def test_vv_shows_the_traceback(run_cli, monkeypatch, error):
    monkeypatch.setattr(api, "inspect", raising(error))
    code, out, err = run_cli("inspect", "m.onnx", "-vv")
    assert code in (2, 3)
    assert out == ""
    assert err.startswith("Traceback (most recent call last):\n")
    assert "with -vv" not in err
    assert err.splitlines()[-1].startswith("stof-onnx: error: ")


def test_what_libraries_print_stays_off_stdout(run_cli, monkeypatch):
    inspect = api.inspect

    def chatty(*arguments, **options):
        print("[I] a library's logger")  # as Polygraphy's does
        warnings.warn("deprecated", stacklevel=1)
        return inspect(*arguments, **options)

    monkeypatch.setattr(api, "inspect", chatty)
    model = Path(__file__).parents[1] / "models" / "mlp_dynamo.onnx"
    code, out, err = run_cli("inspect", model, "--json")
    assert code == 0
    assert json.loads(out)["attention"] == []
    assert "[I] a library's logger" in err
    assert "deprecated" not in err


@pytest.mark.parametrize("arguments", ["env", "--help", "inspect --help", "--version"])
def test_a_reader_that_went_away_is_no_traceback(tmp_path, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "stof_onnx", *arguments.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=subprocess_environment(),
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""
    # Newer versions of argparse itself ignore that nobody reads their help.
    assert done.returncode == 141 or ("--help" in arguments and done.returncode == 0)


BERT = str(Path(__file__).parents[1] / "models" / "bert_sdpa_dynamo.onnx")
ON_FILES = {
    "inspect": [BERT],
    "check": [BERT, BERT],
    "optimize": [BERT, "-o", "out.onnx", "--no-kernels", "--no-check"],
}


@pytest.mark.parametrize("command", ON_FILES)
def test_a_reader_of_results_that_went_away(tmp_path, command):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "stof_onnx", command, *ON_FILES[command]],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=subprocess_environment(),
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["env", "optimize", "--version", "inspect"])
def test_closed_streams_are_no_bug(tmp_path, command, closed):
    arguments = ["missing.onnx"] if command == "inspect" else ON_FILES.get(command, [])
    done = subprocess.run(
        [
            "sh",
            "-c",
            f'"$@" {closed}',
            "-",
            *[sys.executable, "-m", "stof_onnx"],
            command,
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=subprocess_environment(),
        check=False,
    )
    assert done.returncode == (2 if command == "inspect" else 0)
    assert "Traceback" not in done.stderr
    if command == "optimize":
        assert api.inspect(tmp_path / "out.onnx").stof_nodes


def test_nobody_reads_the_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "stof_onnx", "inspect", "missing.onnx"],
        stdout=writer,
        stderr=writer,
        cwd=tmp_path,
        env=subprocess_environment(),
        check=False,
    )
    os.close(writer)
    assert done.returncode == 2


def test_onnx_runtime_reports_nothing_and_leaves_nothing_behind(tmp_path):
    environment = {
        name: value
        for name, value in subprocess_environment().items()
        if not name.startswith(("XDG_", "ORT_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "stof_onnx", "check", BERT, BERT],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stof_onnx", "env"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=subprocess_environment(),
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "stof-onnx: error: [Errno 28] No space left on device\n"


def test_names_that_the_terminal_cannot_show(monkeypatch):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setattr(api, "inspect", raising(InputError("'modèle.onnx' does not exist")))
    assert stof_onnx.cli.main(["inspect", "modèle.onnx"]) == 2
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", ascii_only)
    report = stof_onnx.Report("modèle.onnx", (), 3, 3)
    monkeypatch.setattr(api, "inspect", lambda *arguments, **options: report)
    assert stof_onnx.cli.main(["inspect", "modèle.onnx"]) == 0
    ascii_only.seek(0)
    assert "mod\\xe8le.onnx" in ascii_only.read()
