"""Every Triton kernel compiles for every supported GPU generation, within its registers and shared memory."""

import importlib
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from tests.kernels import aot
from tests.kernels.clips import NONE, Clip
from tests.kernels.correlations import Correlations
from tests.kernels.displacements import Displacement
from tests.kernels.pixels import Pixels
from tests.kernels.problems import Problem, float32_precision

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

# launcher module -> (problem, precision of float32, which launchers), chosen so that every way through a kernel
# (per tap or flat, coloured centre, pooling window, adjoint, both layouts, each kind of product) is compiled somewhere
LAUNCHES = {
    "corr_lookup": [
        (Correlations(256, False, (8, 16), (55, 128), 4, 4, 1), "ieee", "y"),
        (Correlations(256, False, (8, 16), (55, 128), 4, 4, 1, dtype=BF16, channels_last=True), "ieee", "y"),
        (Correlations(256, True, (55, 128), (55, 128), 4, 4, 1, channels_last=True), "ieee", "y"),
        (Correlations(128, True, (46, 62), (46, 62), 1, 3, 1, dtype=BF16), "ieee", "y"),
        (Correlations(20, True, (9, 7), (9, 7), 1, 2, 1, dtype=FP16), "ieee", "y"),
    ],
    "discretized_logistic_mixture": [
        (Pixels(3, 10, size=(32, 32)), "ieee", "y p"),
        (Pixels(3, 10, mode="openai", size=(28, 28), dtype=BF16, channels_last=True), "ieee", "y p"),
        (Pixels(2, 5, levels=32, size=(9, 7), dtype=FP16), "ieee", "y p"),
        (Pixels(1, 3, levels=2, size=(28, 28)), "ieee", "y p"),
    ],
    "masked_conv2d": [
        (Problem(128, 128, (3, 3), "B", size=(32, 32), dtype=BF16, channels_last=True), "ieee", "y x w"),
        (Problem(128, 128, (3, 3), "A", size=(32, 32), dtype=FP32), "tf32", "y w"),
        (Problem(96, 192, (3, 3), "B", 3, "blocked", 2, size=(32, 32), dtype=BF16), "ieee", "y x"),
        (Problem(3, 96, (7, 7), "A", 3, size=(28, 28), dtype=FP16), "ieee", "y x w"),
        (Problem(64, 48, (5, 5), "B", size=(8, 8), dtype=FP32, channels_last=True), "ieee", "y w"),
    ],
    "conv3d_pool3d": [
        (Clip(64, 128, pool=(2, 2, 2), size=(4, 28, 28), dtype=BF16, channels_last=True), "ieee", "y z x w"),
        (Clip(64, 128, pool=(1, 2, 2), size=(4, 28, 28), dtype=FP32), "tf32", "y z"),
        (Clip(3, 64, pool=(1, 2, 2), size=(4, 28, 28), dtype=FP16), "ieee", "y z w"),
        (Clip(48, 64, (1, 3, 3), (0, 0, 1, 1, 1, 1), (3, 2, 1), True, (3, 7, 7), "identity"), "ieee", "y"),
        (Clip(256, 256, (1, 1, 1), NONE, (4, 4, 4), size=(4, 8, 8), dtype=BF16, bias=False), "ieee", "z"),
    ],
    "warp": [
        (Displacement(3, (48, 64)), "ieee", "y x f"),
        (Displacement(64, (32, 32), dtype=BF16, channels_last=True), "ieee", "y x f"),
        (Displacement(128, (9, 7), padding="border", dtype=FP16), "ieee", "y x f"),
        (Displacement(1, (28, 28), padding="border"), "ieee", "y x f"),
    ],
}


def modules():
    folder = Path(__file__).parents[2] / "kernels"
    names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    return [importlib.import_module(f"vidgen.kernels.{name}") for name in names]


