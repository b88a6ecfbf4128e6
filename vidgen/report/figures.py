"""The page's pictures: matplotlib SVGs that take their colours and font from the page, and digits as tiny PNGs, some of
them animated.

A figure is drawn in stand-in colours, which then become CSS variables. So one SVG, inlined, serves the light and
the dark scheme. Figures are narrow (360 points), so that their text is still readable on a phone.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

#: stand-in colour -> CSS variable
_COLORS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--rule)",
    "#040404": "var(--ours)",
    "#050505": "var(--other)",
    "#060606": "var(--failed)",
}
INK, MUTED, RULE, OURS, OTHER, FAILED = _COLORS

_WIDTH = 5.0  # inches, 360 points
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def learning_curve(curve: Sequence[Mapping[str, float]], name: str = "curve") -> str:
    """Bits per dimension against training steps, for the training and the validation split.

    `name` tells the page's curves apart: parts of an SVG are known by ids.
    """
    steps = [point["step"] for point in curve]
    train = [point["train_bits_per_dim"] for point in curve]
    validation = [point["validation_bits_per_dim"] for point in curve]
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(steps, train, color=OTHER, linewidth=1.6)
        axes.plot(steps, validation, color=OURS, linewidth=2.2)
        axes.grid(axis="y")
        axes.set_xlabel("training step")
        axes.set_ylabel("bits per dimension")
        # the first points are the untrained model: they would flatten everything that follows
        tail = [*train[len(train) // 10 :], *validation[len(validation) // 10 :]]
        low, high = min(tail), max(tail)
        axes.set_ylim(low - 0.08 * (high - low) - 0.01, high + 0.12 * (high - low) + 0.01)
        axes.margins(x=0.02)
        handles = [axes.lines[1], axes.lines[0]]
        axes.legend(handles, ["held-out digits", "training digits"], frameon=False, loc="upper right")
        label = f"Bits per dimension fall from {validation[0]:.2f} to {min(validation):.2f} on held-out digits."
        return _svg(figure, label)


def accuracy_curves(curves: Mapping[str, Sequence[Mapping[str, float]]], chance: tuple[float, float]) -> str:
    """Held-out accuracy against training steps, of C3D and the single-frame network, with the band of chance."""
    c3d, control = curves["c3d"], curves["single-frame"]
    with rc_context(_STYLE | {"svg.hashsalt": "accuracy"}):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.axhspan(100 * chance[0], 100 * chance[1], color=RULE, linewidth=0)
        for points, color, width in ((control, OTHER, 1.6), (c3d, OURS, 2.2)):
            axes.plot(
                [point["step"] for point in points],
                [100 * point["validation_accuracy"] for point in points],
                color=color,
                linewidth=width,
            )
        axes.grid(axis="y")
        axes.set_xlabel("training step")
        axes.set_ylabel("motions told right, %")
        axes.set_ylim(0, 104)
        axes.margins(x=0.02)
        handles = [axes.lines[1], axes.lines[0], axes.patches[0]]
        names = ["C3D", "single frames", "chance"]
        # above the axes: no corner inside is free for certain
        figure.legend(handles, names, frameon=False, loc="outside upper left", ncols=3)
        last = [points[-1]["validation_accuracy"] for points in (c3d, control)]
        label = f"Held-out motions told right at the end: C3D {last[0]:.0%}, single frames {last[1]:.0%}."
        return _svg(figure, label)


def stream_curves(curve: Sequence[Mapping[str, float]]) -> str:
    """Held-out accuracy against training steps, of each stream of a two-stream network and of both, averaged."""
    lines = (("spatial_accuracy", OTHER, "-"), ("temporal_accuracy", OTHER, "--"), ("accuracy", OURS, "-"))
    with rc_context(_STYLE | {"svg.hashsalt": "streams"}):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for name, color, style in lines:
            values = [100 * point[name] for point in curve]
            axes.plot([point["step"] for point in curve], values, style, color=color, linewidth=2.0)
        axes.grid(axis="y")
        axes.set_xlabel("training step")
        axes.set_ylabel("digit and motion told right, %")
        axes.set_ylim(0, 104)
        axes.margins(x=0.02)
        figure.legend(axes.lines, ["spatial", "temporal", "both"], frameon=False, loc="outside upper left", ncols=3)
        last = [curve[-1][name] for name, _, _ in lines]
        label = (
            f"Held-out clips told right at the end: spatial stream {last[0]:.0%}, temporal stream {last[1]:.0%}, both "
            f"{last[2]:.0%}."
        )
        return _svg(figure, label)


def model_bars(bits_per_dim: Mapping[str, float]) -> str:
    """Test bits per dimension of the PixelCNN and of the baselines, the lowest on top."""
    names = {"pixelcnn": "PixelCNN", "logistic_regression": "logistic regression on the causal pixels"}
    names["histogram"] = "histogram per pixel"
    ordered = sorted(bits_per_dim.items(), key=lambda item: item[1])
    bars = [(names.get(key, key), value, f"{value:.3f}", key == "pixelcnn") for key, value in ordered]
    label = "Test bits per dimension: " + ", ".join(f"{name} {text}" for name, _, text, _ in bars) + "."
    with rc_context(_STYLE | {"svg.hashsalt": "bars"}):
        return _svg(_bars(bars, reference=None), label)


def ratio_bars(bars: Sequence[tuple[str, float | None, str, bool]], longest: float | None = None) -> str:
    """Speed-ups as bars with a line at 1×; each is (label, ratio or None if failed, text at its end, emphasised).

    `longest` is the ratio that fills the width, so that several charts can share one scale.
    """
    label = "; ".join(f"{name}: {text}" for name, _, text, _ in bars)
    with rc_context(_STYLE | {"svg.hashsalt": "ratios"}):
        return _svg(_bars(bars, reference=1.0, longest=longest), f"Speed-up over eager PyTorch. {label}.")


def time_bars(bars: Sequence[tuple[str, float | None, str, bool]]) -> str:
    """Times on a logarithmic scale, shorter is better; each is (label, ms or None if failed, text, emphasised)."""
    label = "; ".join(f"{name}: {text}" for name, _, text, _ in bars)
    known = [ms for _, ms, _, _ in bars if ms]
    # a decade below the shortest, whose bar would be none else
    shortest = math.log10(min(known, default=1.0)) - 1
    scaled = [(name, math.log10(ms) - shortest if ms else None, text, strong) for name, ms, text, strong in bars]
    with rc_context(_STYLE | {"svg.hashsalt": "times"}):
        return _svg(_bars(scaled, reference=None), f"Time, on a logarithmic scale. {label}.")


def _bars(
    bars: Sequence[tuple[str, float | None, str, bool]], reference: float | None, longest: float | None = None
) -> Figure:
    figure = Figure(figsize=(_WIDTH, 0.3 + 0.52 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    widest = longest or max([value for _, value, _, _ in bars if value is not None], default=1.0)
    for index, (name, value, text, strong) in enumerate(bars):
        axes.barh(index, value or 0.0, height=0.42, color=OURS if strong else OTHER, linewidth=0)
        # labels stand above their bars: beside them they would take half of a phone's width
        axes.text(0, index - 0.29, name, va="bottom", ha="left", color=MUTED, fontsize=10)
        color = FAILED if value is None else INK
        # beyond the line too, where the bar ends before it
        left = 0.0 if value is None else max(value, reference or 0.0) + widest * 0.015
        axes.text(left, index, text, va="center", ha="left", fontweight="bold", color=color)
        if reference is not None and value is not None:
            # only as high as the bar, so that it crosses no label
            axes.vlines(reference, index - 0.26, index + 0.26, colors=INK, linewidth=1.2, linestyle=(0, (2.5, 1.5)))
    axes.set_xlim(0, widest * 1.22)
    axes.set_ylim(len(bars) - 0.6, -0.8)
    axes.set_axis_off()
    return figure


def _svg(figure: Figure, label: str) -> str:
    """The figure as an inline <svg>, named for those who cannot see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # what would leak into the page or repeat in it: a style sheet for everything, sizes, fonts, names of groups
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    for stand_in, variable in _COLORS.items():
        text = text.replace(stand_in, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def digit_grid(images: Any, columns: int, *, levels: int = 17, gap: int = 2) -> dict[str, Any]:
    """A grid of grey images as a PNG data URI: {"uri", "width", "height"} in its own pixels.

    Args:
        images: uint8 (N, 1, H, W) with values in [0, levels), 0 being paper.
        columns: images per row.
        levels: number of grey levels.
        gap: transparent pixels between images.
    """
    stack = np.asarray(images, dtype=np.float64)[:, 0] * (255.0 / (levels - 1))
    count, height, width = stack.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap), dtype=np.uint8)
    for index, image in enumerate(stack):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = np.rint(image)
    return {"uri": _png([sheet]), "width": sheet.shape[1], "height": sheet.shape[0]}


