"""The process in which NVRTC runs; :mod:`stof_onnx.jit.pool` starts and feeds it.

It reads pickles from stdin (an :class:`InstalledNvrtc`, then jobs) until stdin ends, and
answers each job on stdout with a kernel or the error. Pickles are safe here: both ends are
the same program, and the pipes are private to them.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import BinaryIO

from stof_onnx.ir.errors import StofError
from stof_onnx.jit.job import CompiledKernel, CompileJob
from stof_onnx.jit.nvrtc import InstalledNvrtc, Nvrtc


def main() -> None:
    """Serve until stdin ends."""
    # Ctrl-C reaches every process of the terminal; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not get between the answers: it goes to stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Compile what ``requests`` brings, one job after the other."""
    installed: InstalledNvrtc = pickle.load(requests)
    compiler: Nvrtc | None = None
    while True:
        try:
            job: CompileJob = pickle.load(requests)
        except EOFError:
            return
        answer: CompiledKernel | StofError
        try:
            compiler = compiler or Nvrtc(installed)
            answer = compiler.compile(job)
        except StofError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()
