"""What `make gpu` runs on a machine with a GPU, in the interpreter that is there: no network, no virtual environment.

    python3 benchmarks/gpu.py [--no-build] [--full]

Builds in place, runs the op matrix and the kernel tests on the device, measures, and then, if nothing failed, writes
the raw samples to benchmarks/results/ and what has passed to vidgen/gpu_manifest.json, each under a temporary name
first. Exit status: 0 done; 1 something failed, and nothing was written to the manifest; 2 there is no GPU; 130 Ctrl-C.

It starts as a script, before anything is built, so vidgen is imported only after the build.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEVICE_TESTS = ["tests/ops", "tests/kernels", "tests/sampling"]
# the cases that other machines run in Triton's interpreter; not collected by name
KERNEL_CASES = "tests/kernels/cases_*_triton.py"


class StepError(Exception):
    """Which step failed, in one sentence without its full stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="build, test and measure vidgen on this machine's GPU")
    parser.add_argument("--no-build", action="store_true", help="use the libraries that are there")
    parser.add_argument("--full", action="store_true", help="every benchmark case instead of the quick set")
    options = parser.parse_args(arguments)
    if reason := no_gpu():
        print(f"vidgen: {reason}", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        run(build=not options.no_build, full=options.full)
    except KeyboardInterrupt:
        print("\nvidgen: interrupted; the manifest is untouched.", file=sys.stderr)
        return 130
    except StepError as failure:
        print(f"vidgen: {failure}; the manifest is untouched.", file=sys.stderr)
        return 1
    print(f"vidgen: done in {time.monotonic() - started:.0f} s.")
    return 0


def no_gpu() -> str | None:
    """None where torch can use a GPU, else one sentence."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no PyTorch; name an interpreter that has, as in `make gpu PYTHON=python3.12`."
    if not torch.cuda.is_available():
        return f"there is no GPU here that torch {torch.__version__} of {sys.executable} can use."
    return None


def run(*, build: bool, full: bool) -> None:
    if build:
        step("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"])
    # imports from here on are vidgen's own, whatever the working directory; this folder is vidgen.benchmarks there
    sys.path[0] = str(ROOT)
    before = candidates()
    with tempfile.TemporaryDirectory() as folder:
        passed = matrix(Path(folder))
    untested = sorted({backend for _, backend in before if not passed.get(backend)})
    if untested:
        raise StepError(f"no test has run backend {' and '.join(untested)} on this GPU")
    samples = measure(full)
    if candidates() != before:
        raise StepError("a kernel's source has changed meanwhile")
    write_manifest(before, passed, samples)


def step(name: str, command: Sequence[str], **environment: str) -> None:
    """Runs a command with its output shown; StepError if it fails."""
    print(f"vidgen: {name}: {' '.join(command[1:])}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it has had the same Ctrl-C; let it put its things away
        raise
    if status != 0:
        raise StepError(f"{name} failed with status {status}")
    print(f"vidgen: {name} took {time.monotonic() - started:.0f} s.", flush=True)


def matrix(folder: Path) -> dict[str, int]:
    """Runs the tests on the device; returns how many have passed per GPU backend."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    device, cases = folder / "device.xml", folder / "cases.xml"
    step("op matrix", [*pytest, "-m", "gpu", f"--junitxml={device}", *DEVICE_TESTS])
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(KERNEL_CASES))
    step("kernel cases", [*pytest, f"--junitxml={cases}", *files], TRITON_INTERPRET="0")
    counts = {"triton": passes(cases, ""), "cuda": 0, "graph": 0, "persistent": 0}
    for backend in counts:
        counts[backend] += passes(device, f"cuda-{backend}")
    return counts


def passes(report: Path, word: str) -> int:
    """How many tests of a JUnit report, with `word` in their name, have passed."""
    tests = ElementTree.parse(report).getroot().iter("testcase")
    return sum(word in test.get("name", "") and not len(test.findall("skipped")) for test in tests)


