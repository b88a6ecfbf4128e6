"""The results file: raw samples on disk, every other figure recomputed from them.

A file is {"format", "set", "created", "machine", "peaks", "rows"}; a row is what `harness.measure` returned.
Nothing derived is stored, so no table can disagree with its samples.

A file on disk holds the rows of one op, all of one run: measuring an op again replaces its own samples and no others,
and every op stands beside the machine, the versions and the day that its samples are of.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidgen.files import write_atomically

from .harness import quartiles
from .machine import floor_ms

FORMAT = 1
_SHORT_MS = 0.05  # below this a baseline is all overhead, and so the added microseconds say more than a ratio


QUIET = 0.05  # share of the cores that others may use before a figure is doubted


@dataclass(frozen=True)
class Figures:
    """What a table prints about one contender. None: does not apply, or was not measured."""

    name: str
    ours: bool
    failure: str | None
    median_ms: float | None = None
    low_ms: float | None = None  # first quartile
    high_ms: float | None = None  # third quartile
    ratio: float | None = None  # time of the like-for-like baseline over ours
    overhead_us: float | None = None  # ours less that baseline, where the baseline is short
    ratio_to_best: float | None = (
        None  # time of the fastest of the same dtype that is not ours, over ours; unscored ones
    )
    error: float | None = None  # largest relative rms error among the outputs, against float64
    scores: str = ""  # what the field judges such an answer by, in words
    score: tuple[str, float, str] | None = None  # the first of them: name, value and unit
    added_mib: float | None = None
    roofline: float | None = None  # measured floor over time, 1.0 = at the machine's ceiling


def median_ms(row: dict[str, Any], name: str) -> float | None:
    """Median of a contender's samples; None where it failed its check or does not exist."""
    for entry in row["contenders"]:
        if entry["name"] == name:
            return quartiles(entry["samples_ms"])[1] if not entry["failure"] else None
    return None


def ratio(row: dict[str, Any], name: str, baseline: str) -> float | None:
    """How many times faster `name` is than `baseline`; None unless both passed their checks."""
    own, other = median_ms(row, name), median_ms(row, baseline)
    return None if own is None or other is None else other / own


def disproved_peaks(rows: Iterable[dict[str, Any]], peaks: dict[str, float]) -> dict[str, float]:
    """The dtypes whose measured ceiling some contender has computed faster than, with that contender's GFLOP/s.

    Such a ceiling was measured wrongly, or while the machine was disturbed: no share of it means anything.
    """
    fastest: dict[str, float] = {}
    for row in rows:
        for entry in row["contenders"]:
            if not entry["failure"]:
                rate = entry["flops"] / quartiles(entry["samples_ms"])[1] / 1e6
                fastest[entry["dtype"]] = max(rate, fastest.get(entry["dtype"], 0.0))
    return {dtype: rate for dtype, rate in fastest.items() if peaks.get(dtype) and rate > 1.02 * peaks[dtype]}


def figures(row: dict[str, Any], peaks: dict[str, float]) -> list[Figures]:
    """One `Figures` per contender of a row. No share of a ceiling that this row disproves is given."""
    wrong = disproved_peaks([row], peaks)
    peaks = {name: value for name, value in peaks.items() if name not in wrong}
    result = []
    for entry in row["contenders"]:
        rms = [e["relative_rms"] for e in entry.get("errors", {}).values()]
        error = None if not rms or None in rms else max(rms)
        if entry["failure"]:
            result.append(Figures(entry["name"], entry["ours"], entry["failure"], error=error))
            continue
        low, median, high = quartiles(entry["samples_ms"])
        to_like = to_best = overhead = None
        if entry["ours"]:
            rivals = [
                other
                for e in row["contenders"]
                if not e["ours"] and e["dtype"] == entry["dtype"] and (other := median_ms(row, e["name"])) is not None
            ]
            # answers that are scored differ, and a time says nothing about another answer
            to_best = min(rivals) / median if rivals and not entry.get("scores") else None
            like = median_ms(row, entry["against"]) if entry["against"] else None
            if like is not None:
                to_like = like / median
                overhead = (median - like) * 1e3 if like < _SHORT_MS else None
        floor = floor_ms(entry["flops"], entry["bytes_moved"], entry["dtype"], peaks)
        result.append(
            Figures(
                name=entry["name"],
                ours=entry["ours"],
                failure=None,
                median_ms=median,
                low_ms=low,
                high_ms=high,
                ratio=to_like,
                overhead_us=overhead,
                ratio_to_best=to_best,
                error=error,
                score=_first_score(entry.get("scores") or {}),
                scores=", ".join(f"{name} {value:.3g}" for name, value in entry.get("scores", {}).items()),
                added_mib=(entry.get("memory") or {}).get("added_mib"),
                roofline=None if floor is None else floor / median,
            )
        )
    return result


