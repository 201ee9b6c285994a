"""compile_kernels: what comes out, from real compilations."""

import subprocess
import sys
import textwrap

import pytest

from stof_onnx.ir.errors import MissingDependencyError
from stof_onnx.jit import compile as compile_module
from stof_onnx.jit import pool
from stof_onnx.jit.cache import KernelCache
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.jit.errors import CompileError
from stof_onnx.jit.job import CompileJob
from stof_onnx.jit.nvrtc import InstalledNvrtc, find_nvrtc
from tests.jit.kernels import IMPORT_PATH, MMA, SHARED, SPILLING, scale_job
from tests.jit.sass import opcode_counts, registers_and_frame, shared_bytes

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")


@pytest.fixture
def no_worker(monkeypatch):
    def refuse():
        raise AssertionError("a worker was started")

    monkeypatch.setattr(pool, "worker_command", refuse)


@pytest.fixture
def worker_starts(monkeypatch):
    """Collects one item for each process that is started."""
    starts = []
    command = pool.worker_command

    def counted():
        starts.append(None)
        return command()

    monkeypatch.setattr(pool, "worker_command", counted)
    return starts


def test_every_architecture_gives_a_cubin_with_tensor_core_code():
    jobs = [CompileJob(MMA, "mma", architecture) for architecture in ARCHITECTURES]
    kernels = compile_kernels(jobs, cache=None)
    assert [kernel.architecture for kernel in kernels] == list(ARCHITECTURES)
    for kernel in kernels:
        assert kernel.kind == "cubin"
        assert kernel.image.startswith(b"\x7fELF")
        assert kernel.warnings == ()
        assert opcode_counts(kernel.image, "mma")["HMMA"] > 0, kernel.architecture
        assert opcode_counts(kernel.image, "other") == {}


def test_a_virtual_architecture_gives_ptx():
    (kernel,) = compile_kernels([scale_job("compute_80")], cache=None)
    assert kernel.kind == "ptx"
    assert kernel.image.endswith(b"\0")
    text = kernel.image.decode("ascii")
    assert ".target sm_80" in text
    assert ".entry scale(" in text
    assert kernel.resources is None


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_120"])
def test_resources_are_those_in_the_cubin(architecture):
    jobs = [CompileJob(SHARED, entry, architecture) for entry in ("shared", "plain")]
    jobs.append(CompileJob(SPILLING, "spilling", architecture, options=("--maxrregcount=40",)))
    kernels = compile_kernels(jobs, cache=None)
    for kernel in kernels:
        expected = (kernel.resources.registers, kernel.resources.local_bytes)
        assert registers_and_frame(kernel.image, kernel.entry) == expected, kernel.entry
    with_shared, plain, spilling = (kernel.resources for kernel in kernels)
    # From compute capability 9.0 on the section includes what the driver keeps for itself.
    reserved = 0 if architecture == "sm_80" else 1024
    assert with_shared.static_shared_bytes == 400
    assert shared_bytes(kernels[0].image, "shared") == 400 + reserved
    assert plain.static_shared_bytes == 0
    assert (plain.spill_stores_bytes, plain.spill_loads_bytes) == (0, 0)
    assert plain.local_bytes == 128
    assert spilling.registers <= 40
    assert spilling.spill_stores_bytes > 0
    assert spilling.spill_loads_bytes > 0
    counts = opcode_counts(kernels[2].image)
    assert counts["STL"] > 0
    assert counts["LDL"] > 0


def test_the_same_job_gives_the_same_bytes(tmp_path, monkeypatch):
    job = CompileJob(SHARED, "shared", "sm_90a")
    (first,) = compile_kernels([job], cache=None)
    monkeypatch.chdir(tmp_path)
    (second,) = compile_kernels([job], cache=None)
    assert second == first
    assert first.key == job.key(find_nvrtc().compiler)


def test_headers_come_with_the_job_alone(tmp_path, monkeypatch):
    (tmp_path / "factor.h").write_text("#define FACTOR 3.0f\n")
    monkeypatch.chdir(tmp_path)
    source = '#include "factor.h"\n' + scale_job().source.split("\n", 1)[1]
    with pytest.raises(CompileError, match=r"factor\.h"):
        compile_kernels([CompileJob(source, "scale", "compute_80")], cache=None)
    header = ("factor.h", "#define FACTOR 5.0f\n")
    job = CompileJob(source, "scale", "compute_80", headers=(header,))
    (kernel,) = compile_kernels([job], cache=None)
    assert b"0f40A00000" in kernel.image  # 5.0f, and not 3.0f


def test_warnings_are_kept():
    job = scale_job()
    source = job.source.replace("if (i", "int unused; if (i")
    (kernel,) = compile_kernels([CompileJob(source, "scale", "sm_80")], cache=None)
    (warning,) = kernel.warnings
    assert '"unused"' in warning
    assert "unused" in kernel.log


