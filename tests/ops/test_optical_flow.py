"""One function for every method: presets mean what they say, and what is misspelt is named."""

import inspect
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
def test_what_does_not_exist_is_named(error, message, options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((error, RuntimeError), match=message):
        optical_flow(*IMAGES, **options)