def _first_score(scores: dict[str, float]) -> tuple[str, float, str] | None:
    """ "EPE px" is a name and, its last word, a unit."""
    for named, value in scores.items():
        name, _, unit = named.rpartition(" ")
        return name, value, unit
    return None


def _unit(ms: float) -> tuple[float, str]:
    """What a millisecond is in the unit that suits a time, and that unit."""
    return (1e3, "µs") if ms < 0.1 else (1.0, "ms") if ms < 1e4 else (1e-3, "s")


def format_time(ms: float | None) -> str:
    """Three significant digits, in µs below 0.1 ms and in s from 10 s."""
    if ms is None:
        return "–"
    scale, unit = _unit(ms)
    digits = max(0, 2 - math.floor(math.log10(ms * scale))) if ms > 0 else 0
    return f"{ms * scale:.{digits}f} {unit}"


def format_spread(one: Figures) -> str:
    """The inter-quartile range, in the unit of the median."""
    if one.median_ms is None or one.low_ms is None or one.high_ms is None:
        return "–"
    scale, _ = _unit(one.median_ms)
    digits = max(0, 2 - math.floor(math.log10(one.median_ms * scale)))
    return f"{one.low_ms * scale:.{digits}f}–{one.high_ms * scale:.{digits}f}"


def format_ratio(value: float | None, overhead_us: float | None = None) -> str:
    """A ratio as "2.61×", and the difference in µs beside it where that says more."""
    if value is None:
        return "–"
    text = f"{value:.2f}×"
    return text if overhead_us is None else f"{text} ({overhead_us:+.1f} µs)".replace("(-", "(−")


def cells(one: Figures) -> list[str]:
    """A contender's cells in the order of `COLUMNS`; a failure stands in place of every number."""
    if one.failure:
        return [one.name, f"FAILED: {one.failure}", *[""] * (len(COLUMNS) - 2)]
    return [
        one.name,
        format_time(one.median_ms),
        format_spread(one),
        format_ratio(one.ratio, one.overhead_us),
        format_ratio(one.ratio_to_best),
        one.scores or ("–" if one.error is None else f"{one.error:.1e}"),
        "–" if one.added_mib is None else f"{one.added_mib:.1f}",
        "–" if one.roofline is None else f"{one.roofline:.0%}",
    ]


COLUMNS = (
    "contender",
    "median",
    "quartiles",
    "vs eager, same layout",
    "vs fastest other",
    "error",
    "memory, MiB",
    "of roofline",
)


def markdown(results: dict[str, Any]) -> str:
    """Every row of a results file as Markdown, one table per case."""
    lines = [machine_line(results), ""]
    for warning in warnings(results):
        lines += [f"**{warning}**", ""]
    for note in notes(results):
        lines += [note, ""]
    peaks = trusted_peaks(results)
    for row in results["rows"]:
        lines += [f"**{row['op']}, {row['title']}**", "", "| " + " | ".join(COLUMNS) + " |"]
        lines.append("|---" + "|--:" * (len(COLUMNS) - 1) + "|")
        lines += ["| " + " | ".join(cells(one)) + " |" for one in figures(row, peaks)]
        lines.append("")
    return "\n".join(lines)


def plain(row: dict[str, Any], peaks: dict[str, float]) -> str:
    """One row as an aligned table for a terminal."""
    table = [list(COLUMNS), *map(cells, figures(row, peaks))]
    # a failure's sentence may run on to the right; it does not widen its column
    counted = [line for line in table if not line[1].startswith("FAILED")]
    widths = [max(len(line[i]) for line in counted) for i in range(len(COLUMNS))]
    widths[0] = max(len(line[0]) for line in table)
    lines = []
    for first, *others in table:
        padded = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        lines.append("  " + "  ".join(padded).rstrip())
    return "\n".join(lines)


