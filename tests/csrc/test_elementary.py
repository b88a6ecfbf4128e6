"""The vector functions of csrc/cpu/elementary.h, for every instruction set that this processor has."""

import ctypes
import subprocess
from pathlib import Path

import numpy
import pytest

from vidgen import _host

ROOT = Path(__file__).parents[2]
AVX512 = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
FLAGS = {"baseline": [], "avx2": AVX512[:3], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
#: what each level needs of /proc/cpuinfo
NEEDS = {"baseline": "", "avx2": "avx2 fma", "avx512": "avx512f avx512dq", "avx512_bf16": "avx512_bf16"}


def _exact(name, x):
    """In extended precision, 11 bits more than double."""
    x = x.astype(numpy.longdouble)
    with numpy.errstate(all="ignore"):
        if name == "sigmoid":
            return 1 / (1 + numpy.exp(-x))
        return getattr(numpy, name)(x)


#: name -> (units in the last place, where it is dense, the ends of its finite range)
FUNCTIONS = {
    "exp": (2, (-2, 2), {"float32": (-87, 88), "float64": (-708, 709)}),
    "expm1": (4, (-2, 2), {"float32": (-90, 88), "float64": (-710, 709)}),
    "log": (2, (0.25, 4), {"float32": (1e-38, 3e38), "float64": (1e-307, 1e308)}),
    "sigmoid": (4, (-20, 20), {"float32": (-80, 100), "float64": (-700, 800)}),
    "tanh": (4, (-2, 2), {"float32": (-50, 50), "float64": (-100, 100)}),
}


@pytest.fixture(scope="module", params=_host.isa_compiled())
def library(request, tmp_path_factory):
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    if not set(NEEDS[request.param].split()) <= flags:
        pytest.skip(f"this processor has no {request.param}")
    path = tmp_path_factory.mktemp("elementary") / "elementary.so"
    source, options = Path(__file__).with_name("elementary.cpp"), ["-std=c++20", "-O3", "-ffp-contract=off", "-shared"]
    command = ["c++", *options, "-fPIC", "-fno-math-errno", *FLAGS[request.param], "-I", ROOT / "csrc", source]
    subprocess.run([*command, "-o", path], check=True)
    return ctypes.CDLL(str(path))


def _run(library, name, x):
    padded = numpy.concatenate([x, numpy.zeros(-len(x) % 16, x.dtype)])
    y = numpy.full_like(padded, numpy.nan)
    function = getattr(library, f"{name}_{'float' if x.dtype == numpy.float32 else 'double'}")
    function(padded.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(padded)))
    return y[: len(x)]


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_few_units_in_the_last_place(library, name, dtype):
    limit, dense, finite = FUNCTIONS[name]
    rng = numpy.random.default_rng(0)
    low, high = finite[numpy.dtype(dtype).name]
    tiny = numpy.exp(rng.uniform(-60, 0, 20_000)) * (1 if name == "log" else rng.choice([-0.9, 1], 20_000))
    spread = rng.uniform(low, high, 50_000)
    if high > 1e30:
        spread = numpy.exp(rng.uniform(-20, numpy.log(high), 50_000))
    x = numpy.concatenate([rng.uniform(*dense, 100_000), tiny, spread, [low, high]]).astype(dtype)
    exact = _exact(name, x)
    error = numpy.abs(_run(library, name, x).astype(numpy.longdouble) - exact)
    ulp = numpy.spacing(numpy.maximum(numpy.abs(exact.astype(dtype)), numpy.finfo(dtype).tiny))
    worst = int(numpy.argmax(error / ulp))
    assert error[worst] / ulp[worst] < limit, f"{name}({x[worst]!r}): {float(error[worst] / ulp[worst])} ulp"


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_limits_are_those_of_the_c_library(library, name, dtype):
    info = numpy.finfo(dtype)
    ends = [
        0.0,
        -0.0,
        numpy.inf,
        -numpy.inf,
        numpy.nan,
        1.0,
        -1.0,
        1e4,
        -1e4,
        info.max,
        -info.max,
        info.tiny,
        -info.tiny,
    ]
    x = numpy.array([*ends, info.smallest_subnormal, 37 * info.smallest_subnormal], dtype)
    if name in ("exp", "expm1"):  # of the `exponential` that takes nothing larger
        x = x[~(x > FUNCTIONS[name][2][numpy.dtype(dtype).name][1])]
    got, want = _run(library, name, x), _exact(name, x).astype(dtype)
    numpy.testing.assert_allclose(got, want, rtol=4 * info.eps, atol=2 * info.smallest_subnormal)
    zeros = want == 0
    if name == "expm1":  # that of `exponential` is a sum, and 0 also of -0
        assert (got[zeros] == 0).all()
        return
    assert (numpy.signbit(got[zeros]) == numpy.signbit(want[zeros])).all()


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_the_quotient_of_small_numbers(library, dtype):
    """expm1(x) / x, also where x is no normal number."""
    rng = numpy.random.default_rng(0)
    x = numpy.concatenate([rng.uniform(-0.34, 0.34, 50_000), numpy.exp(rng.uniform(-740, -2, 5_000))]).astype(dtype)
    exact = numpy.ones(len(x), numpy.longdouble)
    exact[x != 0] = _exact("expm1", x[x != 0]) / x[x != 0]
    error = numpy.abs(_run(library, "quotient", x) - exact)
    assert float(error.max()) < 2 * numpy.finfo(dtype).eps


def test_exp_ends_in_zero(library):
    """Below 2^-126.5 (2^-1022.5 in doubles), so that no result has a reciprocal that is not finite."""
    for dtype in (numpy.float32, numpy.float64):
        least = numpy.finfo(dtype).tiny / 2**0.5
        end = float(numpy.log(least))
        x = numpy.linspace(end - 40, end + 1, 5000).astype(dtype)
        got = _run(library, "exp", x)
        assert ((got == 0) | (got >= 0.999 * least)).all()
        assert (got[x < end - 0.01] == 0).all()
        assert (got[x > end + 0.01] > 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_number_has_the_same_result_in_every_lane(library, name):
    for dtype in (numpy.float32, numpy.float64):
        x = numpy.exp(numpy.random.default_rng(1).uniform(-3, 3, 256)).astype(dtype)
        assert len({_run(library, name, numpy.roll(x, shift))[shift].tobytes() for shift in range(17)}) == 1
