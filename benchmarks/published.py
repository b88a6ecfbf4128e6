"""Keeps published speed-ups tied to committed samples.

A document publishes figures in two ways, and nothing else may say "2.6×":

- a table between `<!-- benchmark: results/masked_conv2d-cpu.json -->` and `<!-- /benchmark -->`, written by
  `python -m vidgen.benchmarks.published README.md` and equal to `table` of that file; where there are many contenders,
  `<!-- benchmark: results/masked_conv2d-cpu.json | CONTENDER | CONTENDER -->` names those that get a column, in this
  order;
- a ratio in a sentence, followed by its source:
  `2.61×<!-- results/masked_conv2d-cpu.json | CASE | CONTENDER | BASELINE -->`.

A multiple that is no speed-up is written in words ("16-fold"), kernel sizes as "3×3".
File names are relative to the benchmarks/ folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidgen.files import write_atomically

from . import results

_BLOCK = re.compile(
    r"(<!-- benchmark: (?P<file>\S+)(?P<columns>(?: \| [^|>\n]+)*) -->\n)(?P<table>.*?)(<!-- /benchmark -->)",
    re.DOTALL,
)
_RATIO = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s?×(?!\s?\d)(?P<source>[*_\s]{0,4}<!-- (?P<fields>[^>]*?) -->)?")


def table(stored: dict[str, Any], columns: Sequence[str] = ()) -> str:
    """The compact table of a results file: a line per case, each baseline's time, and ours with its ratio.

    Where answers are scored, the first score, such as the endpoint error, stands beside the time.

    Args:
        stored: the content of a results file.
        columns: the contenders that are shown, in this order, a dash where one was not measured; if none is named, all
            that were measured in every case of a kind.

    Raises:
        ValueError: nobody of that name was measured.
    """
    lines = [line for warning in results.warnings(stored) for line in (f"**{warning}**", "")]
    lines += [line for note in results.notes(stored) for line in (note, "")]
    kinds = list(dict.fromkeys(row["kind"] for row in stored["rows"]))
    unseen = set(columns)
    for kind in kinds:
        rows = [row for row in stored["rows"] if row["kind"] == kind]
        if columns:
            names = [name for name in columns if any(_has(row, name) for row in rows)]
        else:  # so that no line is half empty
            names = [e["name"] for e in rows[0]["contenders"] if all(_has(row, e["name"]) for row in rows)]
        unseen -= set(names)
        figures = [{one.name: one for one in results.figures(row, stored["peaks"])} for row in rows]
        judged = {one.score[0] for by_name in figures for one in by_name.values() if one.score}
        lines.append(f"| {', '.join([kind, *sorted(judged)])} | " + " | ".join(names) + " |")
        lines.append("|---" * (len(names) + 1) + "|")
        for row, by_name in zip(rows, figures, strict=True):
            title = row["title"].removesuffix(f", {kind}")
            lines.append(f"| {title} | " + " | ".join(_cell(by_name.get(name)) for name in names) + " |")
        lines.append("")
    if unseen:
        raise ValueError(f"columns must be contenders that were measured, got {sorted(unseen)}")
    return "\n".join([results.machine_line(stored), "", *lines])


def _has(row: dict[str, Any], name: str) -> bool:
    return any(entry["name"] == name for entry in row["contenders"])


def _cell(one: results.Figures | None) -> str:
    if one is None:
        return "–"
    if one.failure:
        return "FAILED"
    cell = results.format_time(one.median_ms)
    if one.ours and one.ratio is not None:
        cell += f" (**{results.format_ratio(one.ratio, one.overhead_us)}**)"
    return cell + (f", {one.score[1]:.3g} {one.score[2]}" if one.score else "")


def _block_table(block: re.Match[str], folder: Path) -> str:
    columns = [name.strip() for name in block["columns"].split("|")[1:]]
    return table(results.load(folder / block["file"]), columns)


def problems(text: str, folder: Path) -> list[str]:
    """One sentence per published figure in `text` that the committed samples do not bear out."""
    found = []
    for block in _BLOCK.finditer(text):
        expected = _block_table(block, folder)
        if block["table"].strip() != expected.strip():
            found.append(f"the table of {block['file']} differs from its samples; write it again")
    prose = _BLOCK.sub("", text)
    for match in _RATIO.finditer(prose):
        if reason := _ratio_problem(match, folder):
            line = prose[: match.start()].count("\n") + 1
            found.append(f"{match['value']}× (line {line} without the tables): {reason}")
    return found


def _ratio_problem(match: re.Match[str], folder: Path) -> str | None:
    if match["fields"] is None:
        return "no source; follow it by <!-- FILE | CASE | CONTENDER | BASELINE -->"
    fields = [field.strip() for field in match["fields"].split("|")]
    if len(fields) != 4:
        return f"its source must have four fields, got {len(fields)}"
    file, case, contender, baseline = fields
    path = folder / file
    if not path.is_file():
        return f"there is no {file} in {folder.name}/"
    row = next((row for row in results.load(path)["rows"] if row["case"] == case), None)
    if row is None:
        return f"{file} has no case {case!r}"
    value = results.ratio(row, contender, baseline)
    if value is None:
        return f"{contender!r} against {baseline!r} has no passing samples in {case!r}"
    decimals = len(match["value"].partition(".")[2])
    if f"{value:.{decimals}f}" != match["value"]:
        return f"the samples say {value:.{max(decimals, 2)}f}×"
    return None


def update(document: Path, folder: Path) -> None:
    """Writes every table of a document again from its results file."""
    text = document.read_text(encoding="utf-8")

    def written(block: re.Match[str]) -> str:
        return f"{block[1]}{_block_table(block, folder).strip()}\n<!-- /benchmark -->"

    write_atomically(document, _BLOCK.sub(written, text).encode())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        update(Path(argument), Path(__file__).parent)
