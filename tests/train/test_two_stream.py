"""Each stream is trained on what it sees, both are judged together, and a run can stop anywhere."""

import json

import numpy
import pytest
import torch
import torch.nn.functional as F

from vidgen.cli import main
from vidgen.models import load_checkpoint, read_metadata
from vidgen.train import Settings, train
from vidgen.train.command import _options
from vidgen.train.moving_digits import motion_clips
from vidgen.train.two_stream import (
    SPATIAL_UPDATES,
    classes_of,
    stream_probabilities,
    told_right,
    two_stream_clips,
    two_stream_model,
    two_stream_task,
)

SMALL = {"size": 24, "width": 3, "length": 3}


@pytest.fixture(scope="module")
def parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidgen.train.two_stream.TEST_CLIPS", 1)
        clips = two_stream_clips(8, 24, 24, seed=0)
    return {name: (clips[name].video[:24], classes_of(clips[name])[:24]) for name in ("train", "validation")}


def task_of(parts, steps=4, **arguments):
    torch.manual_seed(0)
    return two_stream_task(two_stream_model(**SMALL), parts["train"], parts["validation"], steps=steps, **arguments)


def test_losses_are_cross_entropy_of_what_each_stream_sees(parts):
    task = task_of(parts)
    model = two_stream_model(**SMALL)
    model.spatial, model.temporal = task.modules["spatial"].eval(), task.modules["temporal"].eval()
    batch = task.data[[3, 5, 8]]
    clips, fields, labels, at = task.augment(batch, numpy.array([7, 2**33, 9]))
    assert torch.equal(clips, parts["train"][0][[3, 5, 8]])
    exact = model.displacement_fields(clips)
    assert (fields - exact).abs().max() <= 2e-3 * exact.abs().max()
    spatial, temporal = task.phases
    assert (spatial.updates, temporal.updates) == (SPATIAL_UPDATES, 1)
    with torch.no_grad():
        for phase, scores in (
            (spatial, model.spatial(model.frames_at(clips, at))),
            (temporal, model.temporal(model.stacks_at(fields, at))),
        ):
            loss, metrics = phase.loss(task.modules, [clips, fields, labels, at])
            assert float(loss) == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-5)
            assert float(metrics["accuracy"]) == pytest.approx(float((scores.argmax(1) == labels).float().mean()))
        held_out = task.validation[list(range(24))]
        values = task.evaluate(task.modules, held_out)
        fused = sum(model.stream_probabilities(held_out[0])) / 2
        expected = -fused.log()[torch.arange(24), held_out[2]]
        torch.testing.assert_close(values["cross_entropy"], expected, rtol=1e-2, atol=1e-2)


def test_a_clip_is_seen_at_any_of_its_frames_and_always_at_the_same(parts):
    """As a function of its place in the stream of examples, so that a resumed run sees the same."""
    task = task_of(parts)
    batch = task.data[[0] * 1000]
    positions = numpy.arange(5, 1005)
    drawn = task.augment(batch, positions)[-1]
    counts = torch.bincount(drawn, minlength=5)
    assert len(counts) == 5
    assert counts.min() > 140
    assert torch.equal(task.augment([part[10:20] for part in batch], positions[10:20])[-1], drawn[10:20])
    other = task_of(parts, seed=1).augment(batch, positions)[-1]
    assert not torch.equal(other, drawn)


def test_a_stopped_run_continues_to_the_same_weights(parts, tmp_path):
    def run(folder, stop=None, resume=False):
        task = task_of(parts)
        settings = Settings(folder, 4, 8, ema=0.5, validate_every=2, device="cpu", progress=False, resume=resume)
        train(task, settings, on_step=lambda trainer: trainer.stop() if trainer.step == stop else None)
        return load_checkpoint(folder / "last.safetensors").state_dict()

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=2)
    parted = run(tmp_path / "parts", resume=True)
    assert all(torch.equal(whole[name], parted[name]) for name in whole)
    untrained = task_of(parts).modules
    for stream in ("spatial", "temporal"):
        assert not torch.equal(whole[f"{stream}.fc8.weight"], untrained[stream].fc8.weight), f"{stream} did not learn"


def test_counts_are_of_classes_and_of_their_parts():
    clips = two_stream_clips(8, 24, 1, seed=0)["validation"]
    truth = classes_of(clips)
    assert torch.equal(truth // 4, clips.digit)
    assert torch.equal(truth % 4, clips.motion)
    n = len(truth)
    sure = F.one_hot(truth, 40).float()
    # every digit is right and no motion; the next motion has it
    digit_only = F.one_hot(clips.digit * 4 + (clips.motion + 1) % 4, 40).float()
    counts = told_right(digit_only, sure, {"both": sure}, clips)
    assert counts == {
        "spatial": 0,
        "temporal": n,
        "both": n,
        "spatial digit": n,
        "spatial motion": 0,
        "temporal digit": n,
        "temporal motion": n,
    }
    # neither of the likeliest class's parts need be the likeliest part
    scores = torch.zeros(n, 40)
    scores[:, 0], scores[:, 5:8] = 0.4, 0.2
    assert told_right(scores, scores, {}, clips)["spatial digit"] == int((clips.digit == 1).sum())


def test_the_batch_changes_no_probability(parts):
    model = two_stream_model(**SMALL)
    clips = parts["validation"][0]
    fields = model.displacement_fields(clips)
    for one, other in zip(
        stream_probabilities(model.train(), clips, batch_size=5),
        stream_probabilities(model, clips, fields, batch_size=24),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not model.training


def test_by_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vidgen.train.two_stream.TEST_CLIPS", 40)
    monkeypatch.setattr("vidgen.train.two_stream.VALIDATION_CLIPS", 8)
    small = ["--frames", "8", "--size", "24", "--width", "3", "--length", "4", "--clips", "24", "--batch-size", "8"]
    more = [
        "--stacking",
        "trajectory",
        "--bidirectional",
        "True",
        "--steps",
        "2",
        "--warmup",
        "1",
        "--progress",
        "False",
    ]
    out = tmp_path / "run"
    assert (
        main(["train", "two-stream", "--data", "moving-digits", "--out", str(out), "--device", "cpu", *small, *more])
        == 0
    )
    said = capsys.readouterr().out
    assert "digit and motion told right in 40 clips of unseen digits: spatial " in said
    assert "by chance 2.5%" in said
    best, fused = (load_checkpoint(out / f"{name}.safetensors") for name in ("best", "fused"))
    assert (best.fusion, fused.fusion) == ("average", "svm")
    assert (best.config["stacking"], best.config["bidirectional"], best.config["length"]) == ("trajectory", True, 4)
    assert torch.equal(best.spatial.conv1.weight, fused.spatial.conv1.weight)
    assert read_metadata(out / "fused.safetensors")["data"] == "moving-digits"
    names = {name for line in (out / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert {"spatial/loss", "temporal/accuracy", "cross_entropy", "spatial_accuracy"} <= names


@pytest.mark.parametrize("clips_of", [two_stream_clips, motion_clips])
@pytest.mark.parametrize("seed", [-1, -2, 2**64])
def test_no_seed_leads_to_the_held_out_clips(clips_of, seed):
    """Which have seeds of their own, just below those of training."""
    with pytest.raises(ValueError, match=rf"seed: expected 0 … 2\*\*64 - 1, got {seed}"):
        clips_of(8, 24, 2, seed)


def test_its_options_are_its_own():
    assert _options("two-stream", {"stacking": "trajectory"})["stacking"] == "trajectory"
    with pytest.raises(ValueError, match="length: c3d has no such option, got 5"):
        _options("c3d", {"length": 5})
