"""What every autoregressive image model must be: a function of the past, of all of it, and of nothing else."""

import math

import torch


def place_of(image_shape, steps):
    """The number of every step in drawing order: pixels in raster order, the pixel's G steps inside. (G, H, W)"""
    _, height, width = image_shape
    return torch.arange(steps * height * width).reshape(height, width, steps).permute(2, 0, 1).contiguous()


def read_at(image_shape, steps):
    """The step at which each value of an image is drawn, int64 (C, H, W)."""
    return place_of(image_shape, steps).repeat_interleave(image_shape[0] // steps, dim=0)


def outputs_by_step(parameters, steps):
    """(N, P, G, H, W), or (N, P, H, W) of a model with one step per pixel -> (N, P, G, H, W)."""
    return parameters if parameters.dim() == 5 else parameters.unsqueeze(2).expand(-1, -1, steps, -1, -1)


def assert_no_bit_leaks(model, x, labels=()):
    """Whatever the values at and after a step are, NaN and infinity included, no output up to it changes by a bit.

    Args:
        model: image model in eval mode. x: (N, C, H, W) in [-1, 1]. labels: () or (labels,).
    """
    steps = model.head.steps_per_pixel(model.image_shape[0])
    place, source = place_of(x.shape[1:], steps), read_at(x.shape[1:], steps)
    with torch.no_grad():
        before = outputs_by_step(model(x, *labels), steps)
        assert before.isfinite().all()
        for here in range(place.numel()):
            settled = place <= here
            for poison in (math.nan, math.inf, 3e38, -0.3):
                changed = torch.where(source >= here, poison, x)
                assert not torch.equal(changed, x)
                after = outputs_by_step(model(changed, *labels), steps)
                assert torch.equal(after[..., settled], before[..., settled]), (here, poison)


def assert_all_the_past_is_seen(model, labels=()):
    """No blind spot: the last step's parameters move with every earlier value of the image. Float64, eval mode."""
    steps = model.head.steps_per_pixel(model.image_shape[0])
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(1, *model.image_shape, dtype=torch.float64, generator=generator).mul(2).sub(1).requires_grad_()
    place, source = place_of(model.image_shape, steps), read_at(model.image_shape, steps)
    outputs = outputs_by_step(model(x, *labels), steps)[0]  # [P, G, H, W]
    for step in range(place.numel()):
        at = tuple(int(index) for index in (place == step).nonzero()[0])
        weight = torch.randn(outputs.shape[0], dtype=torch.float64, generator=generator)
        (gradient,) = torch.autograd.grad((outputs[(slice(None), *at)] * weight).sum(), x, retain_graph=True)
        assert torch.equal(gradient[0] != 0, source < step), f"at step {step}"
