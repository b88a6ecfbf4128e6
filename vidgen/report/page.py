"""Turns measured results into the page. Everything on it comes from its arguments; it measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from vidgen.benchmarks import results as bench_results
from vidgen.benchmarks.results import Figures
from vidgen.report import figures

#: what the demo could not do, in the place of its results
Failure = str

#: the kind of the cases that draw images
DRAWING = "drawing"

# frames of a film strip; so many of 32 pixels fit a phone, and twice as large half of the page
_STRIP = 7


def render(
    bench: Mapping[str, Any],
    demo: Mapping[str, Any] | Failure,
    motion: Mapping[str, Any] | Failure,
    classes: Mapping[str, Any] | Failure,
    streams: Mapping[str, Any] | Failure,
    *,
    gpu: Sequence[Mapping[str, Any]] = (),
    version: str,
    banner: str | None = None,
) -> str:
    """The whole page as one string: styles, pictures and tables inlined, no script, nothing loaded from anywhere.

    Args:
        bench: a results file's content (`vidgen.benchmarks.results`).
        demo: what `vidgen.report.pixelcnn_digits.run` returned, or the sentence that says why there is nothing.
        motion: what `vidgen.report.moving_digits.run` returned, or such a sentence.
        classes: what `vidgen.report.class_digits.run` returned, or such a sentence.
        streams: what `vidgen.report.two_stream.run` returned, or such a sentence.
        gpu: results files measured on GPUs. Without any the page says so and nothing else about GPUs.
        version: vidgen's.
        banner: a line across the top, for pages whose figures are not measurements.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"time": bench_results.format_time, "ratio": bench_results.format_ratio}
    template = environment.from_string(_asset("page.html.j2"))
    return template.render(
        style=_asset("page.css"),
        version=version,
        banner=banner,
        machine=machine_rows(bench),
        measured=bench_results.machine_line(dict(bench)),
        warnings=bench_results.warnings(dict(bench)),
        notes=bench_results.notes(dict(bench)),
        headline=headline(bench),
        disturbed=bench_results.disturbance(dict(bench)) is not None,
        speed=speed(bench),
        drawing=drawing(bench),
        demo=None if isinstance(demo, str) else demo_view(demo),
        demo_failure=demo if isinstance(demo, str) else None,
        motion=None if isinstance(motion, str) else motion_view(motion),
        motion_failure=motion if isinstance(motion, str) else None,
        classes=None if isinstance(classes, str) else classes_view(classes, demo),
        classes_failure=classes if isinstance(classes, str) else None,
        streams=None if isinstance(streams, str) else streams_view(streams),
        streams_failure=streams if isinstance(streams, str) else None,
        columns=bench_results.COLUMNS,
        gpu=[{"measured": bench_results.machine_line(dict(g)), "cases": speed(g)["cases"]} for g in gpu],
        bench=bench,
    )


def _asset(name: str) -> str:
    return resources.files("vidgen.report").joinpath(name).read_text(encoding="utf-8")


def speed(bench: Mapping[str, Any]) -> dict[str, Any]:
    """Every case with its table, and for each op the bar charts of the forward and of training."""
    peaks = bench_results.trusted_peaks(dict(bench))
    cases = []
    for row in bench["rows"]:
        lines = bench_results.figures(row, peaks)
        cases.append(
            {
                "title": row["title"],
                "op": row["op"],
                "kind": row["kind"],
                "summary": _summary(lines),
                "lines": [{"figures": one, "cells": bench_results.cells(one)} for one in lines],
            }
        )
    charts = []
    captions = {"forward": "forward pass", "forward+backward": "forward and backward pass"}
    bars: dict[str, list[tuple[str, float | None, str, bool]]] = {}
    for row in sorted(bench["rows"], key=lambda row: (row["op"], row["kind"])):
        if row["kind"] == DRAWING:
            continue
        bars.setdefault(f"{row['op']}, {captions[row['kind']]}", []).extend(_bars(row, peaks))
    longest = max((value for some in bars.values() for _, value, _, _ in some if value is not None), default=1.0)
    for caption, some in bars.items():
        if some:
            charts.append({"caption": caption, "svg": figures.ratio_bars(some, longest)})
    return {"cases": cases, "charts": charts}