def perform(module, problem, which):
    if isinstance(problem, Pixels):
        params, x, grad = problem.tensors()
        module.forward(params, x, *problem.rule)
        if "p" in which:
            module.grad_params(grad, params, x, *problem.rule)
        return
    if isinstance(problem, Displacement):
        x, flow, grad = problem.tensors()
        module.forward(x, flow, problem.padding)
        if "x" in which:
            module.grad_x(grad, flow, problem.padding)
        if "f" in which:
            module.grad_flow(grad, x, flow, problem.padding)
        return
    if isinstance(problem, Correlations):
        module.forward(*problem.arguments())
        return
    if isinstance(problem, Clip):
        x, weight, bias, grad_y, grad_z = problem.tensors()
        adjoint = (problem.padding,)
        if "z" in which:
            module.grad_preactivation(grad_y, x, weight, bias, *problem.rule)
    else:
        x, weight, bias, grad_z = problem.tensors()
        adjoint = problem.rule
    if "y" in which:
        module.forward(x, weight, bias, *problem.rule)
    if "x" in which:
        module.grad_input(grad_z, weight, *adjoint)
    if "w" in which:
        module.grad_weight(grad_z, x, list(problem.kernel), *adjoint)


def launches(name, capability):
    module = importlib.import_module(f"vidgen.kernels.{name}")
    found = []
    for problem, precision, which in LAUNCHES[name]:
        with float32_precision(precision), aot.recorded(capability) as recorded:
            perform(module, problem, which)
        found += [(f"{launch.kernel.__name__}-{problem}", launch) for launch in recorded]
    return found


def test_there_is_something_to_compile():
    assert aot.entry_kernels(modules())


def test_every_kernel_is_compiled_by_a_launch():
    launched = {aot.qualified_name(launch.kernel) for name in LAUNCHES for _, launch in launches(name, (9, 0))}
    assert aot.entry_kernels(modules()) == launched


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)], ids=lambda pair: f"sm_{pair[0]}{pair[1]}")
@pytest.mark.parametrize("name", sorted(LAUNCHES))
def test_compiles_without_spilling(name, capability):
    architecture = 10 * capability[0] + capability[1]
    seen = set()
    for label, launch in launches(name, capability):
        key = (launch.kernel.__name__, str(launch.arguments), str(launch.options))
        if key in seen:
            continue
        seen.add(key)
        compiled, used = aot.compile_launch(launch, architecture)
        assert compiled.asm["cubin"], label
        assert used.shared_bytes <= aot.SHARED_MEMORY[architecture], label
        # a handful of bytes is a stack slot of the compiler's own; spilled accumulators are hundreds
        assert used.local_bytes <= 32, f"{label}: {used}"
    assert seen


@pytest.mark.parametrize("name", sorted(LAUNCHES))
def test_matrix_units_multiply_where_they_may(name):
    """16-bit and tf32 products go through the newest matrix instruction, exact float32 through none."""
    for label, launch in launches(name, (9, 0)):
        if launch.kernel.__name__ == "_convolve" and not launch.arguments["FLAT"]:
            ptx = aot.compile_launch(launch, 90)[0].asm["ptx"]
            found = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "fma"
            exact = launch.arguments["x"].dtype == FP32 and launch.arguments["PRECISION"] == "ieee"
            assert found == ("fma" if exact else "wgmma"), label


@pytest.mark.parametrize("capability", [(8, 6), (12, 0)], ids=lambda pair: f"sm_{pair[0]}{pair[1]}")
@pytest.mark.parametrize("name", sorted(LAUNCHES))
def test_the_tile_fits_the_shared_memory_of_smaller_cards(name, capability):
    module = importlib.import_module(f"vidgen.kernels.{name}")
    problem, precision, _ = LAUNCHES[name][0]
    with float32_precision(precision), aot.recorded(capability) as recorded:
        perform(module, problem, "y")
    architecture = 10 * capability[0] + capability[1]
    assert aot.compile_launch(recorded[0], architecture)[1].shared_bytes <= aot.SHARED_MEMORY[architecture]
