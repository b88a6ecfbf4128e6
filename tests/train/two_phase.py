"""A small task with all that is hard about training: two modules, two optimisers, dropout, unequal numbers of updates.

Run as a script, it trains in the folder named by its first argument; torchrun starts it in several processes.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

from vidgen.train import Phase, Settings, Task, train


def make_task(*, dropout=0.3, seen=None):
    """A generator that is to fool a discriminator, on points of a plane; ``seen`` collects every phase's batches."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(50, 2, generator=generator) * 0.3 + torch.tensor([1.0, -2.0])
    held_out = torch.randn(23, 2, generator=generator) * 0.3 + torch.tensor([1.0, -2.0])
    torch.manual_seed(1)
    modules = {
        "generator": nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2)),
        "discriminator": nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)),
    }

    def discriminate(nets, batch):
        real = batch[0]
        if seen is not None:
            seen.append(("discriminator", real.clone()))
        with torch.no_grad():
            fake = nets["generator"](real)
        scores = nets["discriminator"](torch.cat([real, fake]))
        sign = torch.cat([torch.ones(len(real), 1), -torch.ones(len(real), 1)])
        loss = nn.functional.softplus(-sign * scores).mean()
        return loss, {"score": scores.mean()}

    def generate(nets, batch):
        if seen is not None:
            seen.append(("generator", batch[0].clone()))
        loss = nn.functional.softplus(-nets["discriminator"](nets["generator"](batch[0]))).mean()
        return loss, {}

    def evaluate(nets, batch):
        return {"distance": (nets["generator"](batch[0]) - batch[0]).square().sum(dim=1)}

    def save(path, metadata):
        save_file({name: tensor.clone() for name, tensor in modules["generator"].state_dict().items()}, path)

    return Task(
        modules=modules,
        phases=(
            Phase("discriminator", ("discriminator",), lambda p: torch.optim.Adam(p, 1e-2), discriminate, updates=2),
            Phase(
                "generator",
                ("generator",),
                lambda p: torch.optim.SGD(p, 5e-2, momentum=0.9),
                generate,
                schedule=lambda step: 1 / (1 + step),
                max_grad_norm=0.5,
            ),
        ),
        data=TensorDataset(points),
        validation=TensorDataset(held_out),
        evaluate=evaluate,
        monitor="distance",
        averaged=("generator",),
        save=save,
    )


def settings(directory, **changes):
    return Settings(
        Path(directory),
        **{
            "steps": 20,
            "batch_size": 8,
            "ema": 0.9,
            "device": "cpu",
            "log_every": 3,
            "validate_every": 5,
            "save_every": 50,
            "progress": False,
            **changes,
        },
    )


if __name__ == "__main__":
    train(make_task(dropout=0.0), settings(sys.argv[1], log_every=1, accumulate=int(sys.argv[2])))
