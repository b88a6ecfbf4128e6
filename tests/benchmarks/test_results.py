"""If these failed, a published figure could differ from the samples behind it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vidgen.benchmarks import published, results

REPOSITORY = Path(__file__).parents[2]


def entry(name: str, samples: list[float], **more: Any) -> dict[str, Any]:
    base = {"name": name, "ours": False, "against": None, "dtype": "float32", "flops": 2e9, "bytes_moved": 1e6}
    return base | {"failure": None, "errors": {"y": {"relative_rms": 1e-7, "max": 1e-6}}, "samples_ms": samples} | more


def stored(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {"op": "op", "case": "c1", "title": "shape, forward", "kind": "forward", "contenders": list(entries)}
    machine = {"device": "cpu", "cpu": "X", "threads": 2, "isa": "none", "torch": "0", "system": "Y"}
    return {
        "format": 1,
        "set": "quick",
        "created": "2000-01-01T00:00:00",
        "machine": machine,
        "peaks": {"float32": 100.0, "gb_per_s": 10.0},
        "rows": [row | more],
    }


OURS = {"ours": True, "against": "eager"}


def test_ratios_are_of_medians_of_the_raw_samples() -> None:
    content = stored(
        entry("eager", [100.0, 900.0, 110.0]),
        entry("other", [80.0, 80.0, 90.0]),
        entry("half precision", [10.0], dtype="bfloat16"),
        entry("ours", [40.0, 55.0, 1000.0], **OURS),
    )
    one = results.figures(content["rows"][0], content["peaks"])[3]
    assert one.ratio == pytest.approx(11.0 / 5.5)
    # the fastest baseline of the same dtype; half precision is another question
    assert one.ratio_to_best == pytest.approx(8.0 / 5.5)
    assert (one.low_ms, one.median_ms, one.high_ms) == (47.5, 55.0, 527.5)
    # 2 GFLOP at 100 GFLOP/s need 20 ms, 1 MB at 10 GB/s 0.1 ms
    assert one.roofline == pytest.approx(20 / 55)


def test_no_ratio_to_or_from_a_failure() -> None:
    failed = {"failure": "wrong answer"}
    content = stored(entry("eager", [1.0], **failed), entry("ours", [1.0], **OURS))
    assert results.figures(content["rows"][0], {})[1].ratio is None
    content = stored(entry("eager", [1.0]), entry("ours", [1.0], **OURS, **failed))
    one = results.figures(content["rows"][0], {})[1]
    assert (one.ratio, one.ratio_to_best, one.median_ms, one.roofline) == (None, None, None, None)
    assert results.ratio(content["rows"][0], "ours", "eager") is None
    line = next(line for line in results.markdown(content).splitlines() if line.startswith("| ours"))
    assert "FAILED: wrong answer" in line
    assert "×" not in line


def test_overhead_is_shown_where_eager_is_short() -> None:
    content = stored(entry("eager", [0.020]), entry("ours", [0.025], **OURS))
    assert "0.80× (+5.0 µs)" in results.markdown(content)
    content = stored(entry("eager", [0.2]), entry("ours", [0.25], **OURS))
    assert "µs)" not in results.markdown(content)


@pytest.mark.parametrize(
    ("ms", "text"), [(123.4, "123 ms"), (12.34, "12.3 ms"), (0.1234, "0.123 ms"), (0.01234, "12.3 µs"), (None, "–")]
)
def test_times_have_three_digits(ms: float | None, text: str) -> None:
    assert results.format_time(ms) == text


def test_a_busy_machine_is_named() -> None:
    assert results.disturbance(stored(entry("eager", [1.0]), others_busy=0.01)) is None
    content = stored(entry("eager", [1.0]), others_busy=0.4)
    assert "40%" in str(results.disturbance(content))
    assert "not to be trusted" in results.markdown(content)
    assert "not to be trusted" in published.table(content)


def test_a_ceiling_that_somebody_exceeds_is_no_ceiling() -> None:
    # 2 GFLOP in 10 ms are 200 GFLOP/s; the probe had said 100
    content = stored(entry("eager", [10.0]), entry("ours", [30.0], **OURS))
    assert [one.roofline for one in results.figures(content["rows"][0], content["peaks"])] == [None, None]
    assert "ceiling of 100 GFLOP/s in float32, but a contender computed 200" in results.markdown(content)
    assert "%" not in results.markdown(content).rpartition("|---")[2]
    honest = stored(entry("eager", [25.0]), entry("ours", [30.0], **OURS))
    assert [one.roofline for one in results.figures(honest["rows"][0], honest["peaks"])] == pytest.approx([0.8, 2 / 3])
    assert results.warnings(honest) == []


def test_file_round_trip_keeps_samples_and_stays_valid_json(tmp_path: Path) -> None:
    content = stored(entry("eager", [1.23456789, math.nan]))
    (path,) = results.save(tmp_path / "new", content)
    assert path == tmp_path / "new" / "op-cpu.json"
    again = results.load(path)
    assert again["rows"][0]["contenders"][0]["samples_ms"] == [1.23457, None]
    assert "NaN" not in path.read_text()
    # a list of samples takes one line, so that a diff of two files can be read
    assert [line for line in path.read_text().splitlines() if "samples_ms" in line and "1.23457, null" in line]


def test_measuring_one_op_leaves_the_samples_of_others_as_they_are(tmp_path: Path) -> None:
    both = stored(entry("eager", [1.0]))
    both["rows"] += [stored(entry("eager", [2.0]), op="other")["rows"][0]]
    results.save(tmp_path, both)
    assert [row["op"] for row in results.load(tmp_path / "op-cpu.json")["rows"]] == ["op"]
    untouched = (tmp_path / "op-cpu.json").read_bytes()
    later = stored(entry("eager", [3.0]), op="other") | {"created": "2001-01-01T00:00:00", "peaks": {"float32": 7.0}}
    results.save(tmp_path, later)
    assert (tmp_path / "op-cpu.json").read_bytes() == untouched
    assert results.load(tmp_path / "other-cpu.json") == later
    # what one op's table says of the machine and the day is that of its own samples
    assert "2000-01-01" in published.table(results.load(tmp_path / "op-cpu.json"))
    assert "2001-01-01" in published.table(results.load(tmp_path / "other-cpu.json"))


def test_a_file_is_named_by_its_op_and_device() -> None:
    assert results.file_name("op", {"device": "cpu", "cpu": "X"}) == "op-cpu.json"
    assert results.file_name("op", {"device": "cuda", "gpu": "A Card, 80GB"}) == "op-cuda-a-card-80gb.json"


def test_peers_are_named_with_their_versions_where_they_were_measured() -> None:
    content = stored(entry("eager", [1.0]), entry("Peer", [0.5], peer="peerlib"), entry("ours", [0.25], **OURS))
    content["machine"]["peers"] = {"peerlib": "1.2", "bystander": "3.4"}
    line = results.machine_line(content)
    assert "peerlib 1.2" in line
    assert "bystander" not in line
    one = results.figures(content["rows"][0], {})[2]
    assert (one.ratio, one.ratio_to_best) == (4.0, 2.0)


def test_a_peer_that_is_missing_is_a_sentence_and_no_row() -> None:
    content = stored(entry("eager", [1.0]), left_out={"Peer": "peerlib is not installed: pip install it"})
    content["rows"] *= 2
    assert results.notes(content) == ["Peer was not measured: peerlib is not installed: pip install it."]
    for text in (results.markdown(content), published.table(content)):
        assert text.count("Peer was not measured") == 1
        assert "| Peer" not in text


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 1"):
        results.load(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    content = stored(entry("eager", [26.1]), entry("ours", [10.0], **OURS), op="x")
    assert [path.name for path in results.save(tmp_path / "results", content)] == ["x-cpu.json"]
    return tmp_path


SOURCE = "<!-- results/x-cpu.json | c1 | ours | eager -->"


def test_a_published_ratio_must_be_the_samples(folder: Path) -> None:
    assert published.problems(f"It is **2.6×**{SOURCE} faster.", folder) == []
    assert published.problems(f"It is 2.61× {SOURCE} faster, on 3×3 and 7 × 7 kernels.", folder) == []
    (problem,) = published.problems(f"It is 2.7×{SOURCE} faster.", folder)
    assert "the samples say 2.61×" in problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is 2.6× faster.", "no source"),
        ("2.6×<!-- results/x-cpu.json | c1 | ours -->", "four fields"),
        ("2.6×<!-- results/y.json | c1 | ours | eager -->", "there is no results/y.json"),
        ("2.6×<!-- results/x-cpu.json | c2 | ours | eager -->", "no case"),
        ("2.6×<!-- results/x-cpu.json | c1 | theirs | eager -->", "no passing samples"),
    ],
)
def test_a_published_ratio_needs_a_source(folder: Path, text: str, reason: str) -> None:
    (problem,) = published.problems(text, folder)
    assert reason in problem


def test_tables_are_written_from_the_samples_and_tampering_is_found(folder: Path) -> None:
    document = folder / "README.md"
    document.write_text("Before\n<!-- benchmark: results/x-cpu.json -->\nold\n<!-- /benchmark -->\nafter\n")
    published.update(document, folder)
    text = document.read_text()
    assert "2.61×" in text
    assert text.startswith("Before\n")
    assert text.endswith("\nafter\n")
    assert published.problems(text, folder) == []
    (problem,) = published.problems(text.replace("2.61×", "3.61×"), folder)
    assert "differs from its samples" in problem


def test_a_score_stands_beside_the_time_in_a_published_table() -> None:
    """A flow method is a trade of time for accuracy: one without the other says nothing."""
    scores = {"scores": {"EPE px": 0.12345, "> 3 px %": 7.0}}
    content = stored(entry("eager", [20.0], **scores), entry("ours", [10.0], **OURS, **scores))
    text = published.table(content)
    assert "| forward, EPE | eager | ours |" in text
    assert "| 20.0 ms, 0.123 px | 10.0 ms (**2.00×**), 0.123 px |" in text


def test_a_table_shows_the_columns_that_are_asked_for(folder: Path) -> None:
    content = results.load(folder / "results" / "x-cpu.json")
    assert "| forward | ours | eager |" in published.table(content, ["ours", "eager"])
    with pytest.raises(ValueError, match=r"got \['theirs'\]"):
        published.table(content, ["ours", "theirs"])
    document = folder / "README.md"
    document.write_text("<!-- benchmark: results/x-cpu.json | ours -->\n<!-- /benchmark -->\n")
    published.update(document, folder)
    text = document.read_text()
    assert "| forward | ours |\n" in text
    assert published.problems(text, folder) == []
    assert published.problems(text.replace("2.61×", "3.61×"), folder)


def test_a_column_that_is_asked_for_has_a_dash_where_nobody_was_measured() -> None:
    content = stored(entry("eager", [20.0]), entry("ours", [10.0], **OURS))
    content["rows"].append(content["rows"][0] | {"title": "other, forward", "contenders": [entry("eager", [20.0])]})
    assert "| other | – | 20.0 ms |" in published.table(content, ["ours", "eager"])
    assert "| forward | eager |\n" in published.table(content)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_what_this_repository_publishes(name: str) -> None:
    document = REPOSITORY / name
    assert published.problems(document.read_text(encoding="utf-8"), REPOSITORY / "benchmarks") == []


def test_committed_results_can_be_read_and_hold_raw_samples() -> None:
    for path in (REPOSITORY / "benchmarks" / "results").glob("*.json"):
        content = results.load(path)
        assert {"cpu", "torch", "vidgen", "threads"} <= content["machine"].keys(), path
        for row in content["rows"]:
            for one in row["contenders"]:
                assert one["failure"] or len(one["samples_ms"]) >= 5, (path, row["case"], one["name"])
