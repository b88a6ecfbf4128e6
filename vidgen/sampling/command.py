"""``vidgen sample``. Commands stand above the layers that they tie together."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy


def sample(
    checkpoint: Path,
    /,
    *,
    n: int = 64,
    out: Path = Path("grid.png"),
    seed: int = 0,
    temperature: float = 1.0,
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

    Args:
        checkpoint: a .safetensors file, or the folder of a run (its best.safetensors is taken).
        n: number of images.
        out: where to write: .png for all images in one picture, .npy for the grey levels, uint8 (n, C, H, W).
        seed: decides the images.
        temperature: below 1 for likelier, less varied images; 1 is the model's own distribution.
        first_image: number of the first image, to continue an earlier series.
        batch_size: images drawn at once; all of them if not given.
        columns: images in a row of the picture; about a square if not given.
        scale: screen pixels per image pixel; images get about 48 pixels high if not given.
        device: where to compute; auto takes a GPU if PyTorch sees one.
        impl: how to draw; "naive" is one forward pass per sub-pixel, not given is the fastest that fits the model.
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
