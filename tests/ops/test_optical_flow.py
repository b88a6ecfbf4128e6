"""One function for every method: presets mean what they say, and what is misspelt is named."""

import inspect
import math
from typing import Any

import pytest
import torch

from vidgen.ops import optical_flow, optical_flow_dis
from vidgen.ops.optical_flow import METHODS

IMAGES = torch.rand(2, 2, 3, 20, 24, generator=torch.Generator().manual_seed(0))

#: method -> a parameter that no preset has, and that changes the flow of these images
OTHER: dict[str, dict[str, Any]] = {"dis": {"patch_stride": 8}, "tvl1": {"warps": 1}}


def test_a_preset_is_its_parameters_and_yields_to_those_given() -> None:
    prev, next = IMAGES
    for method, (function, presets, _, _) in METHODS.items():
        for name, params in presets.items():
            flow = optical_flow(prev, next, method=method, preset=name)
            assert torch.equal(flow, function(prev, next, **params))
            changed = optical_flow(prev, next, method=method, preset=name, **OTHER[method])
            assert not torch.equal(flow, changed)


def test_the_default_is_what_it_is_said_to_be() -> None:
    prev, next = IMAGES
    assert torch.equal(optical_flow(prev, next), optical_flow(prev, next, method="dis", preset="medium"))
    assert torch.equal(optical_flow(prev, next), optical_flow_dis(prev, next))


def test_presets_set_parameters_that_exist() -> None:
    for function, presets, default, _ in METHODS.values():
        assert default in presets
        for params in presets.values():
            assert set(params) <= set(inspect.signature(function).parameters)


def test_grey_images_need_no_channel_axis() -> None:
    prev, next = IMAGES[:, :, 0]
    assert torch.equal(optical_flow(prev, next), optical_flow(prev[:, None], next[:, None]))


def test_it_compiles_as_one_graph() -> None:
    prev, next = IMAGES
    compiled = torch.compile(
        lambda a, b: optical_flow(a, b, preset="fast", patch_stride=5), fullgraph=True, backend="eager"
    )
    assert torch.equal(compiled(prev, next), optical_flow(prev, next, preset="fast", patch_stride=5))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, r"method must be one of \['dis', 'tvl1'\], got 'farneback'", {"method": "farneback"}),
        (ValueError, "preset must be one of .*'medium'.* for method 'dis', got 'best'", {"preset": "best"}),
        (TypeError, r"parameters of method 'tvl1' must be among .*, got \['lamda'\]", {"method": "tvl1", "lamda": 0.1}),
        (ValueError, "impl must be|cannot run here", {"impl": "cuda"}),
    ],
)
def test_what_does_not_exist_is_named(error, message, options) -> None:
    with pytest.raises((error, RuntimeError), match=message):
        optical_flow(*IMAGES, **options)


# Values that no method takes.


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 255.0])
@pytest.mark.parametrize("name", ["prev", "next"])
@pytest.mark.parametrize("method", METHODS)
def test_pixels_that_are_no_grey_levels_are_refused(method: str, impl: str, bad: float, name: str) -> None:
    for corner in ((1, 2, 39, 42), (1, 0, 0, 0)):
        images = {"prev": torch.rand(2, 3, 40, 43), "next": torch.rand(2, 3, 40, 43)}
        images[name][corner] = bad
        with pytest.raises(RuntimeError, match=rf"^{name} must be finite and, where it is floating point, in \[0, 1\]"):
            METHODS[method].function(**images, impl=impl)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e7])
@pytest.mark.parametrize("method", METHODS)
def test_a_start_that_is_no_flow_is_refused(method: str, impl: str, bad: float) -> None:
    for corner in ((0, 1, 19, 21), (0, 1, 3, 4)):
        init = torch.zeros(1, 2, 20, 22)
        init[corner] = bad
        with pytest.raises(RuntimeError, match=r"^init must be finite and within 1e6 pixels"):
            METHODS[method].function(torch.rand(1, 1, 20, 22), torch.rand(1, 1, 20, 22), init=init, impl=impl)


@pytest.mark.parametrize("method", METHODS)
def test_any_finite_pixels_within_bounds_give_a_finite_flow(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    prev, next = torch.rand(2, 1, 1, 50, 60, generator=generator).round() * 2 - 0.5
    init = torch.rand(1, 2, 50, 60, generator=generator) * 2e6 - 1e6
    for preset in METHODS[method].presets:
        assert optical_flow(prev, next, method=method, preset=preset).isfinite().all()
        assert optical_flow(prev, next, method=method, preset=preset, init=init).isfinite().all()
