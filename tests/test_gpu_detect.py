"""Asking the CUDA driver, with drivers that we build here: one for each answer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from stof_onnx.gpu_detect import Gpu, GpuSurvey, detect_compute_capabilities, survey_gpus

# Two GPUs; -DFAILING=cuInit makes that function return -DCODE.
FAKE_DRIVER = r"""
#include <cstddef>
#include <cstdio>
#include <cstring>
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#ifndef FAILING
#define FAILING nothing
#define CODE 0
#endif
static int result(const char* name) { return std::strcmp(name, TEXT(FAILING)) ? 0 : CODE; }
extern "C" {
int cuDriverGetVersion(int* v) { *v = 13020; return result("cuDriverGetVersion"); }
int cuInit(unsigned) { return result("cuInit"); }
int cuDeviceGetCount(int* n) { *n = 2; return result("cuDeviceGetCount"); }
int cuDeviceGet(int* d, int i) { *d = 40 + i; return result("cuDeviceGet"); }
int cuDeviceGetName(char* s, int n, int d) {
  std::snprintf(s, n, "GPU %d", d);
  return result("cuDeviceGetName");
}
int cuDeviceTotalMem_v2(size_t* b, int d) {
  *b = size_t(d) << 32;
  return result("cuDeviceTotalMem_v2");
}
int cuDeviceGetAttribute(int* v, int attribute, int d) {
  *v = attribute == 75 ? (d == 40 ? 9 : 8) : attribute == 76 ? 0 : -1;
  return result("cuDeviceGetAttribute");
}
int cuGetErrorString(int code, const char** s) {
  *s = code == 999 ? "unknown" : "some error";
  return code == 42;
}
}
"""


@pytest.fixture
def build_driver(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")

    def build(*options: str, source: str = FAKE_DRIVER) -> str:
        code = tmp_path / "driver.cpp"
        code.write_text(source)
        library = tmp_path / "libfake.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", *options, "-o", library, code], check=True, cwd=tmp_path
        )
        return str(library)

    return build


def test_lists_the_drivers_gpus(build_driver):
    expected = (Gpu("GPU 40", (9, 0), 40 << 32), Gpu("GPU 41", (8, 0), 41 << 32))
    assert survey_gpus(build_driver()) == GpuSurvey(expected, "13.2", "")


@pytest.mark.parametrize(
    "function",
    [
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceTotalMem_v2",
        "cuDeviceGetAttribute",
    ],
)
def test_every_return_code_is_checked(build_driver, function):
    survey = survey_gpus(build_driver(f"-DFAILING={function}", "-DCODE=999"))
    assert survey == GpuSurvey((), "13.2", f"{function} returned 999 (unknown)")


def test_the_version_call_is_checked_too(build_driver):
    survey = survey_gpus(build_driver("-DFAILING=cuDriverGetVersion", "-DCODE=42"))
    assert survey == GpuSurvey((), "", "cuDriverGetVersion returned 42 (unknown error)")


def test_a_driver_without_a_gpu(build_driver):
    survey = survey_gpus(build_driver("-DFAILING=cuInit", "-DCODE=100"))
    assert survey == GpuSurvey((), "13.2", "the driver sees no GPU")


def test_a_library_that_is_no_driver(build_driver):
    survey = survey_gpus(build_driver(source="int nothing;"))
    assert survey.gpus == ()
    assert "is not NVIDIA's driver" in survey.problem


def test_no_driver(tmp_path: Path):
    survey = survey_gpus(str(tmp_path / "libcuda.so.1"))
    assert survey.gpus == ()
    assert survey.problem.startswith("no NVIDIA driver: ")


def test_capabilities_are_distinct_and_sorted(monkeypatch):
    from stof_onnx import gpu_detect

    gpus = tuple(Gpu("x", capability, 1) for capability in [(9, 0), (8, 0), (9, 0)])
    monkeypatch.setattr(gpu_detect, "survey_gpus", lambda: GpuSurvey(gpus))
    assert detect_compute_capabilities() == [(8, 0), (9, 0)]
