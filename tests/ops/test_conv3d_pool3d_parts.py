"""A weight that is packed for a call, in parts of its output channels, each with memory that fits it."""

import subprocess
import sys

import pytest

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
