"""Jobs, their keys, and the reading of ptxas's log."""

from dataclasses import replace

import pytest

from stof_onnx.jit.job import CompiledKernel, CompileJob, Resources
from stof_onnx.jit.ptxas_log import read_resources, without_times
from tests.jit.kernels import made_up_kernel

JOB = CompileJob("text", "entry", "sm_80", (("a.h", "one"), ("b.h", "two")), ("-x", "-y"))


@pytest.mark.parametrize(
    "other",
    [
        replace(JOB, source="text "),
        replace(JOB, entry="entry2"),
        replace(JOB, architecture="sm_86"),
        replace(JOB, architecture="compute_80"),
        replace(JOB, headers=(("a.h", "onet"), ("b.h", "wo"))),
        replace(JOB, headers=(("a.ho", "ne"), ("b.h", "two"))),
        replace(JOB, headers=JOB.headers[::-1]),
        replace(JOB, headers=JOB.headers[:1]),
        replace(JOB, options=("-y", "-x")),
        replace(JOB, options=("-x -y",)),
        replace(JOB, options=()),
    ],
)
def test_whatever_differs_changes_the_key(other):
    assert other.key("NVRTC 13.0.88") != JOB.key("NVRTC 13.0.88")


def test_the_compiler_is_part_of_the_key():
    assert JOB.key("NVRTC 13.0.88") == replace(JOB).key("NVRTC 13.0.88")
    assert JOB.key("NVRTC 13.0.88") != JOB.key("NVRTC 13.0.48")
    assert len(JOB.key("NVRTC 13.0.88")) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"entry": ""},
        {"entry": "a b"},
        {"entry": "1a"},
        {"entry": "a\n"},
        {"architecture": "sm90"},
        {"architecture": "sm_90b"},
        {"architecture": "lto_90"},
        {"architecture": "sm_90 --x"},
        {"source": "a\0b"},
        {"headers": (("a\0.h", ""),)},
        {"headers": (("a.h", "\0"),)},
        {"options": ("-x\0",)},
    ],
)
def test_a_job_that_nvrtc_would_misread_is_refused(change):
    with pytest.raises(ValueError, match=r"architecture|name of a kernel|NUL"):
        replace(JOB, **change)


LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
{tail}    64 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 96 bytes cumulative stack size, 400 bytes smem
ptxas info    : Compile time = 8.228 ms
ptxas info    : Function properties for _Z6calledi
{tail}    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function 'first_of_many' for 'sm_90a'
ptxas info    : Function properties for first_of_many
{tail}    0 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, 372 bytes cmem[0]
ptxas info    : Compile time = 2.099 ms
"""


@pytest.mark.parametrize("tail", ["", "ptxas         . "])
@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("first", Resources(40, 400, 96, 12, 16)),
        ("first_of_many", Resources(255, 0, 0, 20, 24)),
        ("firs", None),
    ],
)
def test_each_kernel_has_its_own_part_of_the_log(tail, entry, expected):
    assert read_resources(LOG.format(tail=tail), entry) == expected


@pytest.mark.parametrize("word", ["registers", "stack frame"])
def test_a_log_of_another_form_is_not_read(word):
    assert read_resources(LOG.format(tail="").replace(word, "thingies"), "first") is None


def test_times_are_taken_out_of_the_log():
    log = without_times(LOG)
    assert "Compile time" not in log
    assert len(log.splitlines()) == len(LOG.splitlines()) - 2


def test_warnings_are_found_in_the_log():
    log = (
        "kernel.cu(3): warning #177-D: variable declared but never referenced\n"
        'Remark: The warnings can be suppressed with "-diag-suppress <warning-number>"\n'
        "ptxas warning : Registers are spilled to local memory\n"
        "ptxas info    : 0 bytes gmem\n"
    )
    kernel: CompiledKernel = replace(made_up_kernel(), log=log)
    assert [line[:12] for line in kernel.warnings] == ["kernel.cu(3)", "ptxas warnin"]
