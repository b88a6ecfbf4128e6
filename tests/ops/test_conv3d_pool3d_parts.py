"""A weight that is packed for a call, in parts of its output channels, each with memory that fits it."""

import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from tests.ops.test_conv3d_pool3d import FORMATS, normal, problem, rms
from vidgen.ops import conv3d_pool3d, conv3d_pool3d_pack

# the memory is a thread's, and never shrinks: only the first call of a process can find it too small
CALL = """
import sys, torch
from vidgen.ops import conv3d_pool3d, conv3d_pool3d_pack
threads, n, cin, cout, *size = map(int, sys.argv[1:])
torch.set_num_threads(threads)
x, w = torch.randn(n, cin, *size), torch.randn(cout, cin, 3, 3, 3)
y = conv3d_pool3d(x, w, impl="cpu")
assert torch.equal(y, conv3d_pool3d(x, w, packed=conv3d_pool3d_pack(w, input_size=size), impl="cpu"))
"""


@pytest.mark.parametrize(
    "arguments",
    [(1, 4, 96, 836, 4, 7, 7), (1, 4, 96, 964, 8, 4, 4), (1, 2, 96, 976, 4, 7, 7), (4, 1, 640, 952, 8, 16, 16)],
)
def test_a_smaller_last_part_may_be_computed_in_larger_tasks(arguments: tuple[int, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", CALL, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("cin", "cout", "size", "kernel", "dtype"),
    [
        (200, 250, (3, 14, 13), (3, 3, 3), torch.float32),
        (200, 250, (3, 14, 13), (3, 3, 3), torch.bfloat16),
        (300, 330, (2, 5, 4), (3, 3, 3), torch.float32),
        (200, 250, (2, 4, 5), (3, 3, 3), torch.float64),
    ],
)
def test_a_weight_packed_in_parts_gives_the_same_bits(cin, cout, size, kernel, dtype):
    """Deep layers: a call that packs for itself does so for some output channels after the other, the adjoint too."""
    x, w, b = problem(2, cin, cout, size, kernel, dtype)
    before = torch.get_num_threads()
    try:
        for memory_format, pool in itertools.product(FORMATS, (None, (2, 2, 2), (1, 3, 1))):
            packed = conv3d_pool3d_pack(w, input_size=size, pool=pool)
            rule = {"pool": pool, "ceil_mode": True, "impl": "cpu"}
            clips = x.contiguous(memory_format=memory_format)
            expected = conv3d_pool3d(clips, w, b, **rule, packed=packed)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                assert torch.equal(conv3d_pool3d(clips, w, b, **rule), expected)
        g = normal(2, cout, *size, seed=7, dtype=dtype)
        grads = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            grads.append(torch.ops.vidgen.conv3d_pool3d_grad_input(g, w, [1] * 6, "auto", "cpu"))
            assert torch.equal(grads[0], grads[-1])
        exact = F.conv_transpose3d(g.double(), w.double(), padding=1)
        tolerance = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 2e-2}[dtype]
        assert rms(grads[0].double() - exact) <= tolerance * rms(exact)
    finally:
        torch.set_num_threads(before)