def measure(full: bool) -> dict[str, Path]:
    """Runs the benchmarks on the device; returns the file of raw samples of every op that has one."""
    import torch

    from vidgen.benchmarks import results, suite

    folder = ROOT / "benchmarks" / "results"
    script = (
        "import sys; from pathlib import Path; from vidgen.benchmarks.command import bench; "
        f"sys.exit(bench(device='cuda', full={full}, output=Path({str(folder)!r})))"
    )
    # nothing stands in the manifest yet, so a default would be eager PyTorch measured against itself
    step("benchmarks", [sys.executable, "-c", script], VIDGEN_EXPERIMENTAL="1")
    card = {"device": "cuda", "gpu": torch.cuda.get_device_name()}
    return {op: folder / results.file_name(op, card) for op in suite.ops()}


def samples_of(op: str, measured: dict[str, Path]) -> str | None:
    """The file, relative to the root, that an op or the op whose adjoint it is has been measured in."""
    names = [name for name in measured if op == name or op.startswith(f"{name}_grad")]
    return measured[names[0]].relative_to(ROOT).as_posix() if names else None


def candidates() -> dict[tuple[str, str], str]:
    """(op, backend) -> hash of its source, for every gated backend that this machine can run, and gated executor."""
    importlib.import_module("vidgen.ops")
    from vidgen.ops import gate
    from vidgen.ops.backends import TABLE, cuda_available

    gate.reset()
    gated = [(op, row.name, row.available) for op, rows in TABLE.items() for row in rows if row.gated]
    # an executor is a kernel of the CUDA library, or Python that every build has
    gated += [("sampling", "persistent", cuda_available), *((*pair, lambda: None) for pair in gate.PYTHON_BACKENDS)]
    found = {}
    for op, name, available in gated:
        if reason := available():
            print(f"vidgen: {op}: {name} is left out: {reason}", flush=True)
            continue
        source = gate.source_hash(op, name)
        if not source:
            raise StepError(f"the hash of the source of {op}, {name} cannot be told")
        found[op, name] = source
    if not found:
        raise StepError("no GPU backend can run here")
    return found


def write_manifest(sources: dict[tuple[str, str], str], passed: dict[str, int], samples: dict[str, Path]) -> None:
    """Puts what has passed into the manifest, in place of older entries for the same GPU generation."""
    import torch

    import vidgen
    from vidgen.files import write_atomically
    from vidgen.ops import gate

    capability = gate.capability_name(torch.cuda.get_device_capability())
    facts = {
        "compute_capability": capability,
        "device": torch.cuda.get_device_name(),
        "vidgen": vidgen.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    entries = merged(gate.manifest_entries(), sources, passed, facts)
    for entry in entries:
        if (entry["op"], entry["backend"]) in sources and entry["compute_capability"] == capability:
            entry["samples"] = samples_of(entry["op"], samples)
    manifest = {"format": gate.MANIFEST_FORMAT, "entries": entries}
    write_atomically(gate.MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    gate.reset()
    print(f"vidgen: {len(sources)} backends stand in {gate.MANIFEST} for {capability}.")
    files = ", ".join(path.relative_to(ROOT).as_posix() for path in samples.values())
    print(f"vidgen: commit it together with {files} and the kernels.")


def merged(
    old: Sequence[dict[str, Any]],
    sources: dict[tuple[str, str], str],
    passed: dict[str, int],
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """The entries of a manifest after a run: what it passed replaces what stood there for the same GPU generation."""
    kept = [
        entry
        for entry in old
        if (entry["op"], entry["backend"]) not in sources or entry["compute_capability"] != facts["compute_capability"]
    ]
    new = [
        {"op": op, "backend": backend, "source_hash": source, "tests": passed[backend], **facts}
        for (op, backend), source in sources.items()
    ]
    return sorted([*kept, *new], key=lambda entry: (entry["op"], entry["backend"], entry["compute_capability"]))


def _version(module: str) -> str:
    try:
        return str(importlib.import_module(module).__version__)
    except ImportError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
