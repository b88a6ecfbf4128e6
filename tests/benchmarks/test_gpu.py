"""`make gpu`: refuses without a GPU, writes a manifest only after everything has passed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidgen.benchmarks import gpu
from vidgen.ops import backends, gate
from vidgen.sampling import EXECUTORS

ROOT = Path(__file__).parents[2]
FACTS = {"compute_capability": "9.0", "device": "a card"}


def entry(op, backend, capability, source):
    return {"op": op, "backend": backend, "compute_capability": capability, "source_hash": source}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_refuses_in_one_line_without_a_gpu():
    done = subprocess.run([sys.executable, "benchmarks/gpu.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no GPU" in done.stderr


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with one card on which the steps do as told; returns the outcomes to set and the manifest's path."""
    outcome = {"passed": {"triton": 5, "cuda": 2}, "hashes": iter(["a" * 32] * 9), "measure": None}

    def measure(full):
        if outcome["measure"]:
            raise outcome["measure"]
        return {op: ROOT / "benchmarks" / "results" / f"{op}-cuda-a-card.json" for op in ("op", "other")}

    monkeypatch.setattr(gpu, "no_gpu", lambda: None)
    monkeypatch.setattr(gpu, "matrix", lambda folder: outcome["passed"])
    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(
        gpu, "candidates", lambda: dict.fromkeys([("op", "triton"), ("op", "cuda")], next(outcome["hashes"]))
    )
    monkeypatch.setattr(gpu, "ROOT", ROOT)
    monkeypatch.setattr(sys, "path", ["", *sys.path[1:]])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    manifest = tmp_path / "gpu_manifest.json"
    monkeypatch.setattr(gate, "MANIFEST", manifest)
    gate.reset()
    yield outcome, manifest
    gate.reset()


def test_gated_backends_and_executors_have_to_pass(monkeypatch):
    rows = [
        backends.Backend("triton", ("cuda",), lambda: None, lambda *args: None, None, gated=True),
        backends.Backend("cuda", ("cuda",), lambda: "it is not built", lambda *args: None, None, gated=True),
        backends.Backend("reference", (), lambda: None, lambda *args: None, None),
    ]
    monkeypatch.setattr(backends, "TABLE", {"op": rows})
    monkeypatch.setattr(gate, "source_hash", lambda op, backend: f"{op} {backend}")
    monkeypatch.setattr(gate, "reset", lambda: None)
    monkeypatch.setattr(backends, "cuda_available", lambda: None)
    executors = {("sampling", executor.name) for executor in EXECUTORS if executor.gated}
    assert gpu.candidates().keys() == {("op", "triton"), *executors}


def test_what_has_passed_stands_in_the_manifest(machine, capsys):
    _, manifest = machine
    assert gpu.main(["--no-build"]) == 0
    written = json.loads(manifest.read_text())
    assert written["format"] == gate.MANIFEST_FORMAT
    assert [(e["op"], e["backend"], e["tests"], e["source_hash"]) for e in written["entries"]] == [
        ("op", "cuda", 2, "a" * 32),
        ("op", "triton", 5, "a" * 32),
    ]
    assert {e["compute_capability"] for e in written["entries"]} == {"9.0"}
    assert {e["samples"] for e in written["entries"]} == {"benchmarks/results/op-cuda-a-card.json"}


def test_samples_are_those_of_the_op_whose_adjoint_it_is():
    measured = {name: ROOT / f"{name}.json" for name in ("conv", "conv_pool")}
    assert gpu.samples_of("conv", measured) == "conv.json"
    assert gpu.samples_of("conv_pool", measured) == "conv_pool.json"
    assert gpu.samples_of("conv_grad_input", measured) == "conv.json"
    assert gpu.samples_of("conv_pool_grad_weight", measured) == "conv_pool.json"
    assert gpu.samples_of("unmeasured", measured) is None


def test_nothing_is_written_when_something_fails(machine, capsys):
    outcome, manifest = machine
    outcome["passed"] = {"triton": 5, "cuda": 0}
    assert gpu.main(["--no-build"]) == 1
    assert "no test has run backend cuda on this GPU" in capsys.readouterr().err
    outcome["passed"] = {"triton": 5, "cuda": 1}
    outcome["measure"] = gpu.StepError("benchmarks failed with status 1")
    assert gpu.main(["--no-build"]) == 1
    outcome["measure"] = KeyboardInterrupt()
    assert gpu.main(["--no-build"]) == 130
    outcome["measure"] = None
    outcome["hashes"] = iter(["a" * 32, "b" * 32])
    assert gpu.main(["--no-build"]) == 1
    assert "source has changed meanwhile" in capsys.readouterr().err
    assert not manifest.exists()


def test_a_run_replaces_only_its_own_gpu_generation():
    old = [
        entry("op", "triton", "9.0", "old"),
        entry("op", "triton", "8.0", "old"),
        entry("other", "cuda", "9.0", "old"),
    ]
    new = gpu.merged(old, {("op", "triton"): "new"}, {"triton": 1}, FACTS)
    assert [(e["op"], e["compute_capability"], e["source_hash"]) for e in new] == [
        ("op", "8.0", "old"),
        ("op", "9.0", "new"),
        ("other", "9.0", "old"),
    ]


def test_a_failing_step_stops_the_run():
    with pytest.raises(gpu.StepError, match="that failed with status 3"):
        gpu.step("that", [sys.executable, "-c", "raise SystemExit(3)"])
    gpu.step("this", [sys.executable, "-c", "import os; assert os.environ['WORD'] == 'x'"], WORD="x")


def test_skipped_tests_count_for_nothing(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a[cuda-triton]"/>'
        '<testcase name="b[cuda-triton-x]"><skipped/></testcase>'
        '<testcase name="c[cuda-cuda]"/></testsuite></testsuites>'
    )
    assert gpu.passes(report, "cuda-triton") == 1
    assert gpu.passes(report, "cuda-cuda") == 1
    assert gpu.passes(report, "") == 2
