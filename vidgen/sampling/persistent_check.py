"""The self-check of the persistent kernel: what `vidgen.ops.gate` asks before a card's first default use of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.nn import MaskedConv2d
from vidgen.sampling.heads import Categorical
from vidgen.sampling.interpreter import run_program
from vidgen.sampling.philox import image_noise
from vidgen.sampling.plan import trace


class _Small(nn.Module):
    """A stream of lines and one of pixels, with more channels than a tile has and gates between them."""

    image_shape = (1, 5, 6)
    levels = 4
    head = Categorical(4)

    def __init__(self) -> None:
        super().__init__()
        self.lines = nn.Conv2d(1, 36, (2, 3))
        self.pixels = MaskedConv2d(1, 36, 3, mask="A")
        self.mixed = MaskedConv2d(36, 72, 3, mask="B")
        self.out = MaskedConv2d(36, 4, 1, mask="B")
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4

    def forward(self, x: Tensor) -> Tensor:
        above = F.pad(self.lines(F.pad(x, (1, 1, 1, 0))), (0, 0, 1, 0))[:, :, :-1]
        y = F.elu(self.pixels(x) + F.pad(above[..., :-1], (1, 0)))
        value, gate = self.mixed(y).chunk(2, dim=1)
        return self.out(y + value * torch.sigmoid(gate)).unsqueeze(2)


def check(device: torch.device) -> str | None:
    """Draws 9 images by the kernel and by the interpreter, in float64; None, or what was wrong."""
    n, model = 9, _Small().to(device).eval()
    with torch.inference_mode():
        plan = trace(model)
        program = plan.best_program
        noise = torch.from_numpy(image_noise(0, range(n), model.image_shape)).to(device)
        canvas = torch.zeros(n, *model.image_shape, dtype=torch.float64, device=device)
        known = torch.zeros_like(canvas, dtype=torch.bool)
        drawn, wanted = canvas.clone(), canvas.clone()
        size = (n, program.parameters, program.steps, *program.shape[1:])
        met, distributions = (canvas.new_full(size, torch.nan) for _ in range(2))
        plan.persistent.run(
            plan.new_state(program, {}, n, device), drawn, known, noise, model.head,
            first=0, last=program.duration, temperature=1.0, quantize=True, parameters=met,
        )  # fmt: skip

        def draw(parameters: Tensor, noise: Tensor) -> Tensor:
            return model.head.sample(parameters, noise, temperature=1.0)

        run_program(
            program, plan.new_state(program, {}, n, device), wanted, known, noise, draw,
            first=0, last=program.duration, parameters=distributions,
        )  # fmt: skip
    error = float((met - distributions).abs().max())
    if not error <= 1e-9:  # NaN too
        return f"parameters of draws are off by {error:.1e}, 1e-9 is allowed"
    return None if torch.equal(drawn, wanted) else "images differ from the eager executor's"
