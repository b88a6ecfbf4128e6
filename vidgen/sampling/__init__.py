"""Drawing from autoregressive models."""

from vidgen.sampling import self_check
from vidgen.sampling.executors import EXECUTORS, Executor, Request
from vidgen.sampling.generate import AutoregressiveModel, generate
from vidgen.sampling.heads import Categorical, Head, LogisticMixture, round_to_levels, scale_levels
from vidgen.sampling.philox import image_noise, philox4x32, uniforms
from vidgen.sampling.plan import Plan, trace
from vidgen.sampling.schedule import NotCausalError
from vidgen.sampling.tracing import UntraceableError

self_check.register()

__all__ = [
    "EXECUTORS",
    "AutoregressiveModel",
    "Categorical",
    "Executor",
    "Head",
    "LogisticMixture",
    "NotCausalError",
    "Plan",
    "Request",
    "UntraceableError",
    "generate",
    "image_noise",
    "philox4x32",
    "round_to_levels",
    "scale_levels",
    "trace",
    "uniforms",
]
