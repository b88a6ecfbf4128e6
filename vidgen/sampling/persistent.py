"""Sampling programs for the persistent CUDA kernel (csrc/cuda/sample_causal.cu): its scripts, and a run of one.

One launch runs some rows, or times of a wavefront, for the whole batch; nothing is copied to the host in between. A
script says what the kernel does from one meeting of its blocks to the next. It is the same for every batch, so the
scripts of an image are kept as long as they are small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidgen.ops.backends import cuda_available
from vidgen.sampling import native
from vidgen.sampling.heads import Categorical, LogisticMixture
from vidgen.sampling.program import Program

KEPT_BYTES = 128 * 2**20
"""Scripts that a program keeps on its device: PixelCNN++ of 5 resnets has 74 MB of them for 32×32 pixels."""


class PersistentProgram:
    """A program as the kernel reads it, on a CUDA device.

    Args:
        program: of `vidgen.sampling.trace`.
        dtype: float32 or float64, of the state.
        device: where it runs.
    """

    def __init__(self, program: Program, dtype: torch.dtype, device: torch.device):
        self._words = native.program_words(program)
        numbers = native.program_numbers(program, dtype)
        self._packed = torch.ops.vidgen.sample_causal_cuda_pack(self._words, numbers).to(device)
        self._device = device
        self._scripts: dict[tuple[int, int, bool, int], Tensor] = {}
        self._kept = 0

    def _script(self, first: int, last: int, whole_rows: bool, top: int) -> Tensor:
        key = (first, last, whole_rows, top)
        if key not in self._scripts:
            script: Tensor = torch.ops.vidgen.sample_causal_cuda_script(self._words, *key).to(self._device)
            if self._kept + script.numel() > KEPT_BYTES:
                return script
            self._kept += script.numel()
            self._scripts[key] = script
        return self._scripts[key]

    def run(
        self,
        state: Tensor,
        canvas: Tensor,
        known: Tensor,
        noise: Tensor,
        head: Categorical | LogisticMixture,
        *,
        first: int,
        last: int,
        temperature: float,
        quantize: bool,
        whole_rows: bool = False,
        top: int = 0,
        parameters: Tensor | None = None,
    ) -> None:
        """Runs moments first … last − 1 in place; arguments as for `vidgen.sampling.interpreter.run_program`."""
        torch.ops.vidgen.sample_causal_cuda(
            self._words,
            self._script(first, last, whole_rows, top),
            self._packed,
            state,
            canvas,
            known,
            noise,
            parameters,
            head.levels,
            head.mixtures if isinstance(head, LogisticMixture) else 0,
            temperature,
            quantize,
        )


def supports(dtype: torch.dtype, device: torch.device, head: object) -> str | None:
    """None, or why the kernel cannot draw from a model."""
    if device.type != "cuda":
        return f"it runs on CUDA devices, the model is on {device}"
    return cuda_available() or native.supports_numbers(dtype, head)