def machine_line(results: dict[str, Any]) -> str:
    """One sentence about what the figures were measured on."""
    machine = results["machine"]
    where = f"{machine['gpu']}, CUDA {machine['cuda']}" if machine["device"] == "cuda" else machine["cpu"]
    threads = "" if machine["device"] == "cuda" else f", {_count(machine['threads'], 'thread')}, {machine['isa']}"
    peers = dict.fromkeys(e.get("peer") for row in results["rows"] for e in row["contenders"])
    versions = [f"torch {machine['torch']}", *(f"{peer} {machine['peers'][peer]}" for peer in peers if peer)]
    return f"Measured on {where}{threads}; {', '.join(versions)}, {machine['system']}, {results['created'][:10]}."


def notes(results: dict[str, Any]) -> list[str]:
    """One sentence per contender that is in no table because this machine lacks its library."""
    reasons = {name: why for row in results["rows"] for name, why in row.get("left_out", {}).items()}
    return [f"{name} was not measured: {why}." for name, why in reasons.items()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def load(path: Path) -> dict[str, Any]:
    """Reads a results file; ValueError where it is not one."""
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a vidgen results file of format {FORMAT}")
    return results


def file_name(op: str, machine: dict[str, Any]) -> str:
    """Where the samples of an op stand in a folder of results: `<op>-cpu.json` or `<op>-cuda-<card>.json`."""
    card = "-" + re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-") if machine["device"] == "cuda" else ""
    return f"{op}-{machine['device']}{card}.json"


def save(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes one file per op and returns their paths; a reader sees an old file or a new one, never a part."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for op in dict.fromkeys(row["op"] for row in results["rows"]):
        path = folder / file_name(op, results["machine"])
        write_atomically(path, dumps(results | {"rows": [r for r in results["rows"] if r["op"] == op]}).encode())
        written.append(path)
    return written


def dumps(results: dict[str, Any]) -> str:
    """Valid JSON whose lists of numbers stand on one line each."""
    text = json.dumps(_rounded(results), indent=1, allow_nan=False)
    return re.sub(r"\[(?:[-\d.,e+\s]|null)*\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"


def _rounded(value: Any) -> Any:
    """Samples to six significant digits (a nanosecond is noise), NaN as null, so that files stay small and valid."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def trusted_peaks(results: dict[str, Any]) -> dict[str, float]:
    """The measured ceilings without those that some contender of the file has computed faster than."""
    wrong = disproved_peaks(results["rows"], results["peaks"])
    return {name: value for name, value in results["peaks"].items() if name not in wrong}


def warnings(results: dict[str, Any]) -> list[str]:
    """What a reader must know before he trusts the figures; nothing on a quiet, well-measured machine."""
    found = [sentence] if (sentence := disturbance(results)) else []
    for dtype, rate in disproved_peaks(results["rows"], results["peaks"]).items():
        found.append(
            f"The probe measured a ceiling of {results['peaks'][dtype]:.0f} GFLOP/s in {dtype}, but a contender "
            f"computed {rate:.0f}: that ceiling is wrong, and no share of it is shown."
        )
    return found


def disturbance(results: dict[str, Any]) -> str | None:
    """A warning if other processes used the machine while it measured, else None."""
    busy = [row for row in results["rows"] if (row.get("others_busy") or 0.0) > QUIET]
    if not busy:
        return None
    worst = max(row["others_busy"] for row in busy)
    return (
        f"Other programs used up to {worst:.0%} of this machine's cores in {_count(len(busy), 'case')} of "
        f"{len(results['rows'])}: those figures are not to be trusted."
    )


def failures(results: dict[str, Any]) -> Iterable[str]:
    """One sentence per contender that failed."""
    for row in results["rows"]:
        for entry in row["contenders"]:
            if entry["failure"]:
                yield f"{row['op']}, {row['title']}: {entry['name']}: {entry['failure']}"
