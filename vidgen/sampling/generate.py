"""``vidgen.generate``: drawing images from an autoregressive model.

A model can be drawn from if it has

    image_shape  (C, H, W)
    levels       number of grey levels
    head         a ``vidgen.sampling.Head``
    forward(x)   images (N, C, H, W), floating point in [-1, 1] -> parameters (N, P, G, H, W), or (N, P, H, W) where the
                 head takes one step per pixel (G = 1). The parameters of
                 step g of pixel (i, j) depend on the pixels before (i, j) in raster order and on the channels of steps
                 before g at (i, j), and on nothing else; (N, P, H, W) where a pixel is one step (G = 1). A model
                 whose ``conditional`` is true takes ``labels=`` besides.

Nothing here says how the forward passes are run: that is the executor's business (``vidgen.sampling.executors``).
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vidgen.progress import progress_bar
from vidgen.sampling.executors import Request, choose
from vidgen.sampling.heads import Head, round_to_levels, scale_levels
from vidgen.sampling.philox import check_seed, image_noise
from vidgen.sampling.plan import Plan


class AutoregressiveModel(Protocol):
    """What ``generate`` asks of a model besides being an ``nn.Module``; the module's docstring says it in full."""

    image_shape: tuple[int, int, int]
    levels: int
    head: Head

    def __call__(self, x: Tensor) -> Tensor: ...


def generate(
    model: AutoregressiveModel,
    n: int,
    *,
    labels: Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    quantize: bool = True,
    impl: str | None = None,
    progress: bool | None = None,
    batch_size: int | None = None,
    first_image: int = 0,
    on_row: Callable[[int, int, Tensor], None] | None = None,
    plan: Plan | None = None,
    weight_dtype: torch.dtype | None = None,
) -> Tensor:
    """Draws images.

    A causal network need not be run anew for every pixel: `vidgen.sampling.trace` derives from one forward pass what
    each pixel adds, and the executors "cpu" (C++), "persistent" (one CUDA kernel whose blocks stay on the GPU and meet
    there), "graph" (CUDA graphs) and "eager" (plain PyTorch, any device) compute just that. "graph" captures its graphs
    when a plan first draws a batch of a size, so give it a ``plan`` to draw again.

    The noise is counter-based: sub-pixel (channel, row, column) of image i uses Philox4x32-10 of key ``seed`` and
    counter (i, row, column, channel). Image i is therefore the same image whatever ``n`` and ``batch_size`` are: to the
    bit with the executors "cpu" and "persistent", with the others where PyTorch's kernels give an image the same bits
    in any batch, which "eager" and "graph" ask of them image by image. Executors add up in different orders: in float64
    they draw the same images; in float32 a difference in the last bit flips a draw somewhere in about a third of
    32×32×3 images, and what follows is another, equally good image.

    Args:
        model: an autoregressive model; it is run in eval mode, on its own device, and left in the mode it was in.
        n: number of images, ≥ 0.
        labels: int64 (n,), for a class-conditional model.
        known: (values, mask) to complete pictures: values are integers 0 … levels−1 and mask is bool (True: keep this
            value), both broadcastable to (n, C, H, W). Channels that the head draws in one step are known together
            or not at all. Completion is autoregressive: a drawn pixel depends on the pixels before it, so a known pixel
            does not influence the drawn ones before it.
        temperature: > 0; below 1 draws likelier values, 1 is the model's distribution.
        seed: 0 … 2**64 − 1.
        quantize: True rounds every value to a grey level before the next step sees it. False leaves the values of a
            continuous head unrounded and returns them.
        impl: the executor: "cpu", "persistent", "graph", "eager" or "naive" (a full forward pass per step); None takes
            the first of these that can draw from the model, with a warning where that is "naive". "persistent" draws
            from float32 and float64 models on a GPU with cooperative launches, "graph" on any, both with one of
            vidgen's heads; unless they are named, only where `make gpu` has tested them on such a GPU
            (`vidgen.ops.gate`), with a warning where it has not.
        progress: True or False; None shows a bar on a terminal.
        batch_size: images drawn at once; None draws all at once.
        first_image: number of the first image, to continue a series: ``generate(m, 4, first_image=4)`` are images 4 … 7
            of ``generate(m, 8)``.
        on_row: called as soon as a row is finished with (number of the batch's first image, row, values of the row as
            returned, (batch, C, W)).
        plan: from `vidgen.sampling.trace(model)`, to draw several times without deriving it each time. It holds copies
            of the weights, and the graphs of the last two kinds of batch.
        weight_dtype: torch.bfloat16 keeps the weights of a float32 model rounded to bfloat16, half as many bytes to
            read for every pixel; sums stay float32, and the images are those of a model so rounded. The executor "cpu"
            can. None keeps them as they are.

    Returns:
        uint8 (n, C, H, W) in 0 … levels−1 (int64 above 256 levels) on the model's device; with ``quantize=False``
        floating point in [-1, 1].

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.
        KeyboardInterrupt: passed on after the bar is closed and the model's mode restored.
    """
    _check(model, n, temperature, batch_size, first_image)
    check_seed(seed)
    shape = model.image_shape
    height = shape[1]
    anchor = next(iter(_parameters(model)), torch.zeros(()))
    values, mask = _known(known, n, shape, model.levels, model.head.steps_per_pixel(shape[0]))
    conditions = {}
    if labels is not None or getattr(model, "conditional", False):
        conditions["labels"] = _labels(model, labels, n).to(anchor.device)

    def finish(canvas: Tensor) -> Tensor:
        return round_to_levels(canvas, model.levels) if quantize else canvas.clone()

    results = []
    # an empty batch goes through the executor too, so that n = 0 has the dtype and device of every other n
    starts = range(0, max(n, 1), batch_size or max(n, 1))
    bar = progress_bar(len(starts) * height, "drawing", show=progress, unit="row")
    try:
        with _eval_mode(model), torch.inference_mode():
            executor, prepared = choose(model, impl, plan, weight_dtype)
            for start in starts:
                rows = slice(start, min(start + (batch_size or n), n))
                number = first_image + start
                request = Request(
                    noise=torch.from_numpy(image_noise(seed, range(number, first_image + rows.stop), shape)).to(
                        anchor.device, torch.float64
                    ),
                    values=scale_levels(values[rows], model.levels, anchor.dtype).to(anchor.device),
                    known=mask[rows].to(anchor.device),
                    conditions={name: value[rows] for name, value in conditions.items()},
                    temperature=float(temperature),
                    quantize=quantize,
                    on_row=_row_callback(on_row, number, finish, bar),
                )
                results.append(finish(executor.run(prepared, request)))
    finally:
        bar.close()
    # a copy made out here is an ordinary tensor, which autograd may use
    return torch.cat([result.clone() for result in results])


