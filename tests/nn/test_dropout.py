import math

import pytest
import torch

from vidgen.nn import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_values_are_dropped_one_by_one_and_the_mean_is_kept(p: float) -> None:
    x = torch.ones(1000, 1000)
    y = Dropout(p)(x)
    kept = y != 0
    rounded = round(p * 65536) / 65536
    # six standard deviations of a share of a million, of rows, and of neighbours that fall together
    assert abs(kept.double().mean().item() - (1 - p)) < 6 * math.sqrt(p * (1 - p) / 1e6)
    for rows in (kept, kept.T):
        assert (rows.double().mean(dim=1) - (1 - p)).abs().max() < 6 * math.sqrt(p * (1 - p) / 1000)
    for apart in (1, 2, 3, 4, 1000):
        flat = kept.flatten().double() - (1 - p)
        assert (flat[apart:] * flat[:-apart]).mean().abs() < 6 * p * (1 - p) / 1000
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rounded)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y = Dropout(0.5)(torch.ones(shape, dtype=dtype))
    assert y.shape == shape
    assert y.dtype == dtype
    assert set(y.flatten().tolist()) <= {0.0, 2.0}


def test_a_layout_is_kept_and_views_are_read_where_they_lie() -> None:
    x = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    for given in (x, x[:, ::2], x.expand(3, 2, 6, 4, 4), x[..., :3].transpose(0, 3)):
        y = Dropout(0.5)(given)
        assert y.shape == given.shape
        assert torch.equal(y[y != 0], 2 * given[y != 0])
    assert Dropout(0.5)(x).is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_those_of_the_product() -> None:
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)

    def dropped(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return Dropout(0.3)(x) * x

    assert torch.autograd.gradcheck(dropped, (x,))
    assert torch.autograd.gradgradcheck(dropped, (x,))


def test_in_place_and_out_of_training() -> None:
    x = torch.ones(64)
    assert Dropout(0.5, inplace=True)(x) is x
    assert set(x.tolist()) == {0.0, 2.0}
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()


def test_seeds_and_compiling() -> None:
    layer, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(7)
    first = layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    # torch's own there: other numbers, the same layer
    assert set(torch.compile(layer, fullgraph=True, backend="aot_eager")(x).tolist()) == {0.0, 2.0}
