"""What a user types: train, then sample, then look at the picture."""

import io
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from vidgen.cli import main
from vidgen.models import load_checkpoint, read_metadata
from vidgen.sampling import generate
from vidgen.sampling.command import sample
from vidgen.sampling.grid import encode_png, image_grid
from vidgen.train.command import train

SMALL = {"steps": 4, "batch_size": 8, "hidden": 6, "blocks": 1, "device": "cpu", "progress": False}


def test_train_then_sample_by_the_command_line(tmp_path, capsys):
    run, picture = str(tmp_path / "run"), tmp_path / "grid.png"
    sizes = ["--steps", "3", "--batch-size", "8", "--hidden", "6", "--blocks", "1"]
    assert main(["train", "pixelcnn", "--data", "digits", "--out", run, "--device", "cpu", *sizes]) == 0
    assert "trained 3 steps" in capsys.readouterr().out
    best = tmp_path / "run" / "best.safetensors"
    metadata = read_metadata(best)
    assert (metadata["model"], metadata["data"], metadata["step"]) == ("pixelcnn", "digits", 3)

    layout = ["--columns", "5", "--scale", "2"]
    assert (
        main(["sample", str(best), "-n", "10", "--out", str(picture), "--seed", "3", "--device", "cpu", *layout]) == 0
    )
    grid = numpy.asarray(Image.open(picture))
    images = generate(load_checkpoint(best), 10, seed=3).numpy()
    assert grid.shape == (2 * (2 * 9 - 1), 2 * (5 * 9 - 1))
    for number, image in enumerate(images[:, 0]):
        top, left = 18 * (number // 5), 18 * (number % 5)
        assert numpy.array_equal(grid[top : top + 16 : 2, left : left + 16 : 2], numpy.round(image * (255 / 16)))


@pytest.mark.parametrize("model", ["gated-pixelcnn", "pixelcnnpp"])
def test_conditional_models_learn_labels(model, tmp_path):
    train(model, out=tmp_path / "run", **SMALL)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    images, labels = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10)
    with torch.no_grad():
        assert len(best.bits_per_dim(images, labels).unique()) == 10
    assert read_metadata(tmp_path / "run" / "best.safetensors")["model"] == model


@pytest.mark.parametrize("model", ["gated-pixelcnn", "pixelcnnpp"])
def test_without_classes_and_as_published(model, tmp_path):
    train(model, out=tmp_path / "run", class_conditional=False, recipe="pixelcnn++", **SMALL)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.config["classes"] == 0
    sample(tmp_path / "run", n=3, out=tmp_path / "three.npy", device="cpu")
    assert numpy.array_equal(numpy.load(tmp_path / "three.npy"), generate(best, 3).numpy())
    # another recipe is another run
    with pytest.raises(ValueError, match="recipe"):
        train(model, out=tmp_path / "run", class_conditional=False, resume=True, **SMALL)


def test_classes_and_completions_by_the_command_line(tmp_path):
    train("gated-pixelcnn", out=tmp_path / "run", **SMALL)
    model = load_checkpoint(tmp_path / "run" / "best.safetensors")
    sample(tmp_path / "run", n=3, out=tmp_path / "three.npy", labels=(7, 2), device="cpu")
    three = numpy.load(tmp_path / "three.npy")
    assert numpy.array_equal(three, generate(model, 3, labels=torch.tensor([7, 2, 7])).numpy())
    sample(tmp_path / "run", n=12, out=tmp_path / "all.npy", device="cpu")
    every = generate(model, 12, labels=torch.arange(12) % 10).numpy()
    assert numpy.array_equal(numpy.load(tmp_path / "all.npy"), every)

    # the picture's upper three rows stay, as grey levels; the rest is what the model draws below them
    levels = torch.arange(64).reshape(1, 8, 8) % 17
    picture = tmp_path / "given.png"
    picture.write_bytes(encode_png(image_grid(levels[None].numpy(), 17, scale=1)))
    sample(tmp_path / "run", n=2, out=tmp_path / "done.npy", labels=(5,), complete=picture, rows=3, device="cpu")
    mask = (torch.arange(8) < 3)[:, None].expand(8, 8)
    wanted = generate(model, 2, labels=torch.tensor([5, 5]), known=(levels, mask)).numpy()
    done = numpy.load(tmp_path / "done.npy")
    assert numpy.array_equal(done, wanted)
    assert numpy.array_equal(done[1, 0, :3], levels[0, :3].numpy())
    # what a command has drawn can be completed again
    sample(tmp_path / "run", n=1, out=tmp_path / "again.npy", complete=tmp_path / "done.npy", rows=8, device="cpu")
    assert numpy.array_equal(numpy.load(tmp_path / "again.npy"), done[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": (10,)}, "labels: expected classes 0 … 9"),
        ({"rows": 3}, "rows: expected with --complete only"),
        ({"complete": "image.gif"}, "expected a file that ends in .png or .npy"),
        ({"complete": "broken.png"}, "expected a PNG picture"),
        ({"complete": "broken.npy"}, "expected an array of grey levels"),
        ({"complete": "small.npy"}, "complete: expected 1×8×8 images, got \\(1, 4, 4\\)"),
        ({"complete": "small.npy", "rows": 9}, "rows: expected 0 … 8, got 9"),
        ({"complete": "bright.npy"}, "expected levels 0 … 16, got 0 … 17"),
    ],
)
def test_what_cannot_be_completed_is_named(options, message, conditional_run, monkeypatch):
    folder = conditional_run.parent
    monkeypatch.chdir(folder)
    for name in ("image.gif", "broken.png", "broken.npy"):
        (folder / name).write_bytes(b"nothing")
    numpy.save(folder / "small.npy", numpy.zeros((1, 1, 4, 4), numpy.uint8))
    numpy.save(folder / "bright.npy", numpy.arange(64).reshape(1, 8, 8) % 18)
    if "complete" in options:
        options = {**options, "complete": Path(options["complete"])}
    with pytest.raises(ValueError, match=message):
        sample(conditional_run, n=2, out=folder / "out.npy", device="cpu", **options)
    assert not (folder / "out.npy").exists()


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("conditional") / "run"
    train("gated-pixelcnn", out=run, **SMALL)
    return run