def drawing(bench: Mapping[str, Any]) -> list[dict[str, str]]:
    """For each network and batch a chart of ways to draw: full passes at their fastest, cached eager, cached C++."""
    charts = []
    for row in bench["rows"]:
        if row["kind"] != DRAWING:
            continue
        lines = bench_results.figures(row, bench["peaks"])
        passes = [(one.median_ms, one) for one in lines if not one.ours and one.median_ms is not None]
        naive = min(passes, key=lambda pair: pair[0], default=(None, None))[1]
        bars: list[tuple[str, float | None, str, bool]] = []
        if naive is not None:
            bars.append((f"a pass for each pixel ({naive.name})", naive.median_ms, _time(naive), False))
        for name, caption in (("vidgen, eager", "cached, in PyTorch"), ("vidgen, cpu", "cached, in C++")):
            one = next((one for one in lines if one.name == name), None)
            if one is not None:
                gain = f", {one.ratio_to_best:.0f}×" if one.ratio_to_best and not one.failure else ""
                bars.append((caption, one.median_ms, _time(one) + gain, not one.failure))
        charts.append({"caption": row["title"].removesuffix(f", {DRAWING}"), "svg": figures.time_bars(bars)})
    return charts


def _time(one: Figures) -> str:
    return "FAILED" if one.failure else bench_results.format_time(one.median_ms)


def _first_ours(lines: Sequence[Figures]) -> Figures | None:
    return next((one for one in lines if one.ours), None)


def _summary(lines: Sequence[Figures]) -> str:
    one = _first_ours(lines)
    if one is None:
        return "–"
    if one.failure:
        return "FAILED"
    return f"{bench_results.format_time(one.median_ms)}, {bench_results.format_ratio(one.ratio, one.overhead_us)}"


def _bars(row: Mapping[str, Any], peaks: dict[str, float]) -> list[tuple[str, float | None, str, bool]]:
    one = _first_ours(bench_results.figures(dict(row), peaks))
    if one is None or all(entry["ours"] for entry in row["contenders"]):
        return []  # nothing to compare with, on purpose
    label = row["title"].removesuffix(f", {row['kind']}")
    text = "FAILED" if one.failure else bench_results.format_ratio(one.ratio, one.overhead_us)
    return [(label, one.ratio, text, (one.ratio or 0.0) >= 1.0)]


def headline(bench: Mapping[str, Any]) -> dict[str, Any]:
    """The speed in three figures: the first case, the best and the worst ratio to eager in the same layout."""
    ratios = []
    failed = 0
    for row in bench["rows"]:
        lines = bench_results.figures(row, bench["peaks"])
        failed += sum(1 for one in lines if one.failure)
        if row["kind"] == DRAWING:  # another comparison
            continue
        peers = {entry["name"] for entry in row["contenders"] if entry.get("peer")}
        with_peers = {entry["name"] for entry in row["contenders"] if entry.get("against") in peers}
        ratios += [one.ratio for one in lines if one.ours and one.ratio is not None and one.name not in with_peers]
    first_row = bench["rows"][0]
    first = _first_ours(bench_results.figures(first_row, bench["peaks"]))
    return {
        "title": first_row["title"],
        "op": first_row["op"],
        "first": None if first is None or first.ratio is None else first,
        "low": min(ratios, default=math.nan),
        "high": max(ratios, default=math.nan),
        "count": len(ratios),
        "failed": failed,
    }


