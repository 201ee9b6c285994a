"""``stof-onnx env``."""

from __future__ import annotations

import json

import numpy

import stof_onnx
from stof_onnx import gpu_detect
from stof_onnx.cli import env
from stof_onnx.gpu_detect import Gpu, GpuSurvey
from stof_onnx.jit import cache


def test_json_is_one_object_with_versions(run_cli):
    code, out, err = run_cli("env", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["stof-onnx"] == stof_onnx.__version__
    assert facts["required"]["numpy"] == numpy.__version__
    assert None not in facts["required"].values()
    assert {"tensorrt", "tensorrt_rtx"} == set(facts["optional"])
    assert {"path", "version", "plugins", "problem"} == set(facts["plugin_library"])


def test_text_names_everything_that_json_has(run_cli):
    facts = json.loads(run_cli("env", "--json").out)
    code, out, err = run_cli("env")
    assert (code, err) == (0, "")
    for name, version in facts["required"].items():
        assert f"{name:<18} {version}\n" in out
    for entry in facts["missing"]:
        assert f"  {entry['name']:<18} {entry['needed_for']}: {entry['install']}\n" in out


def test_what_is_missing_comes_with_its_install_line(run_cli, monkeypatch):
    monkeypatch.setattr(env, "_installed_version", lambda distributions: None)
    missing = {m["name"]: m["install"] for m in json.loads(run_cli("env", "--json").out)["missing"]}
    assert missing["onnx"] == "pip install onnx"
    assert missing["tensorrt"] == "pip install tensorrt-cu13"
    assert missing["nvidia-cuda-nvrtc"] == "pip install 'nvidia-cuda-nvrtc>=13,<14'"


def test_nothing_is_recommended_that_nothing_uses(run_cli, monkeypatch):
    monkeypatch.setattr(env, "_installed_version", lambda distributions: None)
    assert not {"cuda-core", "pycuda"} & {
        entry["name"] for entry in json.loads(run_cli("env", "--json").out)["missing"]
    }


def test_a_good_cache_is_named(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("STOF_ONNX_CACHE", str(tmp_path / "new" / "cache"))
    assert f"kernel cache       {tmp_path / 'new' / 'cache'}\n" in run_cli("env").out
    cache = json.loads(run_cli("env", "--json").out)["kernel_cache"]
    assert cache == {"path": str(tmp_path / "new" / "cache"), "problem": ""}
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_used_is_a_problem(run_cli, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STOF_ONNX_CACHE", str(tmp_path / "file"))
    code, out, err = run_cli("env")
    assert (code, err) == (0, "")
    assert f"kernel cache       {tmp_path / 'file'}\n" in out
    assert f"{tmp_path / 'file'} is not a directory; set STOF_ONNX_CACHE" in out


def test_no_home_is_no_error(run_cli, monkeypatch):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(cache, "default_directory", homeless)
    code, out, err = run_cli("env")
    assert (code, err) == (0, "")
    assert "kernel cache       there is no place for a kernel cache (no home); set STOF_" in out
    assert json.loads(run_cli("env", "--json").out)["kernel_cache"]["path"] is None


def test_gpus_are_listed(run_cli, monkeypatch):
    survey = GpuSurvey((Gpu("NVIDIA H100", (9, 0), 80 * 2**30),), "13.0")
    monkeypatch.setattr(gpu_detect, "survey_gpus", lambda: survey)
    out = run_cli("env").out
    assert "GPU 0              NVIDIA H100, compute capability 9.0, 80 GiB\n" in out
    assert "runs CUDA up to 13.0" in out
    gpu = json.loads(run_cli("env", "--json").out)["gpu"]
    assert gpu["devices"] == [
        {"name": "NVIDIA H100", "compute_capability": "9.0", "memory_bytes": 80 * 2**30}
    ]


def test_a_library_of_another_version_is_a_problem(run_cli, monkeypatch, tmp_path):
    from stof_onnx import plugin_library

    monkeypatch.setattr(plugin_library, "path", lambda: tmp_path / plugin_library.FILE_NAME)
    monkeypatch.setattr(plugin_library, "version", lambda: "0.0.1")
    monkeypatch.setattr(plugin_library, "plugin_count", lambda: 0)
    facts = json.loads(run_cli("env", "--json").out)
    assert stof_onnx.__version__ in facts["plugin_library"]["problem"]
    assert "plugin library" in {entry["name"] for entry in facts["missing"]}
