"""Two processes on the CPU (gloo) train like one on the joined batch.

How near: the two runs sum the same float32 gradients in another order, about 1e-7 relative per step, and Adam lets that
grow where a gradient is near its epsilon. Losses stayed within 5e-7 of each other; the bound is ten times that. What it
has to tell apart is far larger: another order of the data, gradients that are not averaged or two processes on the same
half move the losses by more than 1e-3.
"""

import pytest
from safetensors.torch import load_file

from tests.train.two_phase import make_task, settings
from vidgen.train import loop, read_metrics
from vidgen.train.command import train

BOUND = 5e-6
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SETTINGS = {
    "device": "cpu",
    "steps": 10,
    "batch_size": 16,
    "hidden": 6,
    "blocks": 1,
    "dropout": 0.0,
    "warmup": 0,
    "log_every": 1,
    "validate_every": 5,
    "progress": False,
}


def _curves(directory):
    curves = {}
    for record in read_metrics(directory / "metrics.jsonl"):
        for name, value in record.items():
            if name not in ("kind", "step"):
                curves.setdefault((record["kind"], name), []).append(value)
    return curves


def _assert_same_trajectory(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=BOUND, abs=BOUND), name


def test_pixelcnn_by_the_command_line(run_program, tmp_path):
    train("pixelcnn", out=tmp_path / "one", **SETTINGS)
    train("pixelcnn", out=tmp_path / "other", seed=1, **SETTINGS)
    options = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", value)]
    run_program(*TORCHRUN, "-m", "vidgen.cli", "train", "pixelcnn", "--out", "two", *options)
    one, two, other = (_curves(tmp_path / name) for name in ("one", "two", "other"))
    assert len(one["train", "loss"]) == 10
    assert len(one["validation", "bits_per_dim"]) == 2
    _assert_same_trajectory(one, two)
    differences = [abs(a - b) for a, b in zip(one["train", "loss"], other["train", "loss"], strict=True)]
    assert max(differences) > 200 * BOUND
    weights = [load_file(tmp_path / name / "best.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        assert float((tensor - weights[1][name]).abs().max()) < 1e-3, name


def test_two_phases_with_accumulation(run_program, tmp_path):
    """Each phase's optimiser sees the gradients of both processes, and of its own modules only."""
    loop.train(make_task(dropout=0.0), settings(tmp_path / "one", log_every=1))
    run_program(*TORCHRUN, "-m", "tests.train.two_phase", "two", "2")
    _assert_same_trajectory(_curves(tmp_path / "one"), _curves(tmp_path / "two"))