@pytest.mark.parametrize(
    ("source", "entry", "architecture", "text"),
    [
        ("int f() { return missing; }", "f", "sm_80", 'identifier "missing" is undefined'),
        ("__global__ void k() {}", "k", "sm_80", "no extern \"C\" kernel 'k'"),
        ("__global__ void k() {}", "k", "compute_80", "no extern \"C\" kernel 'k'"),
        ('extern "C" __global__ void kk() {}', "k", "sm_80", "no extern \"C\" kernel 'k'"),
        ('extern "C" __global__ void kk() {}', "k", "compute_80", "no extern \"C\" kernel 'k'"),
        (SHARED.replace("[100]", "[20000]"), "shared", "sm_80", "too much shared data"),
        (SHARED, "shared", "sm_42", "invalid value for --gpu-architecture"),
    ],
)
def test_a_refused_kernel_says_why_and_for_what(source, entry, architecture, text):
    job = CompileJob(source, entry, architecture)
    with pytest.raises(CompileError) as caught:
        compile_kernels([job], cache=None)
    error = caught.value
    assert text in str(error)
    assert f"kernel {entry!r} for {architecture}" in str(error)
    assert error.exit_code == 3
    assert error.architecture == architecture
    assert "\0" not in error.log


def test_equal_jobs_are_compiled_once_by_one_worker(worker_starts):
    steps = []

    class Steps:
        def task(self, description, total):
            steps.append(total)
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def advance(self, n=1):
            steps.append("+")

    jobs = [scale_job(), scale_job("sm_90a"), scale_job()]
    kernels = compile_kernels(jobs, cache=None, workers=1, progress=Steps())
    assert kernels[0] is kernels[2]
    assert [kernel.architecture for kernel in kernels] == ["sm_80", "sm_90a", "sm_80"]
    assert steps == [2, "+", "+"]
    assert len(worker_starts) == 1


@pytest.mark.parametrize(("jobs", "workers", "started"), [(1, 4, 1), (3, 2, 2)])
def test_no_more_workers_than_asked_for_or_needed(worker_starts, jobs, workers, started):
    compile_kernels([scale_job(factor=f"{i}.0f") for i in range(jobs)], cache=None, workers=workers)
    assert len(worker_starts) == started


def test_a_cached_kernel_is_not_compiled_again(tmp_path, monkeypatch):
    cache = KernelCache(tmp_path)
    first = compile_kernels([scale_job(), scale_job("compute_80")], cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "worker_command", lambda: pytest.fail("a worker was started"))
        again = compile_kernels([scale_job("compute_80"), scale_job()], cache=KernelCache(tmp_path))
    assert again == first[::-1]
    starts = compile_kernels([scale_job(factor="3.0f"), scale_job()], cache=cache)
    assert starts[1] == first[0]
    assert starts[0] != first[0]


def test_what_was_done_before_a_failure_is_kept(tmp_path, monkeypatch):
    cache = KernelCache(tmp_path)
    with pytest.raises(CompileError):
        compile_kernels([scale_job(), scale_job(factor="wrong")], cache=cache, workers=1)
    monkeypatch.setattr(pool, "worker_command", lambda: pytest.fail("a worker was started"))
    assert len(compile_kernels([scale_job()], cache=cache)) == 1


def test_no_jobs_need_nothing(no_worker, monkeypatch):
    monkeypatch.setattr(compile_module, "find_nvrtc", lambda: pytest.fail("looked for NVRTC"))
    assert compile_kernels([], cache=None) == []


def test_workers_must_be_positive():
    with pytest.raises(ValueError, match="0 workers"):
        compile_kernels([scale_job()], cache=None, workers=0)


def test_an_nvrtc_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    broken = InstalledNvrtc(tmp_path / "libnvrtc.so.13", "13.7.1")
    monkeypatch.setattr(compile_module, "find_nvrtc", lambda: broken)
    with pytest.raises(MissingDependencyError, match="pip install 'nvidia-cuda-nvrtc>=13,<14'"):
        compile_kernels([scale_job()], cache=None)


def test_a_script_needs_no_main_guard(tmp_path):
    # multiprocessing's spawn would run the script again in each worker.
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:] = {IMPORT_PATH!r}
        print("started")
        from stof_onnx.jit.compile import compile_kernels
        from tests.jit.kernels import scale_job
        jobs = [scale_job(factor=f"{{i}}.0f") for i in range(2)]
        print(len(compile_kernels(jobs, cache=None, workers=2)))
        """)
    )
    done = subprocess.run(
        [sys.executable, script], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "started\n2\n"
    assert done.stderr == ""
