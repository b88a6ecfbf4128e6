"""Made-up results in the shape of real ones. They exercise the page; none of their figures was measured."""

from __future__ import annotations

from typing import Any

import numpy as np

BANNER = "Synthetic data for a test of this page: nothing here was measured."

_MACHINE = {
    "device": "cpu",
    "cpu": "Imaginary Processor 9000",
    "architecture": "x86_64",
    "threads": 2,
    "cores": 2,
    "system": "Linux 0.0",
    "python": "3.11.0",
    "torch": "0.0.0",
    "vidgen": "0.0.0",
    "isa": "none",
}
_PEAKS = {"float32": 200.0, "bfloat16": 400.0, "gb_per_s": 20.0}


def contender(name: str, ms: float, *, against: str | None = None, failure: str | None = None) -> dict[str, Any]:
    generator = np.random.default_rng(len(name))
    entry = {
        "name": name,
        "ours": name.startswith("vidgen"),
        "against": against,
        "dtype": "bfloat16" if "bf16" in name else "float32",
        "flops": ms * 1e8 / 2,
        "bytes_moved": 1e4,
        "failure": failure,
        "errors": {"y": {"relative_rms": 1.2e-7, "max": 1e-6}},
    }
    if failure is None:
        entry["calls_per_sample"] = 1
        entry["samples_ms"] = [float(ms * (1 + 0.02 * generator.standard_normal())) for _ in range(21)]
        entry["memory"] = {"added_mib": 8.25, "peak_mib": 180.0}
    return entry


def row(title: str, kind: str, scale: float, failure: str | None = None) -> dict[str, Any]:
    return {
        "op": "masked_conv2d",
        "case": f"{kind}-{title}",
        "title": f"{title}, {kind}",
        "kind": kind,
        "device": "cpu",
        "shape": {},
        "others_busy": 0.0,
        "contenders": [
            contender("eager contiguous", 10 * scale),
            contender("eager channels_last", 9 * scale),
            contender("torch.compile", 9.5 * scale),
            contender("vidgen NHWC", 4 * scale, against="eager channels_last", failure=failure),
            contender("vidgen NCHW", 5 * scale, against="eager contiguous"),
            contender("eager bf16", 5 * scale),
            contender("vidgen NHWC bf16", 2 * scale, against="eager bf16"),
        ],
    }


def drawing() -> dict[str, Any]:
    lines = [
        contender("full passes", 200_000),
        contender("full passes, channels_last", 150_000),
        contender("vidgen, cpu", 300, against="full passes, channels_last"),
        contender("vidgen, eager", 15_000, against="full passes, channels_last"),
    ]
    title = "PixelCNN, 15 blocks of 64, 28×28, 1 at once"
    return row(title, "drawing", 1.0) | {"op": "sampling", "contenders": lines}


def bench() -> dict[str, Any]:
    wrong = "wrong answer: y is off by 3.1e-02 (relative rms against float64), limit 5.0e-06, the absolute limit"
    return {
        "format": 1,
        "set": "quick",
        "created": "2000-01-01T00:00:00+00:00",
        "machine": dict(_MACHINE),
        "peaks": dict(_PEAKS),
        "rows": [
            row("(16, 128, 32, 32) → 128, 3×3 B", "forward", 1.0),
            row("(4, 256, 64, 64) → 256, 3×3 B", "forward", 4.0, failure=wrong),
            row("(1, 16, 1, 100) → 16, 3×3 B", "forward", 0.003),
            row("(16, 128, 32, 32) → 128, 3×3 B", "forward+backward", 3.0),
            drawing(),
        ],
    }


def demo() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    curve = [
        {"step": 60 * i, "train_bits_per_dim": 1.6 + 2.0 * 0.7**i, "validation_bits_per_dim": 1.7 + 1.9 * 0.72**i}
        for i in range(1, 26)
    ]
    return {
        "curve": curve,
        "bits_per_dim": {"pixelcnn": 1.712, "histogram": 2.34, "logistic_regression": 1.98},
        "samples": generator.integers(0, 17, (256, 1, 8, 8), dtype=np.uint8),
        "real": generator.integers(0, 17, (64, 1, 8, 8), dtype=np.uint8),
        "classes_found": 10,
        "confidence": {"samples": 0.81, "real": 0.95, "mixed_pixels": 0.4},
        "seconds": {"train": 123.4, "sample": 5.6},
        "model": {"hidden": 32, "blocks": 5, "parameters": 123456},
    }


