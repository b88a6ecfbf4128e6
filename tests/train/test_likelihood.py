"""The task of likelihood models: what is minimised, and by which recipe."""

import math

import pytest
import torch

from vidgen.models import PixelCNN, PixelCNNPP
from vidgen.train import likelihood_task


def images(n):
    return torch.randint(0, 5, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_loss_is_the_mean_of_what_the_model_calls_bits_per_dim():
    torch.manual_seed(0)
    model = PixelCNNPP((1, 4, 4), resnets=1, filters=4, mixtures=2, classes=3, levels=5).eval()
    labels = torch.tensor([0, 2, 1])
    task = likelihood_task(model, (images(3), labels), None, steps=1)
    loss, recorded = task.phases[0].loss(task.modules, [images(3), labels])
    expected = model.bits_per_dim(images(3), labels)
    torch.testing.assert_close(loss / math.log(2), expected.mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(recorded["bits_per_dim"], expected.mean(), rtol=1e-5, atol=0)


def test_the_recipe_of_pixelcnnpp():
    model = PixelCNN((1, 4, 4), levels=5, hidden=4, blocks=1)
    task = likelihood_task(model, images(4), None, steps=100, learning_rate=1e-3, recipe="pixelcnn++")
    (phase,) = task.phases
    optimizer = phase.optimizer(model.parameters())
    assert type(optimizer) is torch.optim.Adam
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.95, 0.9995), 0)
    # by the step, not by the epoch, and without an end
    assert phase.schedule(0) == 1
    assert phase.schedule(200_000) == pytest.approx(math.exp(-1), rel=1e-4)
    assert task.description["recipe"] == "pixelcnn++"
    with pytest.raises(ValueError, match="recipe: expected 'cosine' or 'pixelcnn\\+\\+', got 'sgd'"):
        likelihood_task(model, images(4), None, steps=1, recipe="sgd")
