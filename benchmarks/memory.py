"""Peak resident memory of a contender, measured in a child process that runs nothing else.

One helper process imports torch and vidgen once and stays on one thread, so that it has no pool of threads, which a
fork would lose. For every contender it forks a child, which makes the inputs, notes its resident size, resets the
kernel's high-water mark, then builds the contender and calls it. What the mark has risen by is what the contender adds
to its inputs: output, packed weights, workspace, and pages of library code that it touches first.
Linux only (/proc); elsewhere `MemoryProbe` answers None and the tables show a dash.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .harness import Case, Contender

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_CALLS = 2
_PATIENCE_S = 120


class MemoryProbe:
    """Context manager; call it with a case and one of its contenders to get {"added_mib", "peak_mib"} or None."""

    def __init__(self, threads: int, full: bool) -> None:
        self._threads, self._full = threads, full
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> MemoryProbe:
        if _STATUS.exists() and hasattr(os, "fork"):
            # a fixed threshold keeps every large block in its own mapping, so that freeing it shows
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._threads), str(int(self._full))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent, which then closes the pipe
            )
            # it imports torch first, and nothing may be timed beside that
            assert self._process.stdout is not None
            self._process.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __call__(self, case: Case, contender: Contender) -> dict[str, float] | None:
        if self._process is None or case.device != "cpu":
            return None
        if contender.compiled and not self._full:
            return None  # compiling once more in the child takes seconds; the full set does it
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        print(json.dumps([case.op, case.name, contender.name]), file=to, flush=True)
        answer = back.readline()
        return json.loads(answer) if answer else None


def _high_water_mark_mib() -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _reset_high_water_mark() -> None:
    # some containers forbid it; the mark then still holds the peak of making the inputs
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")


def _probe(case: Case, contender: Contender) -> dict[str, float]:
    inputs = contender.prepare()
    _reset_high_water_mark()
    before = _high_water_mark_mib()
    run = contender.build(inputs)
    for _ in range(_CALLS):
        run()
    peak = _high_water_mark_mib()
    return {"added_mib": round(peak - before, 2), "peak_mib": round(peak, 2)}


def _in_child(case: Case, contender: Contender, threads: int) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # whatever happens, a child never returns into the parent's loop
        try:
            signal.alarm(_PATIENCE_S)
            torch.set_num_threads(threads)
            answer = json.dumps(_probe(case, contender))
        except BaseException:
            answer = "null"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer or "null"


def _serve(threads: int, full: bool) -> None:
    from .suite import find_cases

    torch.set_num_threads(1)
    known: dict[str, dict[str, Any]] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        op, name, contender = json.loads(line)
        if op not in known:
            known[op] = {case.name: case for case in find_cases([op], device="cpu", full=full)}
        case = known[op][name]
        print(_in_child(case, case.contender(contender), threads), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), bool(int(sys.argv[2])))
