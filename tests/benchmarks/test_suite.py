"""If these failed, an interrupted or repeated run could leave half a file, or figures of other code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.benchmarks import command, machine, results, suite
from vidgen.benchmarks.harness import Case, Contender


def case(name: str, calls: list[str]) -> Case:
    def run() -> dict[str, torch.Tensor]:
        calls.append(name)
        return {"y": torch.ones(3)}

    contender = Contender("eager", "float32", lambda: None, lambda _: run)
    return Case("masked_conv2d", name, name, "forward", "cpu", {}, [contender], lambda _: {"y": torch.ones(3).double()})


class NoProbe:
    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> NoProbe:
        return self

    def __exit__(self, *_: object) -> None: ...
    def __call__(self, *_: object) -> None: ...


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the real cases by three instant ones and returns the list of calls to them."""
    made: list[str] = []
    cases = [case(name, made) for name in ("first", "second", "third")]
    monkeypatch.setattr(suite, "find_cases", lambda *_, **__: cases)
    monkeypatch.setattr(suite, "MemoryProbe", NoProbe)
    monkeypatch.setattr(machine, "peaks", lambda *_: {"float32": 1.0, "gb_per_s": 1.0})
    return made


def test_bench_writes_one_whole_file_and_reports_success(tmp_path: Path, calls: list[str], capfd: Any) -> None:
    output = tmp_path / "out"
    assert command.bench(seconds=0.01, output=output) == 0
    written = output / "masked_conv2d-cpu.json"
    assert [row["case"] for row in results.load(written)["rows"]] == ["first", "second", "third"]
    shown = capfd.readouterr()
    assert "[2/3] masked_conv2d, second" in shown.err
    assert "eager" in shown.out
    assert str(written) in shown.out


def test_ctrl_c_leaves_the_old_file_and_no_other_and_the_next_run_goes_on(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    output = tmp_path / "masked_conv2d-cpu.json"
    output.write_text("old")
    real = suite.measure

    def interrupted(one: Case, **more: Any) -> dict[str, Any]:
        if one.name == "third":
            raise KeyboardInterrupt
        return real(one, **more)

    monkeypatch.setattr(suite, "measure", interrupted)
    assert command.bench(seconds=0.01, output=tmp_path) == 130
    assert output.read_text() == "old"
    assert "no results file was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".vidgen-bench", output.name]

    monkeypatch.setattr(suite, "measure", real)
    calls.clear()
    assert command.bench(seconds=0.01, output=tmp_path) == 0
    assert set(calls) == {"third"}
    assert len(results.load(output)["rows"]) == 3


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "op-cpu.json"
    output.write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        results.save(tmp_path, {"format": 1, "machine": {"device": "cpu"}, "rows": [{"op": "op"}]})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_remembered_cases_are_of_the_same_code_settings_and_machine(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(**more: Any) -> bool:
        calls.clear()
        suite.run(**({"seconds": 0.01, "cache": tmp_path} | more))
        return bool(calls)

    assert measured()
    assert not measured()
    assert measured(seconds=0.02)
    assert measured(threads=1) or machine.usable_cores() == 1
    assert measured(fresh=True)
    monkeypatch.setattr(suite, "code_hash", lambda *_, **__: "another version")
    assert measured()


def test_a_failed_check_is_the_exit_status(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Contender("ours", "float32", lambda: None, lambda _: lambda: {"y": torch.zeros(3)}, absolute_limit=1e-6)
    broken = Case("masked_conv2d", "c", "c", "forward", "cpu", {}, [wrong], lambda _: {"y": torch.ones(3).double()})
    monkeypatch.setattr(suite, "find_cases", lambda *_, **__: [broken])
    assert command.bench(seconds=0.01, output=tmp_path) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chosen": ["nope"]}, "op must be one of"),
        ({"chosen": ["fusion"]}, "give --full"),
        ({"threads": 0}, "threads must be"),
        ({"seconds": 0.0}, "seconds"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.run(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu_figure_without_a_gpu() -> None:
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        suite.run(device="cuda")


PROBE = """
import json, torch
from vidgen.benchmarks import memory
from vidgen.benchmarks.harness import Case, Contender
torch.set_num_threads(1)
MIB = 2**20

def build(held):
    packed = torch.ones(24 * MIB, dtype=torch.uint8)
    def run():
        workspace = torch.ones(40 * MIB, dtype=torch.uint8)
        return {"y": packed[:1] + workspace[:1]}
    return run

inputs = lambda: torch.ones(128 * MIB, dtype=torch.uint8)
one = Contender("c", "float32", inputs, build)
case = Case("op", "n", "n", "forward", "cpu", {}, [one], lambda _: {})
print(memory._in_child(case, one, 1))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak RSS is read from Linux's /proc")
def test_memory_counts_packed_weights_and_workspace_but_not_inputs() -> None:
    shown = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
    assert 64 <= json.loads(shown)["added_mib"] <= 72


def test_the_machines_load_is_seen() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("load is read from Linux's /proc")
    burn = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", burn])
    with machine.Others() as others:
        other.wait()
    assert others.share is not None
    # one of the cores was taken for most of the time
    assert others.share > 0.5 / (machine.os.cpu_count() or 1)


def test_a_gpu_meets_torch_compile_in_both_passes_of_the_likelihood() -> None:
    cases = suite.find_cases(["discretized_logistic_mixture"], device="cuda", full=False)
    assert {case.kind for case in cases} == {"forward", "forward+backward"}
    assert all(any(one.compiled for one in case.contenders) for case in cases)
