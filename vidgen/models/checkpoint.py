"""Model checkpoints: one safetensors file that holds the weights and says which model they belong to.

The header's entry ``vidgen`` is JSON: {"format": 1, "model": name in MODELS, "config": constructor arguments, …}; what
else is in it (step, data set, metrics) is for people and reports. Nothing in the file is executed on loading.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidgen.extras import require
from vidgen.files import write_atomically
from vidgen.models.autoregressive import GatedPixelCNN, PixelCNN, PixelCNNPP
from vidgen.models.video import C3D, CNN3d, EarlyFusion, LateFusion, SingleFrame, TwoStream

FORMAT = 1

MODELS: dict[str, type[nn.Module]] = {
    "3d-cnn": CNN3d,
    "c3d": C3D,
    "early-fusion": EarlyFusion,
    "gated-pixelcnn": GatedPixelCNN,
    "late-fusion": LateFusion,
    "pixelcnn": PixelCNN,
    "pixelcnnpp": PixelCNNPP,
    "single-frame": SingleFrame,
    "two-stream": TwoStream,
}
"""Names by which checkpoints and the command line know the models."""


def save_checkpoint(
    model: nn.Module, path: str | Path, *, weights: Mapping[str, Tensor] | None = None, **metadata: Any
) -> Path:
    """Writes a model's weights and what is needed to rebuild it; the file appears whole or not at all.

    Args:
        model: an instance of one of ``MODELS``.
        path: the file, conventionally ``*.safetensors``; its folder must exist. An existing file is replaced.
        weights: state dict to save in place of the model's own, such as its moving average.
        metadata: further JSON values for the header, such as ``step=1000``.

    Returns:
        The path.

    Raises:
        ValueError: the model is not in ``MODELS``.
        ModuleNotFoundError: safetensors is not installed (``pip install 'vidgen[train]'``).
    """
    save = require("safetensors.torch", extra="train").save
    names = [name for name, kind in MODELS.items() if type(model) is kind]
    if not names:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {type(model).__name__}")
    header = {"format": FORMAT, "model": names[0], "config": model.config, **metadata}
    tensors = {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in (model.state_dict() if weights is None else weights).items()
    }
    write_atomically(Path(path), save(tensors, metadata={"vidgen": json.dumps(header)}))
    return Path(path)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The header of a checkpoint, without its weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of vidgen's, or of a later format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {path}")
    safetensors = require("safetensors", extra="train")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["vidgen"])
    except (safetensors.SafetensorError, KeyError, ValueError):
        raise ValueError(f"checkpoint: {path} is not a checkpoint written by vidgen") from None
    if metadata.get("format") != FORMAT or metadata.get("model") not in MODELS:
        raise ValueError(
            f"checkpoint: {path} has format {metadata.get('format')} and model {metadata.get('model')!r}; this vidgen "
            f"reads format {FORMAT} and models {', '.join(MODELS)}"
        )
    return metadata


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """The model that ``save_checkpoint`` wrote, in eval mode.

    Raises:
        FileNotFoundError, ValueError: as ``read_metadata``; ValueError also if the weights do not fit the model.
    """
    metadata = read_metadata(path)
    # initial weights are drawn and thrown away; the caller's random numbers are none of that business
    with torch.random.fork_rng(devices=[]):
        model = MODELS[metadata["model"]](**metadata["config"])
    try:
        model.load_state_dict(require("safetensors.torch", extra="train").load_file(path))
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the weights in {path} do not fit its own description: {error}") from None
    return model.to(device).eval()