def photo_strip(images: Any, *, gap: int = 2) -> dict[str, Any]:
    """Pictures side by side, opaque and in their own colours: {"uri", "width", "height"} in their own pixels.

    Args:
        images: uint8 (N, H, W), 0 being black, or (N, H, W, 3).
        gap: transparent pixels between images.
    """
    stack = np.asarray(images, dtype=np.uint8)
    colors = stack if stack.ndim == 4 else np.repeat(stack[..., None], 3, axis=-1)
    count, height, width, _ = colors.shape
    sheet = np.zeros((height, count * (width + gap) - gap, 4), dtype=np.uint8)
    for index, image in enumerate(colors):
        left = index * (width + gap)
        sheet[:, left : left + width, :3], sheet[:, left : left + width, 3] = image, 255
    buffer = io.BytesIO()
    Image.fromarray(sheet, mode="RGBA").save(buffer, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"uri": uri, "width": sheet.shape[1], "height": height}


def animation(frames: Any, *, milliseconds: int = 90) -> dict[str, Any]:
    """A clip that plays for ever: {"uri", "still", "width", "height"}; still is its first frame.

    Args:
        frames: uint8 (T, H, W), 0 being paper and 255 ink.
        milliseconds: how long each frame stays.
    """
    stack = np.asarray(frames, dtype=np.uint8)
    height, width = stack.shape[1:]
    return {"uri": _png(stack, milliseconds), "still": _png(stack[:1]), "width": width, "height": height}


def _png(inks: Sequence[np.ndarray] | np.ndarray, milliseconds: int = 0) -> str:
    """Pictures (H, W) of ink, 0 … 255, as the data URI of a PNG, animated where there are several."""
    # black ink with the grey level as opacity: the page's paper shines through, and dark mode only inverts the ink
    pictures = [Image.fromarray(np.stack([np.zeros_like(ink), ink], axis=-1), mode="LA") for ink in inks]
    buffer = io.BytesIO()
    more: dict[str, Any] = {}
    if len(pictures) > 1:
        # each frame replaces the one before it, its transparency too
        more = {"save_all": True, "append_images": pictures[1:], "duration": milliseconds, "loop": 0, "blend": 0}
    pictures[0].save(buffer, format="PNG", optimize=True, **more)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