def motion() -> dict[str, Any]:
    """As if C3D had one of the clips shown wrong, and the other network all but three."""
    generator = np.random.default_rng(1)
    names = ["clockwise", "anticlockwise", "clockwise twice", "anticlockwise twice"]
    truth = [label for label in range(4) for _ in range(3)]
    steps = range(6, 151, 6)
    rising = [{"step": s, "train_accuracy": 0.25, "validation_accuracy": 0.25 + 0.74 * (1 - 0.97**s)} for s in steps]
    flat = [{"step": s, "train_accuracy": 0.25, "validation_accuracy": 0.25 + 0.02 * (-1) ** s} for s in steps]
    return {
        "motions": names,
        "curve": {"c3d": rising, "single-frame": flat},
        "right": {"c3d": 987, "single-frame": 243},
        "test_clips": 1000,
        "chance": {"low": 224, "high": 277},
        "clips": generator.integers(0, 256, (12, 16, 32, 32), dtype=np.uint8),
        "motion": truth,
        "predicted": {"c3d": [*truth[:-1], 1], "single-frame": [1] * 12},
        "orders": generator.integers(0, 256, (4, 16, 32, 32), dtype=np.uint8),
        "seconds": {"c3d": 45.6, "single-frame": 7.8, "test": 1.2},
        "model": {"frames": 16, "width": 8, "c3d parameters": 654321},
    }


def streams() -> dict[str, Any]:
    """As if each stream alone told its own part, and both together both."""
    generator = np.random.default_rng(3)
    curve = [
        {
            "step": 15 * i,
            "spatial_accuracy": 0.24 * (1 - 0.7**i),
            "temporal_accuracy": 0.1 * (1 - 0.6**i),
            "accuracy": 0.9 * (1 - 0.7**i),
        }
        for i in range(1, 11)
    ]
    return {
        "curve": curve,
        "right": {
            "spatial": 241,
            "temporal": 112,
            "average": 912,
            "svm": 923,
            "spatial digit": 951,
            "spatial motion": 247,
            "temporal digit": 118,
            "temporal motion": 978,
        },
        "test_clips": 1000,
        "chance": {
            "joint": {"low": 16, "high": 35},
            "digit": {"low": 82, "high": 119},
            "motion": {"low": 224, "high": 277},
        },
        "flow_error": {"all": 0.41, "ink": 0.62, "zero": 1.23, "zero ink": 3.21},
        "strip": {
            "frames": generator.integers(0, 256, (10, 32, 32)).tolist(),
            "exact": generator.integers(0, 256, (10, 32, 32, 3)).tolist(),
            "found": generator.integers(0, 256, (10, 32, 32, 3)).tolist(),
            "digit": 7,
            "motion": "clockwise",
            "said": {"average": "7, clockwise", "svm": "1, clockwise twice"},
        },
        "seconds": {"flow and clips": 9.8, "train": 32.1, "test": 4.3},
        "model": {"frames": 16, "width": 12, "spatial parameters": 345678},
    }


def classes() -> dict[str, Any]:
    generator = np.random.default_rng(2)
    curve = demo()["curve"]
    names = ("gated-pixelcnn", "pixelcnnpp")
    return {
        "curve": dict.fromkeys(names, curve),
        "bits_per_dim": {"gated-pixelcnn": 1.611, "pixelcnnpp": 1.622},
        "recognised": {"gated-pixelcnn": 471, "pixelcnnpp": 468},
        "train_seconds": {"gated-pixelcnn": 67.8, "pixelcnnpp": 78.9},
        "sample_seconds": {"gated-pixelcnn": 2.3, "pixelcnnpp": 3.4},
        "parameters": {"gated-pixelcnn": 234567, "pixelcnnpp": 345678},
        "samples": {name: generator.integers(0, 17, (120, 1, 8, 8)).tolist() for name in names},
        "drawings": 500,
        "halves": {half: generator.integers(0, 17, (12, 1, 8, 8)).tolist() for half in ("real", "completed")},
        "judge": 0.983,
        "model": {"steps": 800, "dropout": 0.5},
    }
