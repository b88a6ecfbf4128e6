"""The moving average is the documented formula, and lending it to the modules leaves no trace."""

import pytest
import torch
from torch import nn

from vidgen.train import WeightAverage


def test_average_is_the_formula():
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    average = WeightAverage({"net": net}, 0.6)
    by_hand = net.weight.detach().clone()
    for t in range(1, 30):  # the ramp reaches 0.6 at t = 12.5
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 3))
        average.update()
        decay = min(0.6, (1 + t) / (10 + t))
        by_hand = decay * by_hand + (1 - decay) * net.weight.detach()
        assert torch.allclose(average.average["net.weight"], by_hand, rtol=1e-14, atol=0)


def test_weights_come_back_to_the_bit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage({"net": net}, 0.9)
    with torch.no_grad():
        net[0].weight.mul_(torch.pi)
    average.update()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def fail_inside():
        with average.applied():
            assert torch.equal(net[0].weight, average.average["net.0.weight"])
            assert not torch.equal(net[0].weight, before["0.weight"])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_bad_decay_is_named(decay):
    with pytest.raises(ValueError, match="ema: expected a number in"):
        WeightAverage({}, decay)
