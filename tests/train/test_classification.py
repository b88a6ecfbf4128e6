"""Classifiers are trained on the loss that they are judged by, and motion is learnt by who can see it alone."""

import json
import math

import pytest
import torch
from torch import nn

from vidgen.cli import main
from vidgen.data import MOTIONS, moving_digits
from vidgen.models import SingleFrame, load_checkpoint, read_metadata
from vidgen.train import Settings, classification_task, predictions, read_metrics, train
from vidgen.train.command import _options


class Linear(nn.Module):
    """Scores that are the inputs' own values: what is asked of it can be worked out by hand."""

    def __init__(self):
        super().__init__()
        self.config = {}
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        assert x.dtype == torch.float32
        return x * self.scale


def test_figures_are_cross_entropy_and_accuracy(tmp_path):
    scores = torch.tensor([[0.0, 0.0, math.log(2)], [3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    labels = torch.tensor([2, 0, 0])
    task = classification_task(Linear(), (scores, labels), (scores, labels), steps=1)
    values = task.evaluate(task.modules, [scores, labels])
    assert values["accuracy"].tolist() == [1, 1, 0]
    e = math.e
    expected = [math.log(2), math.log(e**3 + 2) - 3, math.log(e + 2)]
    assert values["cross_entropy"].tolist() == pytest.approx(expected, rel=1e-6)
    loss, metrics = task.phases[0].loss(task.modules, [scores, labels])
    assert float(loss.detach()) == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx(2 / 3)
    assert task.monitor == "cross_entropy"


def test_bytes_are_given_to_the_model_as_shares():
    pixels = torch.tensor([[0, 255, 51], [255, 0, 254]], dtype=torch.uint8)
    labels = torch.tensor([1, 0])
    task = classification_task(Linear(), (pixels, labels), None, steps=1)
    loss, _ = task.phases[0].loss(task.modules, [pixels, labels])
    shares = torch.tensor([[0.0, 1.0, 0.2], [1.0, 0.0, 254 / 255]])
    assert float(loss.detach()) == pytest.approx(float(nn.functional.cross_entropy(shares, labels)), rel=1e-6)
    assert task.evaluate is None


def test_predictions_do_not_depend_on_the_batch_and_switch_dropout_off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(5, 3)).train()
    inputs = torch.randn(23, 5)
    expected = model[1](inputs).argmax(1)
    assert torch.equal(predictions(model, inputs, batch_size=4), expected)
    assert torch.equal(predictions(model, inputs, batch_size=100), expected)


def test_what_a_single_frame_network_says_does_not_depend_on_the_class():
    """Whatever its weights are: the reason why it stays at chance."""
    torch.manual_seed(0)
    model = SingleFrame(len(MOTIONS), in_channels=1).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    scores = [model(moving_digits("test", n=8, motion=motion).video.float() / 255) for motion in MOTIONS]
    assert float(scores[0].detach().std()) > 0.1
    for other in scores[1:]:
        assert torch.allclose(other, scores[0], rtol=0, atol=1e-5)


SMALL = ["--frames", "8", "--size", "16", "--device", "cpu", "--progress", "False"]


def test_c3d_learns_motion_by_the_command_line_and_a_single_frame_does_not(tmp_path, capsys):
    shares = {}
    for model, sizes in (
        ("c3d", ["--width", "4", "--steps", "100", "--clips", "1024", "--learning-rate", "0.002"]),
        ("single-frame", ["--width", "4", "--steps", "20", "--clips", "128"]),
    ):
        out = tmp_path / model
        assert main(["train", model, "--data", "moving-digits", "--out", str(out), *SMALL, *sizes]) == 0
        said = capsys.readouterr().out
        assert "of 1000 clips of unseen digits; by chance it would be 25%" in said
        metadata = read_metadata(out / "best.safetensors")
        assert (metadata["model"], metadata["data"]) == (model, "moving-digits")
        test = moving_digits("test", n=1000, frames=8, height=16, width=16)
        right = predictions(load_checkpoint(out / "best.safetensors"), test.video) == test.motion
        shares[model] = float(right.double().mean())
        assert f"motion told right in {shares[model]:.1%}" in said
        best = min(r["cross_entropy"] for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "validation")
        assert metadata["metrics"]["cross_entropy"] == best
    # a guess is right in 0.25 ± 0.014 (one standard deviation); a run of this size ends between 0.6 and 0.9
    assert shares["c3d"] > 0.4
    assert abs(shares["single-frame"] - 0.25) < 4 * 0.0137


def test_resuming_gives_the_same_weights(tmp_path):
    clips = moving_digits("train", n=32, frames=8, height=16, width=16)

    def run(folder, stop=None, resume=False):
        torch.manual_seed(0)
        task = classification_task(
            SingleFrame(4, in_channels=1, widths=(2, 4)), (clips.video, clips.motion), None, steps=6
        )
        settings = Settings(folder, 6, 8, device="cpu", progress=False, resume=resume)
        train(task, settings, on_step=lambda trainer: trainer.stop() if trainer.step == stop else None)
        return task.modules["model"].state_dict()

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=3)
    parts = run(tmp_path / "parts", resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_models_options_are_its_own():
    assert _options("pixelcnn", {"steps": None, "hidden": 8})["steps"] == 1000
    assert _options("pixelcnn", {"hidden": 8})["hidden"] == 8
    with pytest.raises(ValueError, match="hidden: c3d has no such option, got 8"):
        _options("c3d", {"hidden": 8})
    with pytest.raises(ValueError, match="dropout: single-frame has no such option"):
        _options("single-frame", {"dropout": 0.1})
    with pytest.raises(ValueError, match="data: c3d learns moving-digits, got 'digits'"):
        _options("c3d", {"data": "digits"})


def test_default_folders_tell_model_and_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["--width", "2", "--steps", "1", "--clips", "8", "--batch-size", "8"]
    assert main(["train", "single-frame", *SMALL, *sizes]) == 0
    record = json.loads(
        (tmp_path / "runs" / "single-frame-moving-digits" / "metrics.jsonl").read_text().splitlines()[0]
    )
    assert record["step"] == 1
