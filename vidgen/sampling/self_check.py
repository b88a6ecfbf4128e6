"""The self-check of executors that are behind the gate (`vidgen.ops.gate`): small networks, drawn from eagerly too.

It catches a card, driver or library on which a tested executor goes wrong.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.ops.gate import SelfCheck, register_self_check
from vidgen.sampling.executors import EXECUTORS, Request
from vidgen.sampling.heads import Categorical, Head, LogisticMixture
from vidgen.sampling.philox import image_noise
from vidgen.sampling.plan import trace

_BOUND = {torch.float64: 1e-10, torch.float32: 1e-4}  # on parameters of size 1


class _Network(nn.Module):
    """Waves as weights, so that nobody's random numbers are used up."""

    head: Head

    def __init__(self, image_shape: tuple[int, int, int], levels: int, sizes: list[tuple[int, int, int, int]]):
        super().__init__()
        self.image_shape, self.levels = image_shape, levels
        waves = (torch.sin(torch.arange(torch.Size(size).numel()) * 1.7 + i) for i, size in enumerate(sizes))
        self.weights = nn.ParameterList(
            wave.view(size) * size[1] ** -0.5 for wave, size in zip(waves, sizes, strict=True)
        )


def _above(x: Tensor, weight: Tensor) -> Tensor:
    """Rows above, columns to both sides."""
    rows, side = weight.shape[2] - 1, weight.shape[3] // 2
    return F.pad(F.conv2d(F.pad(x, (side, side, rows, 0)), weight), (0, 0, 1, 0))[:, :, :-1]


def _left(x: Tensor, weight: Tensor) -> Tensor:
    """This column and those before it, of this row."""
    return F.conv2d(F.pad(x, (weight.shape[3] - 1, 0)), weight)


class _Streams(_Network):
    """Strides and a transposed convolution: several kinds of row and pixel, and no wavefront."""

    def __init__(self) -> None:
        sizes = [(4, 3, 2, 5), (4, 3, 1, 2), (4, 4, 2, 2), (4, 4, 2, 2), (20, 4, 1, 1)]
        super().__init__((3, 5, 6), 16, sizes)
        self.head = LogisticMixture(2, 3, 16)

    def forward(self, x: Tensor) -> Tensor:
        above, left, down, up, out = self.weights
        v = _above(x, above) + F.pad(_left(x, left), (1, 0))[..., :-1]
        coarse = F.conv2d(F.pad(F.elu(v), (1, 0, 1, 0)), down, stride=2)
        fine = F.conv_transpose2d(torch.tanh(coarse), up, stride=2)[..., : v.shape[2], : v.shape[3]]
        return F.conv2d(fine + v * torch.sigmoid(v), out)


class _Stack(_Network):
    """Two layers that have a wavefront, and more channels than a tile of a kernel."""

    def __init__(self) -> None:
        sizes = [(36, 1, 1, 3), (36, 1, 1, 2), (36, 36, 1, 3), (36, 36, 1, 2), (4, 36, 1, 1)]
        super().__init__((1, 6, 9), 4, sizes)
        self.head = Categorical(4)

    def forward(self, x: Tensor) -> Tensor:
        above, left, above2, left2, out = self.weights
        y = torch.relu(_above(x, above) + F.pad(_left(x, left), (1, 0))[..., :-1])
        y = y + _above(y, above2) + _left(y, left2)
        return F.conv2d(y, out).unsqueeze(2)


def same_as_eager(name: str) -> SelfCheck:
    """A check that the executor `name` draws what "eager" draws, and from the same distributions."""

    def check(device: torch.device) -> str | None:
        # both are to multiply in float32, whatever the user allows elsewhere
        matmul = torch.backends.cuda.matmul
        allowed, matmul.allow_tf32 = matmul.allow_tf32, False
        try:
            return compare(device)
        finally:
            matmul.allow_tf32 = allowed

    def compare(device: torch.device) -> str | None:
        rows = {row.name: row for row in EXECUTORS}
        for network in (_Streams(), _Stack()):
            for dtype, bound in _BOUND.items():
                model = network.to(device, dtype).eval()
                plan, n = trace(model), 3
                found = []
                for row in (rows[name], rows["eager"]):
                    request = _request(model, n, dtype, device)
                    images = row.run((model, plan), request)
                    found.append((images, request.parameters))
                (images, met), (expected, parameters) = found
                assert met is not None
                assert parameters is not None
                error = float((met - parameters).abs().max())
                if not error <= bound:  # NaN too
                    return f"{dtype} is off by {error:.1e}, {bound:.0e} is allowed"
                if not torch.equal(images, expected):
                    return f"{dtype} draws other images"
        return None

    return check


def _request(model: _Network, n: int, dtype: torch.dtype, device: torch.device) -> Request:
    """In float64 most pixels are drawn; in float32, where a last bit may flip a draw, one column is."""
    size = (n, *model.image_shape)
    levels = torch.arange(torch.Size(size).numel(), device=device).view(size) * 7 % model.levels
    known = torch.full(size, dtype == torch.float32, dtype=torch.bool, device=device)
    known[:, :, :, 2] = False
    known[:, :, 1] = True
    known[0, :, 2, 3] = True
    steps = model.head.steps_per_pixel(size[1])
    recorded = (n, model.weights[-1].shape[0], steps, *size[2:])
    return Request(
        noise=torch.from_numpy(image_noise(0, range(n), model.image_shape)).to(device),
        values=levels.to(dtype) * (2 / (model.levels - 1)) - 1,
        known=known,
        conditions={},
        temperature=1.0,
        quantize=True,
        parameters=torch.full(recorded, torch.nan, dtype=dtype, device=device),
    )


def register() -> None:
    """Tells the gate how its executors are checked."""
    for executor in EXECUTORS:
        if executor.gated:
            register_self_check("sampling", executor.name, same_as_eager(executor.name))
