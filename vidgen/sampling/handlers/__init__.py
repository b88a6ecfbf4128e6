"""What the ops of a forward pass mean to `vidgen.sampling.tracing`: one function per ATen op.

A handler takes the tracer, the op, its real result and its arguments, and returns the meaning of each tensor that came
out. Tensors here are (1, *channels, H, W): all but the first and the last two dimensions are channels.
"""

from vidgen.sampling.handlers import channels, convolutions, functions
from vidgen.sampling.handlers.registry import HANDLERS, VALUE_FREE

__all__ = ["HANDLERS", "VALUE_FREE", "channels", "convolutions", "functions"]
