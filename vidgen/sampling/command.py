"""``vidgen sample``. Commands stand above the layers that they tie together."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy

if TYPE_CHECKING:
    from torch import Tensor


def sample(
    checkpoint: Path,
    /,
    *,
    n: int = 64,
    out: Path = Path("grid.png"),
    seed: int = 0,
    temperature: float = 1.0,
    labels: tuple[int, ...] | None = None,
    complete: Path | None = None,
    rows: int | None = None,
    first_image: int = 0,
    batch_size: int | None = None,
    columns: int | None = None,
    scale: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    impl: str | None = None,
    progress: bool | None = None,
) -> None:
    """Draw images from a checkpoint that `vidgen train` wrote.

    Image number i of a seed is the same image however many are drawn, and however they are batched.

    Example: vidgen sample runs/pixelcnn-digits/best.safetensors -n 64 --out grid.png

    Example: vidgen sample runs/gated-pixelcnn-digits --labels 3 -n 16

    Example: vidgen sample runs/pixelcnn-digits --complete seven.png --rows 4

    Args:
        checkpoint: a .safetensors file, or the folder of a run (its best.safetensors is taken).
        n: number of images.
        out: where to write: .png for all images in one picture, .npy for the grey levels, uint8 (n, C, H, W).
        seed: decides the images.
        temperature: below 1 for likelier, less varied images; 1 is the model's own distribution.
        labels: classes to draw, for a class-conditional model; taken in turn. All classes in turn if not given.
        complete: a picture of the model's size (.png, or .npy as --out writes it) whose upper rows are kept, and the
            rest drawn; several images of a .npy are taken in turn.
        rows: how many rows of --complete are kept; half of them if not given.
        first_image: number of the first image, to continue an earlier series.
        batch_size: images drawn at once; all of them if not given.
        columns: images in a row of the picture; about a square if not given.
        scale: screen pixels per image pixel; images get about 48 pixels high if not given.
        device: where to compute; auto takes a GPU if PyTorch sees one.
        impl: how to draw: "cpu", "persistent" (a CUDA kernel), "graph" (CUDA graphs) and "eager" compute for each pixel
            what it adds, "naive" runs the network anew for each; the first that fits the model if not given.
        progress: show a progress bar; if not given, on a terminal only.
    """
    import torch

    import vidgen
    from vidgen.files import write_atomically
    from vidgen.models import load_checkpoint
    from vidgen.sampling.generate import generate
    from vidgen.sampling.grid import encode_png, image_grid

    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"out: expected a name that ends in .png or .npy, got {out}")
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: there is no folder {out.parent}")
    if checkpoint.is_dir():
        checkpoint = checkpoint / "best.safetensors"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = vidgen.prepack(load_checkpoint(checkpoint, device=device))
    images = generate(
        model,
        n,
        labels=_labels(model, labels, n, first_image, device),
        known=_known(model, complete, rows, n),
        seed=seed,
        temperature=temperature,
        first_image=first_image,
        batch_size=batch_size,
        impl=impl,
        progress=progress,
    )
    values = images.cpu().numpy()
    if out.suffix == ".npy":
        buffer = io.BytesIO()
        numpy.save(buffer, values)
        write_atomically(out, buffer.getvalue())
    else:
        write_atomically(out, encode_png(image_grid(values, model.levels, columns=columns, scale=scale)))
    print(f"{n} images of {'×'.join(str(size) for size in model.image_shape)} in {out}")


def _labels(model: Any, labels: tuple[int, ...] | None, n: int, first_image: int, device: str) -> "Tensor | None":
    """The class of each image, in turn: image number i has the same one in every series."""
    import torch

    if not getattr(model, "conditional", False):
        if labels is not None:
            raise ValueError(f"labels: {type(model).__name__} was trained without classes, expected none, got {labels}")
        return None
    classes = model.config["classes"]
    chosen = tuple(range(classes)) if labels is None else labels
    if not chosen or not all(0 <= label < classes for label in chosen):
        raise ValueError(f"labels: expected classes 0 … {classes - 1}, got {chosen}")
    return torch.tensor([chosen[(first_image + i) % len(chosen)] for i in range(n)], device=device)


def _known(model: Any, path: Path | None, rows: int | None, n: int) -> "tuple[Tensor, Tensor] | None":
    """(values, mask) of the pictures to complete."""
    import torch

    from vidgen.sampling.grid import read_images

    if path is None:
        if rows is not None:
            raise ValueError(f"rows: expected with --complete only, got {rows}")
        return None
    channels, height, width = model.image_shape
    rows = height // 2 if rows is None else rows
    if not 0 <= rows <= height:
        raise ValueError(f"rows: expected 0 … {height}, got {rows}")
    images = read_images(path, model.levels)
    if images.shape[1:] != (channels, height, width):
        raise ValueError(f"complete: expected {channels}×{height}×{width} images, got {images.shape[1:]} in {path}")
    values = torch.from_numpy(images)[torch.arange(n) % len(images)]
    return values, (torch.arange(height) < rows)[:, None].expand(height, width)
