"""Checkpoints: the file alone gives the model back, and is never half a file."""

import pytest
import torch
from safetensors.torch import save_file

from vidgen.models import PixelCNN, load_checkpoint, read_metadata, save_checkpoint

X = torch.randint(0, 5, (2, 3, 4, 6), generator=torch.Generator().manual_seed(0))


def _model():
    torch.manual_seed(0)
    return PixelCNN((3, 4, 6), 5, hidden=6, blocks=1, head_channels=9, dropout=0.25)


def test_the_file_gives_the_model_back(tmp_path):
    model = _model().eval()
    path = save_checkpoint(model, tmp_path / "model.safetensors", step=7, metrics={"bits_per_dim": 2.5})
    again = load_checkpoint(path)
    assert not again.training
    assert again.config == model.config
    assert torch.equal(again(X), model(X))
    metadata = read_metadata(path)
    assert (metadata["model"], metadata["step"], metadata["metrics"]) == ("pixelcnn", 7, {"bits_per_dim": 2.5})


def test_other_weights_can_be_saved_in_place_of_the_models(tmp_path):
    model = _model()
    halves = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    again = load_checkpoint(save_checkpoint(model, tmp_path / "halves.safetensors", weights=halves))
    assert all(torch.equal(tensor, halves[name]) for name, tensor in again.state_dict().items())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    model = _model()
    path = save_checkpoint(model, tmp_path / "model.safetensors", step=1)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(model, path, step=2)
    assert read_metadata(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_foreign_files_are_refused_in_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint: there is no file"):
        load_checkpoint(tmp_path / "none.safetensors")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not a checkpoint at all")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    for path in (garbage, foreign):
        with pytest.raises(ValueError, match="is not a checkpoint written by vidgen"):
            load_checkpoint(path)
    later = tmp_path / "later.safetensors"
    save_file({"weight": torch.zeros(2)}, later, metadata={"vidgen": '{"format": 99, "model": "pixelcnn"}'})
    with pytest.raises(ValueError, match="has format 99"):
        load_checkpoint(later)


def test_models_without_a_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model: expected one of .*pixelcnn.*, got Linear"):
        save_checkpoint(torch.nn.Linear(1, 1), tmp_path / "linear.safetensors")
