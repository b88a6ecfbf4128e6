"""Many videos: what is to be done, by how many workers, how far it is, and what became of each."""

from __future__ import annotations

import errno
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vidgen.extraction.lock import alone_in
from vidgen.extraction.outputs import SINGLE_FILES, Output, Settings, open_output, output_at
from vidgen.extraction.pipeline import StoppedError, extract_one
from vidgen.extraction.sources import Source, find_sources
from vidgen.extras import require
from vidgen.progress import progress_bar
from vidgen.signals import stop_on_signals

#: seconds between two lines about the progress where there is no bar
_LINE_EVERY = 60.0
#: if nobody says how many; each has frames and flows of its own in memory
_MOST_WORKERS = 4
# after these no other video can be written either
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass
class Summary:
    """What a run has done.

    Attributes:
        videos: videos and folders of frames that were found.
        done: of these, computed in this run, at least in part.
        skipped: whole before it began.
        flows: flows of the videos in `done`, those of earlier runs included.
        failed: path and reason.
        notes: path, and what is odd about a video that was done.
        stopped: it was interrupted; what is not in one of the others is left to the next run.
    """

    videos: int
    done: int = 0
    skipped: int = 0
    flows: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class _Job:
    source: Source
    output: Output


@dataclass
class _Share:
    """How far a worker is with its video, and how many flows it has had in all; only the worker writes it."""

    expected: int = 0
    flows: int = 0
    all: int = 0

    def begin(self, expected: int) -> None:
        self.expected, self.flows = expected, 0

    def advance(self) -> None:
        self.flows += 1
        self.all += 1

    def part(self) -> float:
        return min(self.flows / self.expected, 1.0) if self.expected > 0 else 0.0

    def doubt(self, source: Source, flows: int, summary: Summary) -> None:
        """Notes a video that ends long before its header says so: decoders are content with a file that is cut off."""
        if flows < 0.9 * self.expected - 2:
            note = f"has {flows} flows where its header promises about {self.expected}: it may be cut off"
            summary.notes.append((str(source.path), note))


def _is_file(given: Path, out: Path, settings: Settings) -> bool:
    """Whether `out` is one file, not a folder of many; ValueError where it can be neither."""
    single = SINGLE_FILES.get(settings.format)
    is_file = single is not None and out.suffix == single
    if is_file and given.is_dir():
        raise ValueError(f"OUT must be a folder where IN is one, got {out}")
    if out.exists() and out.is_file() != is_file:
        raise ValueError(f"OUT must be a {'file' if is_file else 'folder'} for format {settings.format!r}, got {out}")
    if out.exists() and given.exists() and out.samefile(given):
        raise ValueError(f"OUT must not be IN, got {out} for both")
    return is_file


def plan(given: Path, out: Path, settings: Settings, *, overwrite: bool = False) -> tuple[list[_Job], Summary]:
    """What is to be computed, and a summary of what is whole already or is not to be read. Nothing is written.

    Raises:
        FileNotFoundError, ValueError: see `extract_flow`.
    """
    is_file = _is_file(given, out, settings)
    found = find_sources(given, fps=settings.fps, apart_from=out)
    jobs, summary = [], Summary(len(found))
    for source in found:
        try:
            record = {"source": source.identity(), "settings": settings.record(is_video=not source.is_folder)}
        except OSError as error:
            # such as a link to nowhere
            summary.failed.append((str(source.path), str(error)))
            continue
        output = output_at(out, settings, record) if is_file else open_output(out, source.name, settings, record)
        if output.path.exists() and output.path.resolve() == source.path.resolve():
            raise ValueError(f"OUT must be another folder: {source.path} would be replaced by its own flow")
        if not overwrite and output.is_complete():
            summary.skipped += 1
        else:
            jobs.append(_Job(source, output))
    return jobs, summary


