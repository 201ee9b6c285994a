"""What is installed: lazy imports, the plugin library, the contents of wheel and sdist."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import stof_onnx
from stof_onnx import plugin_library
from stof_onnx.ir.errors import MissingDependencyError

ROOT = Path(__file__).parents[1]


def run_python(code: str, cwd: Path, python: str | Path = sys.executable, **environment: str):
    environment = {**os.environ, **environment}
    if python == sys.executable:
        environment["PYTHONPATH"] = str(Path(stof_onnx.__file__).parents[1])
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, check=True
    ).stdout


# --------------------------------------------------------------------------------- public names


def test_importing_the_package_imports_no_dependency(tmp_path):
    code = (
        "import sys; before = set(sys.modules); import stof_onnx;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(new - sys.stdlib_module_names, 'importlib.metadata' in sys.modules)"
    )
    assert run_python(code, tmp_path) == "{'stof_onnx'} False\n"


@pytest.mark.parametrize("name", stof_onnx.__all__)
def test_every_public_name_exists(name):
    assert getattr(stof_onnx, name) is not None
    assert name in dir(stof_onnx)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="'stof_onnx' has no attribute 'fuse'"):
        _ = stof_onnx.fuse


def test_no_module_needs_a_gpu_package(tmp_path):
    code = """
import importlib, pkgutil, sys
for name in ("cuda", "pycuda", "tensorrt", "tensorrt_rtx", "torch"):
    sys.modules[name] = None  # an import of it raises ImportError
import stof_onnx
modules = [m.name for m in pkgutil.walk_packages(stof_onnx.__path__, "stof_onnx.")]
for name in modules:
    if name != "stof_onnx.__main__":
        importlib.import_module(name)
print("stof_onnx.rewriter" in modules and "stof_onnx.search" in modules and len(modules) > 20)
"""
    assert run_python(code, tmp_path) == "True\n"


# ------------------------------------------------------------------------------ plugin library


@pytest.fixture
def library() -> Path:
    try:
        return plugin_library.path()
    except MissingDependencyError:
        pytest.skip("stof-onnx isn't installed here: no plugin library")


def test_library_has_the_version_of_the_package(library):
    assert plugin_library.version() == stof_onnx.__version__


def test_library_has_both_plugins(library):
    assert plugin_library.plugin_count() == 2
    assert plugin_library.autoload_path().parent.samefile(library.parent)


def test_library_is_found_from_a_source_tree(library, monkeypatch):
    # Python started in a source tree imports the tree's package, beside which no library lies.
    monkeypatch.setattr(plugin_library, "_beside_package", lambda: None)
    installed = plugin_library.path()
    assert installed.samefile(library)


def test_missing_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(plugin_library, "_beside_package", lambda: Path("/nowhere"))
    monkeypatch.setattr(plugin_library, "_of_installed_package", lambda: None)
    with pytest.raises(MissingDependencyError, match="run `pip install"):
        plugin_library.version()


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_broken_library_says_how_to_mend_it(monkeypatch, tmp_path, content):
    broken = tmp_path / plugin_library.FILE_NAME
    broken.write_bytes(content)
    monkeypatch.setattr(plugin_library, "path", lambda: broken)
    with pytest.raises(MissingDependencyError, match=r"can't be loaded.*--force-reinstall"):
        plugin_library.version()


# ------------------------------------------------------------------------------ wheel and sdist


def pip(python: Path | str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--outdir", target, ROOT],
        check=True,
        capture_output=True,
    )
    (file,) = target.glob("*.tar.gz")
    return file


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", target, sdist)
    (file,) = target.glob("*.whl")
    return file


def version_of(wheel: Path) -> str:
    return wheel.name.split("-")[1]


def sources(folder: str) -> set[str]:
    """The Python files of a folder of the tree, through its symbolic links."""
    return {
        str(Path(found, name).relative_to(ROOT))
        for found, _, names in os.walk(ROOT / folder, followlinks=True)
        for name in names
        if name.endswith(".py")
    }


def test_tree_has_the_sources():
    assert {"stof_onnx/rewriter/__init__.py", "stof_onnx/search/__init__.py"} <= sources(
        "stof_onnx"
    )


@pytest.mark.slow
def test_sdist_has_every_source_and_no_link(sdist):
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    wanted = sources("stof_onnx") | sources("rewriter") | sources("search") | sources("tests")
    assert wanted <= names
    assert {"CMakeLists.txt", "LICENSE", "README.md", "examples/bert_bigbird.onnx"} <= names
    assert {"plugins/host/stof_host.h", "plugins/libstof_plugins.map"} <= names


@pytest.mark.slow
def test_wheel_has_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        modes = {info.external_attr >> 28 for info in archive.infolist()}
    assert {name.split("/")[0] for name in names} == {
        "stof_onnx",
        f"stof_onnx-{version_of(wheel)}.dist-info",
    }
    assert {name for name in names if name.endswith(".py")} == sources("stof_onnx")
    libraries = (plugin_library.FILE_NAME, plugin_library.AUTOLOAD_FILE_NAME)
    assert {"stof_onnx/py.typed", *(f"stof_onnx/lib/{name}" for name in libraries)} <= names
    kernels = {f"stof_onnx/kernels/{path.name}" for path in (ROOT / "plugins/kernels").iterdir()}
    assert len(kernels) > 5
    assert kernels <= names
    symbolic_link = 0o12
    assert symbolic_link not in modes
    assert "-py3-none-linux_" in wheel.name


def new_environment(folder: Path) -> Path:
    """The Python of a fresh virtual environment."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


SHOW = (
    "import stof_onnx; from stof_onnx import plugin_library, rewriter, search;"
    "assert plugin_library.version() == stof_onnx.__version__;"
    "print(stof_onnx.__file__, rewriter.__file__, search.__file__, plugin_library.path())"
)


@pytest.mark.slow
def test_installed_wheel(wheel, tmp_path):
    python = new_environment(tmp_path / "venv")
    pip(python, "install", "--no-deps", wheel)
    files = [Path(name) for name in run_python(SHOW, tmp_path, python).split()]
    assert all(tmp_path / "venv" in file.parents for file in files)
    with pytest.raises(subprocess.CalledProcessError):
        run_python("import rewriter", tmp_path, python)
    # `env` is for people whose installation is broken: it needs no dependency.
    script = python.with_name("stof-onnx")
    shown = subprocess.run([script, "env"], capture_output=True, text=True, check=True).stdout
    assert "onnxruntime        not installed" in shown
    assert f"plugin library     {version_of(wheel)}, 2 plugins" in shown


@pytest.mark.slow
def test_installed_wheel_seen_from_the_source_tree(wheel, tmp_path):
    python = new_environment(tmp_path / "venv")
    pip(python, "install", "--no-deps", wheel)
    *modules, library = (Path(name) for name in run_python(SHOW, ROOT, python).split())
    assert all(ROOT in file.parents for file in modules)
    assert tmp_path / "venv" in library.parents


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False], ids=["in the tree", "elsewhere"])
def test_editable_installation(tmp_path, inside):
    python = new_environment(tmp_path / "venv")
    pip(python, "install", "--no-deps", "--editable", ROOT)
    cwd = ROOT if inside else tmp_path
    *modules, library = (Path(name) for name in run_python(SHOW, cwd, python).split())
    assert all(ROOT in file.parents for file in modules)
    assert tmp_path / "venv" in library.parents
