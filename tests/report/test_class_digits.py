"""Digits by class: every figure of the demonstration is of what it says it is of."""

import torch

from vidgen.data import digits
from vidgen.models import load_checkpoint
from vidgen.report import class_digits


def test_all_of_it_in_small(tmp_path):
    found = class_digits.run(tmp_path, seed=3, quick=True, progress=False)
    images, labels = digits("test")
    for name in class_digits.NAMES:
        best = load_checkpoint(tmp_path / f"digits-{name}" / "best.safetensors")
        with torch.no_grad():
            bits = float(best.bits_per_dim(images, labels).double().mean())
        assert abs(found["bits_per_dim"][name] - bits) < 1e-5
        assert torch.tensor(found["samples"][name]).shape == (120, 1, 8, 8)
        assert 0 <= found["recognised"][name] <= found["drawings"] == 120
    real, completed = (torch.tensor(found["halves"][half]) for half in ("real", "completed"))
    assert torch.equal(real, images[:12].long())
    assert torch.equal(completed[:, :, :4], real[:, :, :4])
    assert not torch.equal(completed[:, :, 4:], real[:, :, 4:])
