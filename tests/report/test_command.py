"""If these failed, `vidgen report` could leave half a page, hide a failure, or do minutes of work twice."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.report import synthetic
from vidgen.report import command


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the slow steps by made-up results and returns the list of what has run."""
    ran: list[str] = []

    def benchmarks(**_: Any) -> dict[str, Any]:
        ran.append("benchmarks")
        return synthetic.bench()

    for name, word, result in (
        ("pixelcnn_digits", "demo", synthetic.demo),
        ("moving_digits", "motion", synthetic.motion),
        ("class_digits", "classes", synthetic.classes),
        ("two_stream", "streams", synthetic.streams),
    ):

        def run(directory: Path, *, seed: int, word: str = word, result: Any = result) -> dict[str, Any]:
            ran.append(f"{word} {seed}")
            return result()

        stand_in = types.ModuleType(f"vidgen.report.{name}")
        stand_in.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(command.suite, "run", benchmarks)
    return ran


def test_report_writes_page_table_and_samples(tmp_path: Path, steps: list[str]) -> None:
    bench = synthetic.bench()
    assert command.report(tmp_path / "r") == 1  # one made-up contender has a wrong answer
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {"index.html", "results.json", "results.md", ".cache"}
    stored = json.loads((tmp_path / "r" / "results.json").read_text())
    first = bench["rows"][0]["contenders"][0]["samples_ms"]
    assert stored["benchmarks"]["rows"][0]["contenders"][0]["samples_ms"] == pytest.approx(first, rel=1e-5)
    assert stored["demonstration"]["samples"] == synthetic.demo()["samples"].tolist()
    assert stored["class_digits"]["halves"] == synthetic.classes()["halves"]
    assert stored["two_stream"]["strip"] == synthetic.streams()["strip"]
    assert stored["moving_digits"]["clips"] == synthetic.motion()["clips"].tolist()
    assert "| vidgen NHWC |" in (tmp_path / "r" / "results.md").read_text()


def test_a_finished_demonstration_is_remembered_for_the_same_settings(tmp_path: Path, steps: list[str]) -> None:
    command.report(tmp_path)
    before = (tmp_path / "index.html").read_text()
    command.report(tmp_path)
    assert steps == ["demo 0", "classes 0", "motion 0", "streams 0", "benchmarks", "benchmarks"]
    # what was read back draws the same page as what was computed
    assert (tmp_path / "index.html").read_text() == before
    command.report(tmp_path, seed=1)
    command.report(tmp_path, seed=1, fresh=True)
    for word in ("demo", "classes", "motion", "streams"):
        assert [step for step in steps if step.startswith(word)] == [f"{word} 0", f"{word} 1", f"{word} 1"]


def test_ctrl_c_leaves_the_page_as_it_was(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command.report(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def interrupted(**_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.suite, "run", interrupted)
    assert command.report(tmp_path, seed=5) == 130
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert "goes on with what is missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pixelcnn_digits", "moving_digits", "two_stream"])
def test_a_failed_demonstration_is_on_the_page_and_in_the_exit_status_and_not_remembered(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module: Any = sys.modules[f"vidgen.report.{name}"]
    working = module.run

    def broken(directory: Path, *, seed: int) -> dict[str, Any]:
        raise RuntimeError("loss is not finite")

    module.run = broken
    clean = synthetic.bench()
    clean["rows"] = clean["rows"][:1]
    monkeypatch.setattr(command.suite, "run", lambda **_: clean)
    assert command.report(tmp_path) == 1
    assert "The demo failed: RuntimeError: loss is not finite" in (tmp_path / "index.html").read_text()
    module.run = working
    assert command.report(tmp_path) == 0
    assert "The demo failed" not in (tmp_path / "index.html").read_text()


def test_nothing_is_written_if_the_page_cannot_be_made(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(*_: Any) -> str:
        raise ValueError("no template")

    monkeypatch.setattr(command.page, "markdown", impossible)
    with pytest.raises(ValueError, match="no template"):
        command.report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        command.report(tmp_path, threads=0)


@pytest.mark.parametrize("name", ["report", "bench"])
def test_help_tells_what_is_written_and_how_long_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from vidgen import cli

    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert "minutes" in shown
    assert "--fresh" in shown
    assert "Ctrl-C" in shown


@pytest.mark.parametrize("arguments", [["layers", "c3d"], ["--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "vidgen.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