def _row_callback(
    on_row: Callable[[int, int, Tensor], None] | None, number: int, finish: Callable[[Tensor], Tensor], bar: Any
) -> Callable[[int, Tensor], None]:
    def after(row: int, canvas: Tensor) -> None:
        bar.update(1)
        if on_row is not None:
            on_row(number, row, finish(canvas[:, :, row]))

    return after


def _check(model: Any, n: Any, temperature: Any, batch_size: Any, first_image: Any) -> None:
    for name in ("image_shape", "levels", "head"):
        if not hasattr(model, name):
            raise TypeError(
                f"model: expected an autoregressive model with image_shape, levels and head, "
                f"got {type(model).__name__}, which has no {name}"
            )
    for name, value, least in (("n", n, 0), ("first_image", first_image, 0), ("batch_size", batch_size, 1)):
        if name == "batch_size" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if first_image + n > 2**32:
        raise ValueError(f"first_image: images are numbered below 2**32, got {first_image} + {n}")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature: expected a number, got {type(temperature).__name__}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a positive number, got {temperature}")


def _labels(model: Any, labels: Any, n: int) -> Tensor:
    if not getattr(model, "conditional", False):
        raise ValueError(f"labels: {type(model).__name__} is not conditional, expected None")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected an int64 tensor, got {got}")
    if labels.shape != (n,):
        raise ValueError(f"labels: expected shape ({n},), got {tuple(labels.shape)}")
    classes = getattr(model, "classes", None)
    if classes is not None and n and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(f"labels: expected classes 0 … {classes - 1}, got {int(labels.min())} … {int(labels.max())}")
    return labels


def _known(
    known: tuple[Tensor, Tensor] | None, n: int, shape: tuple[int, int, int], levels: int, steps: int
) -> tuple[Tensor, Tensor]:
    """values int64 (n, C, H, W), 0 where unknown, and mask bool (n, C, H, W), both on the CPU."""
    size = (n, *shape)
    if known is None:
        return torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)
    if not isinstance(known, tuple | list) or len(known) != 2 or not all(isinstance(part, Tensor) for part in known):
        raise TypeError("known: expected a pair of tensors (values, mask)")
    values, mask = known[0].cpu(), known[1].cpu()
    if mask.dtype != torch.bool:
        raise TypeError(f"known: expected a bool mask, got {mask.dtype}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"known: expected integer values 0 … {levels - 1}, got {values.dtype}")
    try:
        values, mask = values.long().broadcast_to(size), mask.broadcast_to(size)
    except RuntimeError:
        got = f"{tuple(values.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"known: expected values and mask that broadcast to {size}, got {got}") from None
    together = mask.reshape(n, steps, shape[0] // steps, *shape[1:])  # [n, G, C/G, H, W]
    if not torch.equal(together.any(dim=2), together.all(dim=2)):
        # given one of them, the others have a distribution that the head does not draw from
        raise ValueError("known: expected one mask for the channels that the model's head draws together")
    values = torch.where(mask, values, 0)
    if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < levels):
        raise ValueError(f"known: expected values 0 … {levels - 1}, got {int(values.min())} … {int(values.max())}")
    return values, mask


def _parameters(model: Any) -> Iterator[Tensor]:
    return model.parameters() if isinstance(model, nn.Module) else iter(())


@contextlib.contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Eval mode for every submodule, and afterwards the mode that each was in."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        if modes:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
