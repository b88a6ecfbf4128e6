"""masked_conv2d: the mathematics, causality to the bit, gradients, error bounds, packing, messages."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.levels import LEVELS, run_on
from vidgen.ops import masked_conv2d, masked_conv2d_pack
from vidgen.ops.masked_conv2d import keep_mask, plan_of, reference


def normal(*size, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).to(device)


def dense(x, weight, bias=None, *, mask, colors=1, color_layout="interleaved", dilation=1):
    """The textbook form: an ordinary convolution with the weight masked beforehand."""
    keep = keep_mask(tuple(weight.shape), mask, colors, color_layout).to(weight.device)
    weight = torch.where(keep, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
    padding = [dilation * (k // 2) for k in weight.shape[2:]]
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation)


def refused(impl, dtype, cin):
    """What a GPU backend's row says it does not do."""
    return (impl in ("triton", "cuda") and dtype == torch.float64) or (impl == "cuda" and cin > 4)


def test_keep_mask_is_the_definition():
    """Written out pixel by pixel and colour by colour, for both layouts."""
    for mask, colors, layout, (kh, kw) in itertools.product(
        "AB", (1, 2, 3), ("interleaved", "blocked"), [(3, 3), (1, 5), (5, 1)]
    ):
        cout, cin = 12, 6
        keep = keep_mask((cout, cin, kh, kw), mask, colors, layout)
        for o, c, p, q in itertools.product(range(cout), range(cin), range(kh), range(kw)):
            color_o = o % colors if layout == "interleaved" else o // (cout // colors)
            color_c = c % colors if layout == "interleaved" else c // (cin // colors)
            if (p, q) != (kh // 2, kw // 2):
                expected = (p, q) < (kh // 2, kw // 2)
            else:
                expected = color_c < color_o or (mask == "B" and color_c == color_o)
            assert keep[o, c, p, q] == expected


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("layout", ["interleaved", "blocked"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_reference_is_a_convolution_with_the_masked_weight(mask, colors, layout, dilation, device):
    x, w, b = (normal(*s, dtype=torch.float64, device=device) for s in [(2, 6, 7, 8), (9, 6, 3, 5), (9,)])
    rule = {"mask": mask, "colors": colors, "color_layout": layout, "dilation": dilation}
    torch.testing.assert_close(reference(x, w, b, mask, colors, layout, dilation), dense(x, w, b, **rule))


# cin, cout, height, width, kernel, options; the first ones are large enough that Winograd forms are chosen
CAUSAL = {
    "3x3-B": (64, 64, 12, 21, (3, 3), {"mask": "B"}),
    "3x3-A": (64, 64, 12, 21, (3, 3), {"mask": "A"}),
    "5x5-B": (48, 64, 11, 18, (5, 5), {"mask": "B"}),
    "5x5-A": (48, 64, 11, 18, (5, 5), {"mask": "A"}),
    "7x7-B": (48, 64, 13, 19, (7, 7), {"mask": "B"}),
    "7x7-A": (48, 64, 13, 19, (7, 7), {"mask": "A"}),
    "3x3-B-colors": (48, 96, 9, 17, (3, 3), {"mask": "B", "colors": 3}),
    "5x5-B-blocked": (48, 96, 9, 17, (5, 5), {"mask": "B", "colors": 3, "color_layout": "blocked"}),
    "7x7-A-colors": (3, 33, 8, 11, (7, 7), {"mask": "A", "colors": 3}),
    "7x7-A-grey": (1, 64, 9, 10, (7, 7), {"mask": "A"}),
    "3x3-dilated": (16, 32, 9, 14, (3, 3), {"mask": "B", "dilation": 2}),
    "1x1-B-colors": (12, 24, 5, 6, (1, 1), {"mask": "B", "colors": 3}),
    "1x7": (32, 32, 4, 30, (1, 7), {"mask": "B"}),
}


def test_the_causal_cases_cover_the_winograd_form():
    """If none of them were computed by Winograd, the tests below would not see its trap (a tile reads ahead)."""
    x, w = normal(1, 64, 12, 21), normal(64, 64, 3, 3)
    if "baseline" not in plan_of(x, w):
        assert "Winograd" in plan_of(x, w)


def colors_of(channels, colors, layout):
    index = torch.arange(channels)
    return index % colors if layout == "interleaved" else index * colors // channels


@pytest.mark.parametrize("case", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_no_later_pixel_changes_an_earlier_output_by_a_bit(case, dtype, channels_last, device, impl):
    """At every position of a spread, everything after it (later colours of the same pixel included) is replaced."""
    cin, cout, height, width, kernel, options = CAUSAL[case]
    if refused(impl, dtype, cin):
        return
    if impl == "reference" and (dtype == torch.bfloat16 or channels_last):
        return  # eager PyTorch: it computes in one layout, and 16-bit types in float32
    colors, layout = options.get("colors", 1), options.get("color_layout", "interleaved")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = normal(1, cin, height, width, dtype=dtype, device=device).contiguous(memory_format=memory_format)
    w = normal(cout, cin, *kernel, seed=1, dtype=dtype, device=device)
    before = masked_conv2d(x, w, impl=impl, **options)
    in_colors, out_colors = colors_of(cin, colors, layout), colors_of(cout, colors, layout)
    pixels = height * width
    spread = sorted({0, 1, 2, width - 1, width, pixels // 3, pixels // 2, pixels // 2 + 1, pixels - 3, pixels - 1})
    poisons = (float("nan"), float("inf"), 1e30, -3.0)
    for position, color in itertools.product(spread, range(colors)):
        if position >= pixels:
            continue
        order_in = torch.arange(pixels)[None, :] * colors + in_colors[:, None]
        order_out = torch.arange(pixels)[None, :] * colors + out_colors[:, None]
        now = position * colors + color
        # mask A sees what is strictly before, mask B its own sub-pixel too
        changed = (order_in >= now) if options["mask"] == "A" else (order_in > now)
        changed = changed.reshape(1, cin, height, width).to(device)
        kept = (order_out <= now).reshape(1, cout, height, width).to(device)
        poison = poisons[(position + color) % len(poisons)]
        poisoned = torch.where(changed, poison, x).to(dtype).contiguous(memory_format=memory_format)
        after = masked_conv2d(poisoned, w, impl=impl, **options)
        assert torch.equal(after[kept], before[kept]), (position, color, poison)


@pytest.mark.parametrize("case", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_masked_weights_are_never_read_and_have_zero_gradient(case, dtype, device, impl):
    cin, cout, height, width, kernel, options = CAUSAL[case]
    if refused(impl, dtype, cin) or impl == "cuda":
        return
    x = normal(2, cin, height, width, dtype=dtype, device=device).requires_grad_()
    keep = keep_mask(
        (cout, cin, *kernel), options["mask"], options.get("colors", 1), options.get("color_layout", "interleaved")
    ).to(device)
    clean = normal(cout, cin, *kernel, seed=1, dtype=dtype, device=device)

    def run(weight):
        weight = weight.requires_grad_()
        y = masked_conv2d(x, weight, impl=impl, **options)
        return y, *torch.autograd.grad(y, (x, weight), normal(*y.shape, seed=2, dtype=dtype, device=device))

    expected = run(clean)
    for poison in (float("nan"), float("inf")):
        got = run(torch.where(keep, clean, poison).to(dtype))
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)
    assert (expected[2][~keep] == 0).all()
    assert not torch.equal(expected[2], torch.zeros_like(expected[2])) or not keep.any()


GRADIENT = [
    (2, 3, 3, 4, (3, 3), {"mask": "B"}),
    (3, 3, 3, 3, (5, 3), {"mask": "A", "colors": 3}),
    (2, 4, 3, 3, (3, 3), {"mask": "B", "colors": 2, "color_layout": "blocked", "dilation": 2}),
    (2, 2, 3, 3, (1, 1), {"mask": "B"}),
]


@pytest.mark.parametrize("shape", GRADIENT, ids=str)
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_gradients_of_first_and_second_order(shape, impl):
    cin, cout, height, width, kernel, options = shape
    x = normal(2, cin, height, width, dtype=torch.float64).requires_grad_()
    w = normal(cout, cin, *kernel, seed=1, dtype=torch.float64).requires_grad_()
    b = normal(cout, seed=2, dtype=torch.float64).requires_grad_()

    def call(x, w, b):
        return masked_conv2d(x, w, b, impl=impl, **options)

    assert torch.autograd.gradcheck(call, (x, w, b))
    assert torch.autograd.gradgradcheck(call, (x, w, b))


@pytest.mark.parametrize("case", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_agree_with_float64(case, dtype, memory_format, device, impl):
    cin, cout, height, width, kernel, options = CAUSAL[case]
    if impl == "cuda":
        return  # it has no adjoint of its own
    x = normal(3, cin, height, width, dtype=dtype, device=device).contiguous(memory_format=memory_format)
    w = normal(cout, cin, *kernel, seed=1, dtype=dtype, device=device)
    g = normal(3, cout, height, width, seed=2, dtype=dtype, device=device).contiguous(memory_format=memory_format)

    def gradients(dtype, impl):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        return torch.autograd.grad(masked_conv2d(*leaves, impl=impl, **options), leaves, g.to(dtype))

    for got, exact in zip(gradients(dtype, impl), gradients(torch.float64, "reference"), strict=True):
        error = (got.double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
        assert error <= (5e-6 if dtype == torch.float32 else 2e-2)


def rms(t):
    return t.double().pow(2).mean().sqrt().item()


ACCURACY = [(k, c, mask) for k in (3, 5, 7) for c in (16, 64, 160) for mask in "AB"]


@pytest.mark.parametrize(("kernel", "channels", "mask"), ACCURACY)
@pytest.mark.parametrize("scale", ["normal", "wide"])
def test_error_bounds(kernel, channels, mask, scale):
    """Against float64, relative to eager PyTorch in the same dtype; "wide" spreads channels over six decades."""
    x, w = normal(2, channels, 20, 24), normal(64, channels, kernel, kernel, seed=1) / kernel
    if scale == "wide":
        x = x * torch.logspace(-3, 3, channels)[:, None, None]
    exact = dense(x.double(), w.double(), mask=mask)
    eager = rms(dense(x, w, mask=mask) - exact)
    direct = rms(masked_conv2d(x, w, mask=mask, algorithm="direct", impl="cpu") - exact)
    auto = rms(masked_conv2d(x, w, mask=mask, impl="cpu") - exact)
    assert direct <= 2 * eager
    assert auto <= 16 * eager
    assert auto <= 5e-6 * rms(exact)
    x16, w16 = x.bfloat16(), w.bfloat16()
    exact16 = dense(x16.double(), w16.double(), mask=mask)
    eager16 = rms(dense(x16, w16, mask=mask) - exact16)
    assert rms(masked_conv2d(x16, w16, mask=mask, impl="cpu") - exact16) <= 3 * eager16


shapes = st.fixed_dictionaries(
    {
        "n": st.integers(1, 3),
        "cin": st.integers(1, 40),
        "cout": st.integers(1, 70),
        "h": st.integers(1, 14),
        "w": st.integers(1, 40),
        "kh": st.sampled_from([1, 3, 5, 7]),
        "kw": st.sampled_from([1, 3, 5, 7]),
        "colors": st.integers(1, 4),
        "mask": st.sampled_from("AB"),
        "color_layout": st.sampled_from(["interleaved", "blocked"]),
        "dilation": st.integers(1, 3),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
        "channels_last": st.booleans(),
    }
)


@settings(max_examples=150, derandomize=True)
@given(shapes)
def test_any_shape_and_its_adjoints(s):
    """Forward against the textbook form, and ⟨conv(x), g⟩ = ⟨x, conv*(g)⟩ = ⟨w, grad_w⟩ for the two adjoints."""
    colors = s["colors"]
    cin, cout = s["cin"] * colors if colors > 1 else s["cin"], s["cout"] * colors if colors > 1 else s["cout"]
    cin, cout = min(cin, 48 // colors * colors), min(cout, 72 // colors * colors)
    rule = {k: s[k] for k in ("mask", "colors", "color_layout", "dilation")}
    dtype = s["dtype"]
    memory_format = torch.channels_last if s["channels_last"] else torch.contiguous_format
    x = normal(s["n"], cin, s["h"], s["w"], dtype=dtype).contiguous(memory_format=memory_format)
    w = normal(cout, cin, s["kh"], s["kw"], seed=1, dtype=dtype)
    x.requires_grad_(), w.requires_grad_()
    y = masked_conv2d(x, w, impl="cpu", **rule)
    exact = dense(x.detach().double(), w.detach().double(), **rule)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(y.detach().double(), exact, rtol=tolerance, atol=tolerance * (rms(exact) + 1e-30) * 4)
    g = normal(*y.shape, seed=2, dtype=dtype)
    grad_x, grad_w = torch.autograd.grad(y, (x, w), g)
    inner = (exact * g.double()).sum()
    size = exact.abs().mul(g.double().abs()).sum() + 1e-30
    assert ((x.double() * grad_x.double()).sum() - inner).abs() <= tolerance * size
    assert ((w.double() * grad_w.double()).sum() - inner).abs() <= tolerance * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("shape", [(2, 64, 12, 20), (1, 64, 3, 3)])
def test_a_prepacked_weight_gives_the_same_bits(dtype, algorithm, shape):
    x, w, b = normal(*shape, dtype=dtype), normal(80, 64, 3, 3, seed=1, dtype=dtype), normal(80, seed=2, dtype=dtype)
    packed = masked_conv2d_pack(w, mask="B", algorithm=algorithm)
    expected = masked_conv2d(x, w, b, mask="B", algorithm=algorithm, impl="cpu")
    assert torch.equal(masked_conv2d(x, w, b, mask="B", algorithm=algorithm, packed=packed, impl="cpu"), expected)
    assert packed.nbytes <= 1.6 * w.nbytes * (2 if dtype == torch.bfloat16 else 1)


def test_a_foreign_packed_weight_is_refused():
    x, w = normal(1, 32, 8, 8), normal(32, 32, 3, 3)
    with pytest.raises(RuntimeError, match=r"packed must be what masked_conv2d_pack gives .* pack again"):
        masked_conv2d(x, w, mask="B", packed=masked_conv2d_pack(w[:16], mask="B"))


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level):
    """The numerical tests of the CPU kernels, the contract's for all ops among them."""
    numerical = "agrees_with_float64 or any_shape or gradients_agree or error_bounds or no_later_pixel"
    # a kernel reads any strides through the same code on every level, so two layouts will do
    selected = f"({numerical}) and not reference and not sliced and not transposed"
    run_on(level, [os.path.join(os.path.dirname(__file__), "test_contract.py"), __file__], selected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask": "C"}, ValueError, "mask must be 'A' or 'B', got 'C'"),
        ({"colors": 4}, ValueError, r"colors must be at least 1 and divide both channel counts .*got 4"),
        ({"color_layout": "rgb"}, ValueError, "color_layout must be 'interleaved' or 'blocked', got 'rgb'"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"algorithm": "fft"}, ValueError, "algorithm must be 'auto' or 'direct', got 'fft'"),
        ({"weight": normal(6, 3, 2, 3)}, ValueError, "weight must have odd kernel sizes, got 2 x 3"),
        ({"weight": normal(6, 3, 3)}, ValueError, r"weight must be 4-d .* got shape \(6, 3, 3\)"),
        ({"x": normal(1, 4, 5, 5)}, ValueError, r"x must be \(N, 3, H, W\) .* got \(1, 4, 5, 5\)"),
        ({"x": torch.ones(1, 3, 5, 5, dtype=torch.int64)}, TypeError, "x must be a floating-point tensor"),
        ({"bias": normal(5)}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
        ({"bias": normal(6, dtype=torch.float64)}, TypeError, "x, weight and bias must have one dtype"),
        ({"impl": "triton"}, RuntimeError, "impl='triton' cannot run here: the tensors are on the CPU"),
        ({"impl": "magic"}, RuntimeError, "impl='magic' cannot run here"),
    ],
)
def test_messages_name_the_argument(change, error, message):
    arguments = {"x": normal(1, 3, 5, 5), "weight": normal(6, 3, 3, 3), "mask": "B", **change}
    with pytest.raises(error, match=message):
        masked_conv2d(**arguments)


def test_torch_ops_check_too():
    """Whoever calls the torch op directly gets a sentence as well, not a crash."""
    op = torch.ops.vidgen.masked_conv2d
    with pytest.raises(RuntimeError, match="x must have 3 channels"):
        op(normal(1, 4, 5, 5), normal(6, 3, 3, 3), None, "B", 1, "interleaved", 1, "auto", None, None)
    with pytest.raises(RuntimeError, match="mask must be 'A' or 'B'"):
        op(normal(1, 3, 5, 5), normal(6, 3, 3, 3), None, "Z", 1, "interleaved", 1, "auto", None, None)