def test_raw_samples_of_a_run(tmp_path, capsys):
    train("pixelcnn", out=tmp_path / "run", **SMALL)
    sample(tmp_path / "run", n=5, out=tmp_path / "five.npy", device="cpu")
    sample(tmp_path / "run", n=2, out=tmp_path / "two.npy", first_image=3, device="cpu")
    five, two = numpy.load(tmp_path / "five.npy"), numpy.load(tmp_path / "two.npy")
    assert five.dtype == numpy.uint8
    assert numpy.array_equal(five[3:], two)
    assert "5 images of 1×8×8" in capsys.readouterr().out


def test_the_average_is_what_is_saved(tmp_path):
    train("pixelcnn", out=tmp_path / "plain", ema=0.0, **SMALL)
    train("pixelcnn", out=tmp_path / "averaged", ema=0.9, **SMALL)
    plain, averaged = (
        load_checkpoint(tmp_path / name / "last.safetensors").head_logits.bias for name in ("plain", "averaged")
    )
    assert not torch.equal(plain, averaged)


def test_grid_of_colours_and_an_incomplete_row():
    images = numpy.arange(3 * 3 * 2 * 2).reshape(3, 3, 2, 2) % 4
    grid = image_grid(images, 4, columns=2, scale=1)
    assert grid.shape == (5, 5, 3)
    assert numpy.array_equal(grid[3:5, 0:2], numpy.moveaxis(images[2], 0, -1) * 85)
    assert (grid[3:5, 3:5] == 128).all()
    assert numpy.array_equal(numpy.asarray(Image.open(io.BytesIO(encode_png(grid)))), grid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "grid.jpg"}, "out: expected a name that ends in .png or .npy"),
        ({"n": 0}, "n: expected at least 1"),
        ({"temperature": -1.0}, "temperature: expected a positive number"),
        ({"impl": "magic"}, "impl: expected None or one of"),
    ],
)
def test_bad_sample_arguments_are_named(arguments, message, tmp_path):
    train("pixelcnn", out=tmp_path / "run", **SMALL)
    out = tmp_path / arguments.pop("out", "grid.png")
    with pytest.raises(ValueError, match=message):
        sample(tmp_path / "run", out=out, device="cpu", **arguments)
    assert not out.exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint: there is no file"):
        sample(tmp_path / "none.safetensors", out=tmp_path / "grid.png")
    with pytest.raises(FileNotFoundError, match="out: there is no folder"):
        sample(tmp_path / "none.safetensors", out=tmp_path / "nowhere" / "grid.png")


@pytest.mark.parametrize(
    ("module", "extra"), [("accelerate", "train"), ("safetensors", "train"), ("sklearn.datasets", "data")]
)
def test_a_missing_extra_is_one_sentence(module, extra, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["train", "pixelcnn", "--steps", "1", "--out", str(tmp_path), "--device", "cpu"]) == 1
    library = module.partition(".")[0]
    expected = f"vidgen train: {library} is not installed, and this needs it: pip install 'vidgen[{extra}]'\n"
    assert capsys.readouterr().err == expected


def test_importing_vidgen_needs_no_extra(environment):
    program = (
        "import sys\n"
        "extras = 'accelerate av matplotlib PIL safetensors sklearn tensorboard tqdm tyro'\n"
        "for name in extras.split():\n"
        "    sys.modules[name] = None\n"
        "import torch, vidgen, vidgen.data, vidgen.models, vidgen.sampling, vidgen.train\n"
        "model = vidgen.models.PixelCNN((1, 2, 2), 3, 4, 1)\n"
        "assert vidgen.generate(model, 2).shape == (2, 1, 2, 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