def machine_rows(bench: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The machine as (name, value) pairs for people."""
    machine, peaks = bench["machine"], bench["peaks"]
    software = {"vidgen": machine["vidgen"], "torch": machine["torch"], "Python": machine["python"]}
    software |= machine.get("peers", {})
    rows = [
        ("Processor", machine["cpu"]),
        ("Threads", f"{machine['threads']} of {machine['cores']} usable cores"),
        ("Instruction set in use", machine["isa"]),
        ("System", f"{machine['system']}, {machine['architecture']}"),
        ("Software", ", ".join(f"{name} {version}" for name, version in software.items())),
    ]
    wrong = bench_results.disproved_peaks(bench["rows"], peaks)
    parts = [
        f"{peaks[key]:.0f} GFLOP/s {name}"
        for key, name in (("float32", "fp32"), ("bfloat16", "bf16"), ("tf32", "tf32"))
        if peaks.get(key) and key not in wrong
    ]
    if peaks.get("gb_per_s"):
        parts.append(f"{peaks['gb_per_s']:.1f} GB/s copying")
    rows.append(("Measured ceilings", ", ".join(parts)))
    return rows


def demo_view(demo: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's results as the template wants them."""
    bits = demo["bits_per_dim"]
    confidence = demo["confidence"]
    return {
        "drawn": figures.digit_grid(demo["samples"], 16),
        "real": figures.digit_grid(demo["real"], 8),
        "curve": figures.learning_curve(demo["curve"]),
        "bars": figures.model_bars(bits),
        "bits": bits,
        "rivals": sorted(value for name, value in bits.items() if name != "pixelcnn"),
        "classes_found": demo["classes_found"],
        "confidence": confidence,
        "relative_confidence": confidence["samples"] / confidence["real"] if confidence["real"] else math.nan,
        "seconds": demo["seconds"],
        "model": demo["model"],
        "count": len(demo["samples"]),
        "real_count": len(demo["real"]),
    }


def motion_view(motion: Mapping[str, Any]) -> dict[str, Any]:
    """The results on moving digits as the template wants them."""
    count, names = motion["test_clips"], motion["motions"]
    answers = motion["predicted"]
    clips = [
        {
            "picture": figures.animation(frames),
            "motion": names[truth],
            "c3d": names[c3d],
            "single": names[single],
            "right": c3d == truth,
            "single_right": single == truth,
        }
        for frames, truth, c3d, single in zip(
            motion["clips"], motion["motion"], answers["c3d"], answers["single-frame"], strict=True
        )
    ]
    orders = [
        {"name": name, "strip": figures.digit_grid([[frame] for frame in frames[:_STRIP]], _STRIP, levels=256)}
        for name, frames in zip(names, motion["orders"], strict=True)
    ]
    chance = (motion["chance"]["low"] / count, motion["chance"]["high"] / count)
    return {
        "accuracy": {name: right / count for name, right in motion["right"].items()},
        "right": motion["right"],
        "count": count,
        "classes": len(names),
        "frames": len(motion["orders"][0]),
        "chance": chance,
        "at_chance": chance[0] <= motion["right"]["single-frame"] / count <= chance[1],
        "curve": figures.accuracy_curves(motion["curve"], chance),
        "clips": clips,
        "orders": orders,
        "strip": _STRIP,
        "seconds": motion["seconds"],
        "model": motion["model"],
    }


def streams_view(streams: Mapping[str, Any]) -> dict[str, Any]:
    """The results of the two-stream network as the template wants them."""
    count, strip, right = streams["test_clips"], streams["strip"], streams["right"]
    rows = [
        {"name": title, "joint": right[name] / count}
        | {part: right[f"{name} {part}"] / count if f"{name} {part}" in right else None for part in ("digit", "motion")}
        for name, title in (
            ("spatial", "spatial stream alone"),
            ("temporal", "temporal stream alone"),
            ("average", "both, averaged"),
            ("svm", "both, by a linear SVM"),
        )
    ]
    chance = {name: (bounds["low"] / count, bounds["high"] / count) for name, bounds in streams["chance"].items()}
    return {
        "rows": rows,
        "share": {row: right[row] / count for row in ("spatial", "temporal", "average", "svm")},
        "count": count,
        "chance": chance,
        "curve": figures.stream_curves(streams["curve"]),
        "error": streams["flow_error"],
        "strips": [
            {"name": title, "sheet": figures.photo_strip(strip[name][:_STRIP])}
            for name, title in (("frames", "Frames"), ("exact", "Their exact flow"), ("found", "The flow found"))
        ],
        "strip": strip,
        "shown": min(_STRIP, len(strip["frames"])),
        "seconds": streams["seconds"],
        "model": streams["model"],
    }


def classes_view(classes: Mapping[str, Any], demo: Mapping[str, Any] | Failure) -> dict[str, Any]:
    """The results on digits by class as the template wants them."""
    names = {"gated-pixelcnn": "Gated PixelCNN", "pixelcnnpp": "PixelCNN++"}
    count = classes["drawings"]
    networks = [
        {
            "name": title,
            "bits": classes["bits_per_dim"][name],
            "share": classes["recognised"][name] / count,
            "recognised": classes["recognised"][name],
            "sheet": figures.digit_grid(classes["samples"][name], len(classes["samples"][name]) // 10),
            "curve": figures.learning_curve(classes["curve"][name], name),
            "train_seconds": classes["train_seconds"][name],
            "sample_seconds": classes["sample_seconds"][name],
            "parameters": classes["parameters"][name],
        }
        for name, title in names.items()
    ]
    halves = classes["halves"]
    return {
        "networks": networks,
        "count": count,
        "judge": classes["judge"],
        "plain": None if isinstance(demo, str) else demo["bits_per_dim"]["pixelcnn"],
        "real": figures.digit_grid(halves["real"], len(halves["real"])),
        "completed": figures.digit_grid(halves["completed"], len(halves["completed"])),
        "model": classes["model"],
    }


def markdown(
    bench: Mapping[str, Any],
    demo: Mapping[str, Any] | Failure,
    motion: Mapping[str, Any] | Failure,
    classes: Mapping[str, Any] | Failure,
    streams: Mapping[str, Any] | Failure,
) -> str:
    """The same results as Markdown: the demos' figures, then every table."""
    lines = ["# vidgen report", ""]
    if isinstance(demo, str):
        lines += [f"PixelCNN on 8×8 digits: FAILED: {demo}", ""]
    else:
        view = demo_view(demo)
        lines += ["| test split of the digits | bits per dimension |", "|---|--:|"]
        lines += [f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in view["bits"].items()]
        lines += [
            "",
            f"A classifier trained on real digits finds {view['classes_found']} of 10 classes in {view['count']} drawn "
            f"digits; its mean confidence is {view['confidence']['samples']:.3f}, on real held-out digits "
            f"{view['confidence']['real']:.3f}.",
            "",
        ]
    if isinstance(classes, str):
        lines += [f"digits by class: FAILED: {classes}", ""]
    else:
        told = classes_view(classes, demo)
        lines += ["| digits by class | bits per dimension | taken for the class asked for |", "|---|--:|--:|"]
        lines += [f"| {one['name']} | {one['bits']:.3f} | {100 * one['share']:.1f}% |" for one in told["networks"]]
        lines += [f"| real held-out digits | | {100 * told['judge']:.1f}% |", ""]
    if isinstance(motion, str):
        lines += [f"C3D on moving digits: FAILED: {motion}", ""]
    else:
        seen = motion_view(motion)
        low, high = (f"{100 * share:.1f}" for share in seen["chance"])
        lines += [f"| motion of {seen['count']} clips of unseen digits | told right |", "|---|--:|"]
        lines += [
            f"| {name} | {100 * seen['accuracy'][key]:.1f}% |"
            for key, name in (("c3d", "C3D"), ("single-frame", "single frames, averaged"))
        ]
        lines += [f"| chance, in 95 of 100 cases | {low}–{high}% |", ""]
    if isinstance(streams, str):
        lines += [f"two streams on moving digits: FAILED: {streams}", ""]
    else:
        both = streams_view(streams)
        parts = ("joint", "digit", "motion")
        lines += [f"| {both['count']} clips of unseen digits, told right | digit and motion | digit | motion |"]
        lines += ["|---|--:|--:|--:|"]
        for row in both["rows"]:
            cells = ["" if row[part] is None else f"{100 * row[part]:.1f}%" for part in parts]
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
        cells = [f"{100 * both['chance'][part][0]:.1f}–{100 * both['chance'][part][1]:.1f}%" for part in parts]
        lines += [f"| chance, in 95 of 100 cases | {' | '.join(cells)} |", ""]
    return "\n".join([*lines, bench_results.markdown(dict(bench))])
