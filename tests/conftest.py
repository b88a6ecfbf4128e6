"""Where the op matrix runs, and memory that shows when somebody reads what nobody wrote."""

import os

os.environ["VIDGEN_POISON_SCRATCH"] = "1"  # read when the native library first runs a kernel
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that have nothing to do leave the cores to the other process

import hypothesis
import pytest
import torch

# how long an example takes is a matter of the machine
hypothesis.settings.register_profile("vidgen", deadline=None)
hypothesis.settings.load_profile("vidgen")

#: device type -> backends that a test may force there
BACKENDS = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`device` runs over the CPU and, where there is one, the GPU; `device, impl` over every backend there too."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    marks = {"cpu": (), "cuda": (pytest.mark.gpu,)}
    if "impl" in metafunc.fixturenames and "device" in metafunc.fixturenames:
        pairs = [(device, impl) for device in devices for impl in BACKENDS[device]]
        metafunc.parametrize(("device", "impl"), [pytest.param(d, i, marks=marks[d], id=f"{d}-{i}") for d, i in pairs])
    elif "device" in metafunc.fixturenames:
        metafunc.parametrize("device", [pytest.param(d, marks=marks[d]) for d in devices])


@pytest.fixture(autouse=True)
def seeded():
    """A test sees the same random numbers alone, among others and on every run."""
    torch.manual_seed(0)


@pytest.fixture
def poisoned():
    """torch.empty gives NaNs, so that an output element that nobody writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """Sets the thread count; the old one comes back at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
