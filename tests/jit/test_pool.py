"""Workers that misbehave: each is a small program in place of the real one."""

import importlib.metadata
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from stof_onnx.ir.errors import MissingDependencyError, StofError
from stof_onnx.jit import pool
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.jit.errors import WorkerError
from stof_onnx.jit.nvrtc import find_nvrtc
from tests.jit.kernels import IMPORT_PATH, scale_job

# What a worker that reads its first job, and then does what follows, begins with.
READ_A_JOB = """
import os, pickle, signal, sys, time
pickle.load(sys.stdin.buffer); pickle.load(sys.stdin.buffer)
"""


@pytest.fixture
def fake_worker(monkeypatch):
    def install(code):
        path = f"import sys; sys.path[:] = {sys.path!r}\n"
        command = [sys.executable, "-c", path + textwrap.dedent(code)]
        monkeypatch.setattr(pool, "worker_command", lambda: command)

    return install


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL; compile with fewer workers"),
        ("os._exit(9)", "ended with exit code 9"),
        ("sys.exit('NVRTC is unhappy')", "exit code 1 and said: NVRTC is unhappy"),
        ("os.write(1, b'\\x80\\x05'); os._exit(0)", "ended with exit code 0"),
        ("os.write(1, b'not a pickle'); os._exit(0)", "ended with exit code 0"),
        ("os.close(1); time.sleep(60)", "ended with SIGKILL"),
        ("pickle.dump('hello', os.fdopen(1, 'wb'))", "answered str"),
    ],
)
def test_a_dying_worker_is_an_error_that_names_the_job(fake_worker, code, text):
    fake_worker(READ_A_JOB + code)
    with pytest.raises(WorkerError) as caught:
        compile_kernels([scale_job("sm_90a")], cache=None)
    assert "compiling kernel 'scale' for sm_90a" in str(caught.value)
    assert text in str(caught.value)


def test_a_worker_that_does_not_get_as_far_as_a_job(fake_worker):
    fake_worker("raise ImportError('no such thing')")
    with pytest.raises(WorkerError, match="ImportError: no such thing"):
        compile_kernels([scale_job()], cache=None)


def test_one_dead_worker_ends_the_others(fake_worker, tmp_path):
    # The first to come makes the folder and dies, the other would take a minute.
    fake_worker(
        READ_A_JOB
        + f"""
try:
    os.mkdir({str(tmp_path / "first")!r})
except FileExistsError:
    open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
    time.sleep(60)
while not os.path.exists({str(tmp_path / "pid")!r}) or not os.path.getsize(
    {str(tmp_path / "pid")!r}
):
    time.sleep(0.01)
os._exit(5)
"""
    )
    jobs = [scale_job(), scale_job("sm_90a")]
    with pytest.raises(WorkerError, match="exit code 5"):
        compile_kernels(jobs, cache=None, workers=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_a_worker_prints_stays_off_stdout(fake_worker, capfd):
    fake_worker(
        """
        import os
        from stof_onnx.jit import nvrtc, worker
        compile = nvrtc.Nvrtc.compile
        def noisy(self, job):
            print("noise", flush=True)
            os.write(1, b"noise")
            return compile(self, job)
        nvrtc.Nvrtc.compile = noisy
        worker.main()
        """
    )
    assert len(compile_kernels([scale_job()], cache=None)) == 1
    assert capfd.readouterr() == ("", "")


def test_an_unstartable_worker(monkeypatch):
    monkeypatch.setattr(pool, "worker_command", lambda: ["/nonexistent/python"])
    with pytest.raises(WorkerError, match="no process can be started"):
        compile_kernels([scale_job()], cache=None)


@pytest.mark.parametrize(("attribute", "value"), [("executable", None), ("frozen", True)])
def test_without_an_interpreter_nothing_is_started(monkeypatch, attribute, value):
    monkeypatch.setattr(sys, attribute, value, raising=False)
    with pytest.raises(WorkerError, match="no Python interpreter"):
        compile_kernels([scale_job()], cache=None)


def test_ctrl_c_ends_the_workers(tmp_path):
    # The fake worker ignores SIGINT, as the real one does: it has to be killed.
    pids = tmp_path / "pids"
    worker = READ_A_JOB + (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"os.write(os.open({str(pids)!r}, os.O_CREAT | os.O_APPEND | os.O_WRONLY),"
        " b'%d\\n' % os.getpid())\n"
        "time.sleep(60)\n"
    )
    # A shell that runs tests in the background has them ignore SIGINT, and children inherit that.
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:] = {IMPORT_PATH!r}
from stof_onnx.jit import pool
from stof_onnx.jit.compile import compile_kernels
from tests.jit.kernels import scale_job
worker = "import sys; sys.path[:] = {sys.path!r}\\n" + {worker!r}
pool.worker_command = lambda: [sys.executable, "-c", worker]
try:
    compile_kernels([scale_job(), scale_job("sm_90a")], cache=None, workers=2)
except KeyboardInterrupt:
    sys.exit(130)
"""
    # A session of its own: Ctrl-C reaches all processes of the terminal, and not this one.
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as process:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if pids.exists() and len(pids.read_text().splitlines()) == 2:
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=10) == 130
    workers = [int(pid) for pid in pids.read_text().split()]
    assert len(workers) == 2
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_outlives_ctrl_c():
    # Its parent ends it, and nothing else: or it might look like a crash.
    with subprocess.Popen(
        pool.worker_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        pickle.dump(find_nvrtc(), process.stdin)
        answers = []
        for _ in range(2):
            pickle.dump(scale_job(), process.stdin)
            process.stdin.flush()
            answers.append(pickle.load(process.stdout))
            process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.wait(timeout=10) == 0
    assert answers[0] == answers[1]


def test_nvrtc_missing(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(MissingDependencyError, match="pip install 'nvidia-cuda-nvrtc>=13,<14'"):
        find_nvrtc()


def test_nvrtc_of_another_version(monkeypatch):
    class Twelve:
        version = "12.9.86"
        files = (importlib.metadata.PackagePath("nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Twelve)
    with pytest.raises(StofError, match=r"12\.9\.86 has no libnvrtc\.so\.13"):
        find_nvrtc()