def extract_flow(
    given: str | Path, out: str | Path, settings: Settings, *, batch: int = 4, workers: int | None = None,
    overwrite: bool = False, show: bool | None = None, stop: threading.Event | None = None,
) -> Summary:  # fmt: skip
    """Computes the flow of a video, or of every video and folder of frames under a folder, and writes it.

    What an earlier run of the same settings has written is kept and not computed again, so the same call after an
    interrupted one goes on, to the same bytes as an uninterrupted one. One run at a time writes to a place.

    Args:
        given: video, or folder of videos or of numbered pictures, to any depth.
        out: folder; each source gets a folder or file in it, at the place that it has in `given`. For one video and
            the formats "safetensors" and "mp4" it may be the file itself.
        settings: what to compute and how to write it.
        batch: pairs of frames in one call of the op; changes no bit.
        workers: videos at once, among which torch's threads are divided; changes no bit. None takes one for each
            thread, at most four.
        overwrite: compute everything anew.
        show: draw a progress bar; None draws it on a terminal, and elsewhere says a line every minute.
        stop: ends the run early when set. So do SIGINT and SIGTERM; a second one raises KeyboardInterrupt at once.

    Returns:
        What was done; videos that failed are in it, and the rest has gone on.

    Raises:
        FileNotFoundError: there is no `given`.
        ValueError: nothing to compute in it; or what is in `out` was made with other settings or of other videos.
        BusyError: another run is writing to `out`.
        OSError: the disk is full or cannot be written.
        ModuleNotFoundError: PyAV is not installed (``pip install 'vidgen[video]'``).
    """
    before = torch.get_num_threads()
    if workers is None:
        # nothing is lost on large videos, and much is won on short ones, where the op is not all there is to do
        workers = min(before, _MOST_WORKERS)
    for name, number in (("batch", batch), ("workers", workers)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    settings.check()
    require("av", extra="video")
    given, out = Path(given), Path(out)
    with alone_in(out, is_file=_is_file(given, out, settings)):
        jobs, summary = plan(given, out, settings, overwrite=overwrite)
        workers = min(workers, max(len(jobs), 1))
        # threads that begin from here on have so many
        torch.set_num_threads(max(before // workers, 1))
        try:
            _run(jobs, settings, summary, batch, workers, overwrite, show, stop or threading.Event())
        finally:
            torch.set_num_threads(before)
    return summary


def _run(
    jobs: Sequence[_Job], settings: Settings, summary: Summary, batch: int, workers: int, overwrite: bool,
    show: bool | None, stop: threading.Event,
) -> None:  # fmt: skip
    todo: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[_Job, int | Exception] | None] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)
    shares = [_Share() for _ in range(workers)]

    def work(share: _Share) -> None:
        while not stop.is_set():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                break
            share.begin((job.source.expected_frames() or 0) // settings.stride - 1)
            result: int | Exception
            try:
                job.output.begin(overwrite=overwrite)
                result = extract_one(job.source, job.output, settings, batch=batch, stop=stop, advance=share.advance)
                share.doubt(job.source, result, summary)
            except Exception as error:
                result = error
            share.begin(0)
            ended.put((job, result))
        ended.put(None)

    threads = [threading.Thread(target=work, args=(share,), name="vidgen-flow", daemon=True) for share in shares]
    for thread in threads:
        thread.start()
    try:
        with stop_on_signals(stop.set, words="Stopping after this batch; Ctrl-C again quits at once."):
            _follow(ended, shares, summary, len(jobs), stop, show)
    except Exception:
        stop.set()
        for thread in threads:
            thread.join()
        raise


def _follow(
    ended: queue.SimpleQueue[tuple[_Job, int | Exception] | None], shares: Sequence[_Share], summary: Summary,
    total: int, stop: threading.Event, show: bool | None,
) -> None:  # fmt: skip
    """Until every worker has ended: counts, and tells how far it is."""
    running, over = len(shares), 0
    report = _Report(total, show)
    try:
        while running:
            try:
                item = ended.get(timeout=0.2)
            except queue.Empty:
                report.update(over + sum(share.part() for share in shares), over, sum(share.all for share in shares))
                continue
            if item is None:
                running -= 1
                continue
            job, result = item
            if isinstance(result, StoppedError):
                continue
            over += 1
            if isinstance(result, OSError) and result.errno in _HOPELESS:
                raise result
            if isinstance(result, Exception):
                reason = (str(result) or type(result).__name__).removeprefix("path: ")
                summary.failed.append((str(job.source.path), reason))
                report.failed += 1
            else:
                summary.done += 1
                summary.flows += result
        summary.stopped = over < total
    finally:
        report.close()


class _Report:
    """A bar, or a line every minute."""

    def __init__(self, videos: int, show: bool | None) -> None:
        self._videos, self._at, self._begin = videos, 0.0, time.monotonic()
        self.failed = 0
        self._lines, self._line = show is None and not sys.stderr.isatty(), time.monotonic()
        form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = progress_bar(max(videos, 1), "flow", show=show, bar_format=form)

    def update(self, at: float, videos: int, flows: int) -> None:
        """`at` counts videos with the parts that are done of those in work."""
        # where a header promised fewer frames than came, it stands still
        self._bar.update(max(at - self._at, 0.0))
        self._at = max(at, self._at)
        now = time.monotonic()
        speed = flows / (now - self._begin)
        where = f"{videos} of {self._videos} videos, {speed:.3g} flows/s"
        if self.failed:
            where += f", {self.failed} failed"
        self._bar.set_postfix_str(where)
        if self._lines and now - self._line >= _LINE_EVERY and self._at > 0:
            self._line = now
            minutes = round((now - self._begin) * (self._videos - self._at) / self._at / 60)
            left = f"about {minutes // 60} h {minutes % 60} min left"
            print(f"{self._at / self._videos:.1%}: {where}, {left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
