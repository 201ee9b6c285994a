"""Processes that compile kernels, and the threads that talk to them.

Plain subprocesses, not multiprocessing: its spawned workers run the caller's ``__main__``
again, so that a script which calls ``stof_onnx.optimize`` without an ``if __name__ ==
"__main__"`` would start itself over and over; its forked ones inherit the caller's threads
and CUDA context.
"""

from __future__ import annotations

import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack

from stof_onnx.ir.errors import StofError
from stof_onnx.jit.errors import WorkerError
from stof_onnx.jit.job import CompiledKernel, CompileJob
from stof_onnx.jit.nvrtc import InstalledNvrtc

_STDERR_SHOWN = 500  # characters

_Outcome = CompiledKernel | BaseException


def compile_in_workers(
    jobs: Sequence[CompileJob], installed: InstalledNvrtc, workers: int
) -> Generator[CompiledKernel, None, None]:
    """Compile jobs in ``workers`` processes and yield kernels as they are done.

    The processes end with the generator, however it ends; close it if it isn't used up.

    Raises:
        CompileError: NVRTC refuses a job. Jobs that were not yet begun are not begun.
        WorkerError: a process could not be started, or died; names the job.
        MissingDependencyError: NVRTC can't be loaded.
    """
    waiting: queue.SimpleQueue[CompileJob] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
    with ExitStack() as stack:
        for _ in range(min(workers, len(jobs))):
            worker = _Worker(installed)
            # Last in, first out: the process is killed, which ends its thread, which is joined.
            thread = threading.Thread(
                target=_feed, args=(worker, waiting, outcomes), name="stof-onnx compile"
            )
            stack.callback(worker.close)
            thread.start()
            stack.callback(thread.join)
            stack.callback(worker.kill)
        for _ in jobs:
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome


def worker_command() -> list[str]:
    """The command line of a worker: this interpreter, with this process's ``sys.path``.

    Raises:
        WorkerError: Python is embedded in, or frozen into, another program.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise WorkerError(
            "kernels are compiled in processes of their own, and this program contains"
            " no Python interpreter to run them with",
            next_step="run stof-onnx in an ordinary Python",
        )
    paths = [entry for entry in sys.path if isinstance(entry, str)]
    code = f"import sys; sys.path[:] = {paths!r}; from stof_onnx.jit.worker import main; main()"
    return [sys.executable, "-c", code]


class _Worker:
    """One process. All methods but ``kill`` are called by one thread at a time."""

    def __init__(self, installed: InstalledNvrtc) -> None:
        self._installed = installed
        self._greeted = False
        # A file takes any amount; nobody would read a pipe while the worker is busy.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            self._process = subprocess.Popen(
                worker_command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
            )
        except OSError as error:
            self._stderr.close()
            raise WorkerError(f"no process can be started to compile kernels: {error}") from error
        except StofError:
            self._stderr.close()
            raise

    def compile(self, job: CompileJob) -> CompiledKernel:
        """Have one job compiled.

        Raises:
            StofError: what the worker answered, or that it died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if not self._greeted:
                pickle.dump(self._installed, self._process.stdin)
                self._greeted = True
            pickle.dump(job, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise self._death(job) from error
        if isinstance(answer, StofError):
            raise answer
        if not isinstance(answer, CompiledKernel):
            raise WorkerError(f"the process compiling {job} answered {type(answer).__name__}")
        return answer

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """End the process and clear up; not while another thread is in :meth:`compile`."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    # A request was on its way when the process was killed.
                    continue

    def _death(self, job: CompileJob) -> WorkerError:
        # The pipes are at their end; a process that lives on with closed pipes is of no use.
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        self._stderr.seek(0)
        text = " ".join(self._stderr.read().decode(errors="replace").split())
        said = f" and said: {text[-_STDERR_SHOWN:]}" if text else ""
        next_step = "compile with fewer workers" if code == -signal.SIGKILL else ""
        return WorkerError(
            f"the process compiling {job} with {self._installed.compiler} ended with"
            f" {_ending(code)}{said}",
            next_step=next_step,
        )


def _feed(
    worker: _Worker,
    waiting: queue.SimpleQueue[CompileJob],
    outcomes: queue.SimpleQueue[_Outcome],
) -> None:
    """Give a worker job after job, until there is none or one goes wrong."""
    while True:
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            outcomes.put(worker.compile(job))
        except BaseException as error:
            # Whatever it is, the main thread waits for it, and raises it again.
            outcomes.put(error)
            return


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
