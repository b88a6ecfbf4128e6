"""Triton kernels, one module per op, installed as `vidgen.kernels`.

A module holds its `@triton.jit` kernels, the launchers that vidgen.ops calls (torch tensors in and out), and
`aot_cases()`, which lists what the tests compile ahead of time for every supported GPU generation.
Nothing here knows vidgen.ops; only vidgen.ops imports it.
"""
