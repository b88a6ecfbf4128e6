"""`vidgen report`."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import vidgen
from vidgen.benchmarks import command as bench_command
from vidgen.benchmarks import machine, suite
from vidgen.benchmarks import results as bench_results
from vidgen.extras import require
from vidgen.files import write_atomically
from vidgen.report import page

_CACHE = ".cache"
# by module: what is told while it runs
_DEMONSTRATIONS = {
    "pixelcnn_digits": "a PixelCNN learns digits and draws new ones",
    "class_digits": "Gated PixelCNN and PixelCNN++ draw the digits they are asked for",
    "moving_digits": "a C3D learns to tell how digits move",
    "two_stream": "a two-stream network learns to tell digits and how they move",
}


def report(
    output: Path = Path("report"),
    /,
    *,
    full: bool = False,
    threads: int | None = None,
    seed: int = 0,
    fresh: bool = False,
    gpu_results: Path | None = None,
) -> int:
    """Train the demonstrations, measure the ops, and write it all to one HTML page.

    A PixelCNN learns scikit-learn's handwritten digits and draws 256 new ones, Gated PixelCNN and PixelCNN++ draw the
    digits they are asked for, a C3D learns to tell how digits move, a two-stream network what and how, then the quick
    benchmarks run; together less than ten minutes on two cores. The folder gets index.html (self-contained: no script,
    nothing fetched from anywhere), results.json (every raw sample and drawn pixel) and results.md (the tables). Each
    file appears whole or not at all.

    Steps that are done are remembered in the folder: after Ctrl-C the same command goes on with what is missing, and a
    second run only writes the page again. What was made by other code, another torch or another machine is not reused.

    Args:
        output: folder to write to.
        full: measure every shape and contender instead of the quick set (tens of minutes).
        threads: CPU threads; every usable core if not given.
        seed: decides the demonstrations' weights, the order of their data, and what they draw.
        fresh: reuse nothing.
        gpu_results: folder with results files measured on GPUs; vidgen's own committed ones if not given.
    """
    for library, extra in (("jinja2", "report"), ("matplotlib", "report"), ("sklearn.datasets", "data")):
        require(library, extra=extra)
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    cores = machine.usable_cores() if threads is None else threads
    if cores < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    try:
        with suite.using_threads(cores):
            demo, classes, motion, streams = (
                _demonstrated(number, name, output, seed, cores, fresh)
                for number, name in enumerate(_DEMONSTRATIONS, start=1)
            )
            with _step(5, "benchmarks"):
                bench = suite.run(
                    full=full,
                    threads=cores,
                    cache=output / _CACHE,
                    fresh=fresh,
                    progress=bench_command.print_progress,
                )
    except KeyboardInterrupt:
        _say(f"Interrupted. The page in {output} is as it was; the same command goes on with what is missing.")
        return 130
    with _step(6, "page"):
        write(output, bench, demo, motion, classes, streams, gpu=_gpu_results(gpu_results))
    failed = list(bench_results.failures(bench))
    failed += [f"demonstration: {result}" for result in (demo, classes, motion, streams) if isinstance(result, str)]
    for sentence in failed:
        _say(f"FAILED: {sentence}")
    print(f"{output / 'index.html'}  ({time.monotonic() - started:.0f} s)")
    return 1 if failed else 0


def write(
    output: Path,
    bench: Mapping[str, Any],
    demo: Mapping[str, Any] | str,
    motion: Mapping[str, Any] | str,
    classes: Mapping[str, Any] | str,
    streams: Mapping[str, Any] | str,
    *,
    gpu: list[dict[str, Any]] | None = None,
) -> None:
    """Writes index.html, results.json and results.md; all three are made before the first is written."""
    content = {
        "index.html": page.render(bench, demo, motion, classes, streams, gpu=gpu or [], version=vidgen.__version__),
        "results.md": page.markdown(bench, demo, motion, classes, streams),
        "results.json": bench_results.dumps(
            {
                "benchmarks": bench,
                "demonstration": demo,
                "class_digits": classes,
                "moving_digits": motion,
                "two_stream": streams,
            }
        ),
    }
    for name, text in content.items():
        write_atomically(output / name, text.encode())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _step(number: int, told: str) -> Iterator[None]:
    began = time.monotonic()
    _say(f"{number}/6  {told}")
    yield
    _say(f"     {time.monotonic() - began:.0f} s")


def _demonstrated(number: int, name: str, output: Path, seed: int, cores: int, fresh: bool) -> dict[str, Any] | str:
    """What a demonstration returned, here or in an earlier run of the same code, as JSON has it; or why it failed."""
    facts = [name, seed, cores, machine.describe("cpu", torch.get_num_threads()), suite.code_hash(("benchmarks",))]
    path = output / _CACHE / f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    with _step(number, f"demonstration: {_DEMONSTRATIONS[name]}"):
        if not fresh and path.is_file():
            return json.loads(path.read_text())
        try:
            result = importlib.import_module(f"vidgen.report.{name}").run(output, seed=seed)
        except Exception as error:  # the page shows what failed, beside what did not
            reason = str(error).strip().partition("\n")[0]
            return f"{type(error).__name__}: {reason}"
        plain = json.dumps(
            {key: value.tolist() if hasattr(value, "tolist") else value for key, value in result.items()}
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, plain.encode())
        return json.loads(plain)


def _gpu_results(folder: Path | None) -> list[dict[str, Any]]:
    found = folder or Path(suite.__file__).parent / "results"
    stored = [bench_results.load(path) for path in sorted(found.glob("*.json"))]
    return [one for one in stored if one["machine"]["device"] == "cuda"]
