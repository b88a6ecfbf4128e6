"""Selection of a backend: forced, process-wide, fallen back; and that explain tells the truth about it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

import vidgen
from vidgen.ops import backends, masked_conv2d


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())


def arguments(dtype=torch.float32):
    return torch.ones(1, 2, 4, 4, dtype=dtype), torch.ones(3, 2, 3, 3, dtype=dtype)


def test_falling_back_warns_once_per_reason():
    with pytest.warns(UserWarning, match="eager PyTorch reference.*float32, bfloat16 and float64 only"):
        masked_conv2d(*arguments(torch.float16), mask="B")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked_conv2d(*arguments(torch.float16), mask="B")
        masked_conv2d(*arguments(), mask="B")


def test_asking_for_the_reference_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked_conv2d(*arguments(torch.float16), mask="B", impl="reference")


def test_forcing_what_cannot_run_says_why():
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run here: the CPU kernel computes float32"):
        masked_conv2d(*arguments(torch.float16), mask="B", impl="cpu")


def test_the_environment_forces_a_backend(monkeypatch):
    monkeypatch.setenv("VIDGEN_IMPL", "reference")
    assert "reference  runs" in vidgen.explain("masked_conv2d", *arguments(), mask="B")
    x, w = torch.randn(2, 32, 8, 8), torch.randn(32, 32, 3, 3)
    forced = masked_conv2d(x, w, mask="B")
    assert torch.equal(forced, masked_conv2d(x, w, mask="B", impl="reference"))
    monkeypatch.setenv("VIDGEN_IMPL", "triton")
    with pytest.raises(RuntimeError, match="impl='triton' cannot run here"):
        masked_conv2d(x, w, mask="B")
    # the argument comes before the environment
    assert torch.equal(masked_conv2d(x, w, mask="B", impl="reference"), forced)


def test_meta_and_other_devices_use_the_reference_or_the_fake():
    x, w = (t.to("meta") for t in arguments())
    assert masked_conv2d(x, w, mask="B").shape == (1, 3, 4, 4)


def test_explain_names_the_chosen_backend_and_every_reason(capsys):
    text = vidgen.explain("masked_conv2d", *arguments(), mask="B")
    assert capsys.readouterr().out.strip() == text
    lines = dict(line.split(maxsplit=1) for line in text.splitlines()[1:])
    assert lines["cpu"].startswith("runs (")
    assert lines["triton"] == "runs on cuda, the tensors are on cpu"
    assert lines["reference"] == "could run; cpu comes first"
    half = vidgen.explain("masked_conv2d", *arguments(torch.float16), mask="B")
    assert "float32, bfloat16 and float64 only" in half
    assert "reference  runs" in half


def test_explain_knows_its_ops():
    with pytest.raises(
        ValueError,
        match=r"op must be one of \['conv3d_pool3d', 'corr_lookup', 'discretized_logistic_mixture', 'masked_conv2d', "
        r"'optical_flow_dis', 'optical_flow_tvl1', 'warp'\], got 'conv'",
    ):
        vidgen.explain("conv")


def test_info_tells_the_machine(capsys):
    from vidgen.info import collect, info

    facts = collect(measure=True, seconds=0.05)
    assert facts["isa"] in facts["isa_compiled"]
    assert facts["peaks"]["fp32_gflops"] > 0
    assert facts["peaks"]["copy_gb_per_s"] > 0
    assert facts["backends"]["masked_conv2d"]["cpu"] == "ready"
    assert facts["backends"]["masked_conv2d"]["reference"] == "ready"
    if not torch.cuda.is_available():
        assert "CUDA" in facts["backends"]["masked_conv2d"]["triton"]
    info(measure=False)
    assert "masked_conv2d" in capsys.readouterr().out


@pytest.mark.parametrize("wish", ["baseline", "avx2", "nonsense"])
def test_the_instruction_set_can_be_capped(wish):
    """A level's name holds a process to it (or to the best below that the machine has); another name is reported."""
    code = "from vidgen import _host as h; print(h.isa(), h.isa_compiled().index(h.isa()), h.isa_unknown_request())"
    environment = {**os.environ, "VIDGEN_CPU_ISA": wish}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    name, index, *unknown = done.stdout.split()
    if wish == "nonsense":
        assert unknown == ["nonsense"]
    else:
        assert unknown == []
        assert int(index) <= ["baseline", "avx2"].index(wish), name
