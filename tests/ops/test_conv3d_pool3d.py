"""conv3d_pool3d: the mathematics, pooling's fine print, gradients, error bounds, packing, memory, messages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.levels import LEVELS, run_on
from vidgen import _host
from vidgen.ops import conv3d_pool3d, conv3d_pool3d_pack
from vidgen.ops.conv3d_pool3d import plan_of

FORMATS = (torch.contiguous_format, torch.channels_last_3d)


def normal(*size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)


def problem(n, cin, cout, size, kernel, dtype=torch.float32, seed=0):
    """x, weight and bias with outputs of a standard deviation near 1."""
    weight = normal(cout, cin, *kernel, seed=seed + 1, dtype=torch.float64) / (cin * np.prod(kernel)) ** 0.5
    return normal(n, cin, *size, seed=seed, dtype=dtype), weight.to(dtype), normal(cout, seed=seed + 2, dtype=dtype)


def eager(x, weight, bias, *, padding="same", activation="relu", pool=None, ceil_mode=False):
    """What a user of PyTorch writes."""
    y = F.conv3d(x, weight, bias, padding=padding)
    y = y.relu() if activation == "relu" else y
    return F.max_pool3d(y, pool, ceil_mode=ceil_mode) if pool else y


def by_hand(x, weight, bias, before, after, activation, pool, ceil_mode):
    """The formula, tap by tap and window by window, in numpy."""
    x, weight, bias = x.numpy(), weight.numpy(), bias.numpy()
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    size = [s - k + 1 for s, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
    z = np.zeros((x.shape[0], weight.shape[0], *size)) + bias[:, None, None, None]
    for p, q, r in itertools.product(*(range(k) for k in weight.shape[2:])):
        window = x[:, :, p : p + size[0], q : q + size[1], r : r + size[2]]
        z += np.einsum("ncdhw,oc->nodhw", window, weight[:, :, p, q, r])
    z = np.maximum(z, 0) if activation == "relu" else z
    pooled = [-(-s // k) if ceil_mode else s // k for s, k in zip(size, pool, strict=True)]
    y = np.empty((*z.shape[:2], *pooled))
    for d, h, w in itertools.product(*(range(s) for s in pooled)):
        window = [slice(i * k, (i + 1) * k) for i, k in zip((d, h, w), pool, strict=True)]
        y[:, :, d, h, w] = z[(slice(None), slice(None), *window)].max((2, 3, 4))
    return torch.from_numpy(y)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("kernel", "padding", "before", "after"),
    [
        ((3, 3, 3), "same", (1, 1, 1), (1, 1, 1)),
        ((2, 4, 3), "same", (0, 1, 1), (1, 2, 1)),
        ((3, 2, 5), "valid", (0, 0, 0), (0, 0, 0)),
        ((3, 3, 3), (0, 2, 1), (0, 2, 1), (0, 2, 1)),
        ((1, 3, 3), 0, (0, 0, 0), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize(("pool", "ceil_mode"), [(None, False), ((2, 2, 2), False), ((2, 3, 4), True)])
def test_is_the_formula(impl, kernel, padding, before, after, pool, ceil_mode):
    x, w, b = problem(2, 3, 4, (5, 7, 9), kernel, torch.float64)
    for activation in ("relu", "identity"):
        expected = by_hand(x, w, b, before, after, activation, pool or (1, 1, 1), ceil_mode)
        rule = {"padding": padding, "activation": activation, "pool": pool, "ceil_mode": ceil_mode}
        torch.testing.assert_close(conv3d_pool3d(x, w, b, **rule, impl=impl), expected)


#: shapes for which the cost model takes each of the forms
FORMS = {
    "Winograd F(2 x 4 x 4)": ((64, 64, (4, 12, 13), (3, 3, 3)), torch.float32),
    "Winograd F(2 x 2 x 2)": ((64, 96, (4, 6, 6), (3, 3, 3)), torch.float32),
    "Winograd F(1 x 4 x 4)": ((48, 64, (1, 14, 15), (1, 3, 3)), torch.float32),
    "Winograd F(1 x 2 x 2)": ((64, 64, (2, 6, 6), (1, 3, 3)), torch.float32),
    "Winograd F(4 x 4), 3 taps of depth": ((3, 64, (7, 15, 24), (3, 3, 3)), torch.float32),
    "Winograd F(4 x 4), 4 taps of depth": ((19, 24, (5, 8, 11), (4, 3, 3)), torch.float32),
    "Winograd F(2 x 2), 5 taps of depth": ((20, 64, (6, 11, 12), (5, 5, 5)), torch.float32),
    "Winograd F(2 x 2), 1 tap of depth": ((24, 70, (1, 11, 12), (1, 5, 5)), torch.float32),
    "direct": ((3, 64, (3, 12, 14), (3, 3, 4)), torch.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_are_covered(form):
    """What the tests below say of Winograd forms they would otherwise say of none."""
    (cin, cout, size, kernel), dtype = FORMS[form]
    x, w, _ = problem(1, cin, cout, size, kernel, dtype)
    if _host.isa().startswith("avx512"):
        assert plan_of(x, w).startswith(form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pool", [None, (1, 2, 2), (2, 2, 2), (1, 3, 1), (4, 4, 4)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_every_form_pools_and_routes(form, pool, memory_format):
    """Forward and all gradients of each form against float64 autograd; some windows cross tiles, some are cut short."""
    (cin, cout, size, kernel), dtype = FORMS[form]
    x, w, b = (t.requires_grad_() for t in problem(2, cin, cout, size, kernel, dtype))
    clips = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    y = conv3d_pool3d(clips, w, b, pool=pool, ceil_mode=True, impl="cpu")
    doubles = [t.detach().double().requires_grad_() for t in (x, w, b)]
    exact = eager(*doubles, pool=pool, ceil_mode=True)
    assert rms(y.detach().double() - exact) <= 5e-6 * rms(exact)
    g = normal(*y.shape, seed=9, dtype=dtype)
    got = torch.autograd.grad(y, (clips, w, b), g)
    want = torch.autograd.grad(exact, doubles, g.double())
    for name, ours, theirs in zip(("x", "weight", "bias"), got, want, strict=True):
        # a maximum that two positions share to rounding may go to the other one: a few elements, not the sum
        assert rms(ours.double() - theirs) <= 1e-3 * rms(theirs), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize(("pool", "ceil_mode"), [((2, 2, 2), False), ((1, 2, 3), True), ((4, 4, 4), True)])
def test_the_first_of_equal_maxima_gets_the_gradient(dtype, activation, pool, ceil_mode):
    """Small integers: sums are exact and most windows hold several equal maxima, at zero too."""
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.randint(-1, 2, s, generator=generator).to(dtype).requires_grad_()
        for s in [(2, 3, 5, 7, 9), (20, 3, 3, 3, 3)]
    )
    b = torch.zeros(20, dtype=dtype, requires_grad=True)
    rule = {"activation": activation, "pool": pool, "ceil_mode": ceil_mode}
    y, expected = conv3d_pool3d(x, w, b, **rule, impl="cpu", algorithm="direct"), eager(x, w, b, **rule)
    assert torch.equal(y, expected)
    g = torch.randint(-3, 4, y.shape, generator=generator).to(dtype)
    for ours, theirs in zip(*(torch.autograd.grad(t, (x, w, b), g) for t in (y, expected)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pool", [None, (1, 2, 2), (2, 3, 2)])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_nan_and_infinity_come_through_as_in_pytorch(pool, activation):
    """In the direct form, value by value; a Winograd form may spread them over a tile, but never loses one."""
    x, w, b = problem(1, 16, 16, (4, 10, 11), (3, 3, 3))
    x[0, 3, 1, 4, 5], x[0, 2, 3, 8, 1], w[5, 3, 1, 1, 1] = float("nan"), float("inf"), float("-inf")
    rule = {"pool": pool, "activation": activation, "ceil_mode": True}
    expected = eager(x, w, b, **rule)
    direct = conv3d_pool3d(x, w, b, **rule, algorithm="direct", impl="cpu")
    torch.testing.assert_close(direct, expected, equal_nan=True)
    fast = conv3d_pool3d(x, w, b, **rule, impl="cpu")
    assert not fast[expected.isnan()].isfinite().any()


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("kernel", "rule"),
    [
        ((3, 3, 3), {"pool": (2, 2, 2)}),
        ((3, 3, 3), {"pool": None}),
        ((1, 3, 2), {"pool": (1, 2, 3), "ceil_mode": True, "activation": "identity"}),
        ((2, 2, 2), {"pool": None, "activation": "identity", "padding": "valid"}),
    ],
)
def test_gradients_of_first_and_second_order(impl, kernel, rule):
    leaves = [t.requires_grad_() for t in problem(1, 2, 2, (2, 3, 4), kernel, torch.float64)]

    def function(x, w, b):
        return conv3d_pool3d(x, w, b, **rule, impl=impl)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_nothing_unpooled_is_kept_for_the_backward():
    """What autograd holds is the input, the weight and the bias: no z, no positions of maxima."""
    x, w, b = (t.requires_grad_() for t in problem(2, 8, 16, (4, 16, 16), (3, 3, 3)))
    kept: dict[int, int] = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        conv3d_pool3d(x, w, b, pool=(2, 2, 2))
    assert sum(kept.values()) == x.nbytes + w.nbytes + b.nbytes


def rms(t):
    return t.double().pow(2).mean().sqrt().item()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", ["normal", "wide", "offset"])
def test_error_bounds(form, scale):
    """Against float64, relative to eager PyTorch in the same dtype.

    wide: channels from 1e-6 to 1e6; offset: all far from zero.
    """
    (cin, cout, size, kernel), _ = FORMS[form]
    for dtype in (torch.float32, torch.bfloat16):
        x, w, _ = problem(1, cin, cout, size, kernel, dtype, seed=3)
        if scale == "wide":
            x = x * torch.logspace(-6, 6, cin)[:, None, None, None].to(dtype)
        elif scale == "offset":
            x = x + 100
        # a bias would enlarge the output, and with it what rounding to bfloat16 costs eager PyTorch
        exact = eager(x.double(), w.double(), None, activation="identity")
        theirs = rms(eager(x, w, None, activation="identity") - exact) / rms(exact)
        for algorithm in ("auto", "direct"):
            y = conv3d_pool3d(x, w, activation="identity", algorithm=algorithm, impl="cpu")
            ours = rms(y - exact) / rms(exact)
            if dtype == torch.bfloat16:
                assert ours <= 3 * theirs
            elif algorithm == "direct":
                assert ours <= 2 * theirs
            else:
                assert ours <= min(5e-6, 16 * theirs)


shapes = st.fixed_dictionaries(
    {
        "n": st.integers(1, 3),
        "cin": st.integers(1, 40),
        "cout": st.integers(1, 70),
        "size": st.tuples(st.integers(1, 6), st.integers(1, 14), st.integers(1, 17)),
        "kernel": st.one_of(
            st.sampled_from([(3, 3, 3), (1, 3, 3)]), st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7))
        ),
        "pool": st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
        "activation": st.sampled_from(["relu", "identity"]),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
        "memory_format": st.sampled_from(FORMATS),
    }
)


@settings(max_examples=120, derandomize=True)
@given(shapes)
def test_any_shape_and_its_adjoints(s):
    """Forward against float64, and ⟨z(x), g⟩ = ⟨x, z*(g)⟩ = ⟨w, grad_w⟩ where nothing is pooled."""
    dtype = s["dtype"]
    x, w, b = problem(s["n"], s["cin"], s["cout"], s["size"], s["kernel"], dtype)
    x = x.contiguous(memory_format=s["memory_format"])
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    rule = {"pool": s["pool"], "activation": s["activation"], "ceil_mode": True}
    exact = eager(x.double(), w.double(), b.double(), **rule)
    y = conv3d_pool3d(x, w, b, **rule, impl="cpu")
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance * (rms(exact) + 1e-30) * 4)
    x.requires_grad_(), w.requires_grad_()
    z = conv3d_pool3d(x, w, activation="identity", impl="cpu")
    g = normal(*z.shape, seed=2, dtype=dtype)
    grad_x, grad_w = torch.autograd.grad(z, (x, w), g)
    exact = eager(x.detach().double(), w.detach().double(), None, activation="identity")
    inner, size = (exact * g.double()).sum(), exact.abs().mul(g.double().abs()).sum() + 1e-30
    assert ((x.double() * grad_x.double()).sum() - inner).abs() <= tolerance * size
    assert ((w.double() * grad_w.double()).sum() - inner).abs() <= tolerance * size


C3D_LAYERS = (
    (3, 64, (16, 112, 112), (1, 2, 2)),
    (64, 128, (16, 56, 56), (2, 2, 2)),
    (128, 256, (8, 28, 28), None),
    (256, 256, (8, 28, 28), (2, 2, 2)),
    (256, 512, (4, 14, 14), None),
    (512, 512, (4, 14, 14), (2, 2, 2)),
    (512, 512, (2, 7, 7), None),
    (512, 512, (2, 7, 7), (2, 2, 2)),
)


@pytest.mark.parametrize("known", [True, False], ids=["sizes known", "sizes unknown"])
def test_packed_weights_of_c3d_stay_below_four_times_their_size(known):
    packed = raw = 0
    for cin, cout, size, pool in C3D_LAYERS:
        around = [1] * 6
        arguments = ([cout, cin, 3, 3, 3], torch.float32, list(size) if known else [], around, list(pool or (1, 1, 1)))
        packed += torch.ops.vidgen.conv3d_pool3d_packed_bytes(*arguments, "auto")
        raw += 4 * cin * cout * 27
    assert packed <= 4 * raw


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_prepacked_weight_gives_the_same_bits(form, dtype):
    (cin, cout, size, kernel), _ = FORMS[form]
    x, w, b = problem(2, cin, cout, size, kernel, dtype)
    for algorithm in ("auto", "direct"):
        packed = conv3d_pool3d_pack(w, input_size=size, pool=(1, 2, 2), algorithm=algorithm)
        rule = {"pool": (1, 2, 2), "ceil_mode": True, "algorithm": algorithm, "impl": "cpu"}
        assert torch.equal(conv3d_pool3d(x, w, b, **rule, packed=packed), conv3d_pool3d(x, w, b, **rule))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_kernels_of_one_tap_give_the_same_bits_in_both_layouts(dtype, activation):
    """Contiguous clips are multiplied without a transposition, in the same order; also where rows have gaps."""
    for cin, cout, size in ((1, 1, (1, 1, 1)), (5, 3, (2, 3, 5)), (130, 37, (2, 9, 15)), (300, 70, (3, 11, 13))):
        x, w, b = problem(2, cin, cout, size, (1, 1, 1), dtype)
        rule = {"activation": activation, "impl": "cpu"}
        y = conv3d_pool3d(x, w, b, **rule)
        exact = eager(x.double(), w.double(), b.double(), activation=activation)
        assert rms(y.double() - exact) <= (1e-14 if dtype == torch.float64 else 1e-6) * rms(exact)
        spread = torch.zeros(2, cin, *(2 * s for s in size), dtype=dtype)[:, :, : size[0], : size[1], : size[2]]
        for clips in (x.contiguous(memory_format=torch.channels_last_3d), spread.copy_(x)):
            assert torch.equal(conv3d_pool3d(clips, w, b, **rule), y)
        assert torch.equal(conv3d_pool3d(x[1:], w, b, **rule), y[1:])


def test_a_weight_packed_for_other_clips_serves_these_too():
    """A network that is fed clips of another size keeps its packed weights, in the form that they are in."""
    w = problem(1, 64, 80, (1, 1, 1), (3, 3, 3))[1]
    for other in ((8, 28, 28), (2, 3, 3), None):
        packed = conv3d_pool3d_pack(w, input_size=other)
        for size in ((1, 1, 1), (2, 7, 6), (5, 13, 11)):
            x = normal(2, 64, *size)
            exact = eager(x.double(), w.double(), None)
            assert rms(conv3d_pool3d(x, w, packed=packed) - exact) <= 5e-6 * rms(exact)


def test_a_foreign_packed_weight_is_refused():
    x, w, _ = problem(1, 32, 32, (2, 8, 8), (3, 3, 3))
    foreign = {
        "other channels": conv3d_pool3d_pack(w[:16]),
        "other dtype": conv3d_pool3d_pack(w.bfloat16()),
        "no weight": torch.zeros_like(conv3d_pool3d_pack(w)),
    }
    for packed in foreign.values():
        with pytest.raises(RuntimeError, match=r"packed must be what conv3d_pool3d_pack gives .* pack again"):
            conv3d_pool3d(x, w, packed=packed)
    with pytest.raises(RuntimeError, match="pack again"):
        conv3d_pool3d(x, w, packed=conv3d_pool3d_pack(w, input_size=(4, 28, 28)), algorithm="direct")


def test_a_plan_for_every_call():
    """Whatever can be computed can be explained, an empty batch included."""
    for n, size in itertools.product((0, 1, 3), ((1, 1, 1), (2, 7, 6), (4, 12, 13))):
        for cin, cout in ((3, 64), (64, 3), (64, 64)):
            assert "per task" in plan_of(normal(n, cin, *size), normal(cout, cin, 3, 3, 3))


def test_a_lazily_cloned_input_stays_shared():
    """Reading is not writing: a copy-on-write clone keeps the memory of its source."""
    for cin in (3, 64):
        x, w, b = problem(1, cin, 64, (4, 12, 12), (3, 3, 3))
        clone = torch._lazy_clone(x)
        assert torch.equal(conv3d_pool3d(clone, w, b, pool=(2, 2, 2)), conv3d_pool3d(x, w, b, pool=(2, 2, 2)))
        assert torch._C._is_cow_tensor(clone)


@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_forward_mode_is_refused(name):
    """PyTorch gives a custom op's output no tangent, and says nothing."""
    arguments = dict(zip(("x", "weight", "bias"), problem(1, 2, 3, (2, 4, 4), (3, 3, 3)), strict=True))
    with torch.autograd.forward_ad.dual_level():
        arguments[name] = torch.autograd.forward_ad.make_dual(arguments[name], torch.ones_like(arguments[name]))
        with pytest.raises(RuntimeError, match=f"{name} must not carry a tangent"):
            conv3d_pool3d(**arguments)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_backward_under_autocast_computes_in_the_forward_s_dtype(impl):
    """Autocast has cast what was to be cast; nothing of the backward is cast again."""
    leaves = [t.requires_grad_() for t in problem(1, 16, 16, (4, 8, 8), (3, 3, 3))]
    y = conv3d_pool3d(*leaves, pool=(2, 2, 2), impl=impl, algorithm="direct")
    outside = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(y.sum(), leaves)
    for a, b in zip(outside, inside, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level):
    # the contract's own tests run on every level for masked_conv2d's sake (test_masked_conv2d.py), for all ops
    run_on(level, [__file__], "any_shape or every_form or error_bounds or is_the_formula or first_of_equal")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "gelu"}, ValueError, "activation must be 'relu' or 'identity', got 'gelu'"),
        ({"pool": (1, 5, 1)}, ValueError, r"pool must be windows of 1 to 4 per axis, or None, got \(1, 5, 1\)"),
        ({"pool": (2, 2)}, ValueError, r"pool must be an int or three ints \(depth, height, width\), got \(2, 2\)"),
        ({"pool": (4, 1, 1)}, ValueError, r"pool must fit into the convolution's output \(3, 5, 6\)"),
        ({"padding": 3}, ValueError, "padding must be from 0 to kernel size - 1, got 3 for a depth of 3 taps"),
        ({"padding": "full"}, ValueError, "padding must be 'same', 'valid', an int or three ints, got 'full'"),
        ({"algorithm": "fft"}, ValueError, "algorithm must be 'auto' or 'direct', got 'fft'"),
        ({"weight": normal(6, 4, 3, 8, 3)}, ValueError, r"weight must have 1 to 7 taps per axis, got \(3, 8, 3\)"),
        ({"weight": normal(0, 4, 3, 3, 3)}, ValueError, "weight must have at least one channel in and out"),
        ({"padding": 1.5}, ValueError, r"padding must be an int or three ints .* got 1.5"),
        ({"weight": normal(6, 4, 3, 3)}, ValueError, r"weight must be 5-d .* got shape \(6, 4, 3, 3\)"),
        ({"x": normal(1, 5, 3, 5, 6)}, ValueError, r"x must be \(N, 4, D, H, W\) .* got \(1, 5, 3, 5, 6\)"),
        ({"x": normal(1, 4, 1, 5, 6), "padding": 0}, ValueError, "x must be at least as large as the kernel"),
        ({"x": torch.ones(1, 4, 3, 5, 6, dtype=torch.int64)}, TypeError, "x must be a floating-point tensor"),
        ({"bias": normal(5)}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
        ({"bias": normal(6, dtype=torch.float64)}, TypeError, "x, weight and bias must have one dtype"),
        ({"impl": "triton"}, RuntimeError, "impl='triton' cannot run here: the tensors are on the CPU"),
    ],
)
def test_messages_name_the_argument(change, error, message):
    arguments = {"x": normal(1, 4, 3, 5, 6), "weight": normal(6, 4, 3, 3, 3), **change}
    with pytest.raises(error, match=message):
        conv3d_pool3d(**arguments)


def test_torch_ops_check_too():
    """Whoever calls the torch op directly gets a sentence as well, not a crash."""
    op, x, w = torch.ops.vidgen.conv3d_pool3d, normal(1, 4, 3, 5, 6), normal(6, 4, 3, 3, 3)
    rule = ([1] * 6, "relu", [1, 1, 1], False, "auto", None, None)
    with pytest.raises(RuntimeError, match="x must have 4 channels"):
        op(normal(1, 3, 3, 5, 6), w, None, *rule)
    for index, value, message in [
        (0, [1, 1], "padding must be six numbers"),
        (0, [3] * 6, "padding must be from 0"),
        (1, "gelu", "activation must be"),
        (2, [2, 2], "pool must be three numbers"),
        (2, [9, 1, 1], "pool must be windows of 1 to 4"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            op(x, w, None, *rule[:index], value, *rule[index + 1 :])
