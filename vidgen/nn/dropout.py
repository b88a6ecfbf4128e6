"""Dropout whose mask costs a fraction of what it is multiplied with.

On the CPU PyTorch draws one double per value from a sequential generator, which in small networks takes as long as the
convolutions around it. 16 random bits decide as well.
"""

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with four decisions per random number on the CPU; any shape, in place too.

    In training a value is dropped with probability p and else multiplied by 1 / (1 − p), each by itself; p is rounded
    to a multiple of 2⁻¹⁶, and the factor belongs to the rounded one, so that means are kept. The random numbers are
    torch's (`torch.manual_seed`), but not those of `torch.nn.Dropout`, which does the work on other devices and in
    compiled and exported graphs, where random numbers are made beside the product. As often differentiable as wanted.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (2014), §4.
    """

    def forward(self, input: Tensor) -> Tensor:
        dropped = round(self.p * _LEVELS)
        if not self.training or not 0 < dropped < _LEVELS:
            return super().forward(input)
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        # all 64 bits of each number are uniform
        numbers = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        # laid out as the input is, or the product would walk through memory in two orders
        strides = torch.empty_like(input, device="meta").stride()
        bits = numbers.view(torch.int16).as_strided(input.shape, strides)
        factors = (bits >= dropped - _LEVELS // 2).to(input.dtype).mul_(_LEVELS / (_LEVELS - dropped))
        return input.mul_(factors) if self.inplace else input * factors
