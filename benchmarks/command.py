"""`vidgen bench`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal

from . import results, suite
from .harness import Case


def bench(
    ops: tuple[str, ...] = (),
    /,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    full: bool = False,
    threads: int | None = None,
    seconds: float = 1.5,
    output: Path = Path(),
    fresh: bool = False,
) -> int:
    """Measure vidgen's ops against PyTorch, and against other libraries where they are installed, on this machine.

    Every case runs its contenders by turns in one process and prints, for each: the median and quartiles of its
    time; how many times faster it is than eager PyTorch in the same memory layout and than the fastest contender that
    is not vidgen's; its error against float64; the memory it adds to its inputs (peak RSS of a child process); and
    the share of the machine's measured roofline that it reaches. A contender whose answer is wrong gets the reason and
    no number.

    The raw samples are written when everything is done, to one JSON file per op: those of other ops that stand in the
    same folder are left alone. Ctrl-C writes nothing; the cases that were finished by then are remembered, and the next
    run takes them from there.

    Args:
        ops: ops to measure, e.g. masked_conv2d. All of them if none is named.
        device: what to measure on.
        full: every shape and contender (tens of minutes) instead of the quick set (about five minutes).
        threads: CPU threads; every usable core if not given.
        seconds: time budget for the timed rounds of one case.
        output: folder for the results files <op>-<device>.json; the current folder if not given.
        fresh: measure again, whatever is remembered from earlier runs of the same code on the same machine.
    """
    cache = output / ".vidgen-bench"
    started = time.monotonic()
    try:
        measured = suite.run(
            ops,
            device=device,
            full=full,
            threads=threads,
            seconds=seconds,
            cache=cache,
            fresh=fresh,
            progress=print_progress,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted: no results file was written. Finished cases are kept in {cache}.", file=sys.stderr)
        return 130
    written = results.save(output, measured)
    print(f"\n{results.machine_line(measured)}")
    for note in results.notes(measured):
        print(note)
    files = ", ".join(map(str, written))
    print(f"{len(measured['rows'])} cases in {time.monotonic() - started:.0f} s. Raw samples: {files}")
    for warning in results.warnings(measured):
        print(warning, file=sys.stderr)
    failed = list(results.failures(measured))
    for sentence in failed:
        print(f"FAILED: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def print_progress(index: int, total: int, case: Case, row: dict[str, Any] | None, peaks: dict[str, float]) -> None:
    """Announces a case on standard error, and prints its table on standard output when it is done."""
    if row is None:
        print(f"[{index + 1}/{total}] {case.op}, {case.title}", file=sys.stderr, flush=True)
    else:
        print(f"\n{case.op}, {case.title}\n{results.plain(row, peaks)}\n", flush=True)
