"""If these failed, another library would be measured on other work than vidgen's, or its absence would break vidgen."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidgen.benchmarks import peers
from vidgen.benchmarks.peers import opencv_flow, openvino_peer, ort, skimage_flow

REPOSITORY = Path(__file__).parents[2]
PEERS = [
    pytest.param(peer, marks=pytest.mark.skipif(peer.missing() is not None, reason=str(peer.missing())), id=peer.NAME)
    for peer in (ort, openvino_peer)
]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2, ceil_mode=True), nn.Flatten(1), nn.Linear(48, 2)
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 3, 3, 5, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("peer", PEERS)
def test_its_answer_is_eagers_for_every_input(peer: ModuleType, net: nn.Module, x: Tensor) -> None:
    run = peer.load(peer.convert(net, x), threads=1)
    for value in (x, -3 * x):
        # copied, for the next call may write over it
        torch.testing.assert_close(run(value).clone(), net(value), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="dtype must be"):
        peer.load(b"", threads=1, dtype="float16")


@pytest.mark.skipif(openvino_peer.missing() is not None, reason=str(openvino_peer.missing()))
def test_openvino_computes_in_the_precision_and_on_the_threads_that_are_asked_for(net: nn.Module, x: Tensor) -> None:
    model = openvino_peer.convert(net, x)
    error: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        if openvino_peer.missing(dtype) is None:
            got = openvino_peer.load(model, threads=2, dtype=dtype)(x)
            error[dtype] = ((got - net(x)).norm() / net(x).norm()).item()
    assert error["float32"] < 1e-6
    assert 1e-4 < error.get("bfloat16", 1e-3) < 2e-2


def test_a_dtype_that_cannot_be_measured_here_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ort.missing("bfloat16") == "its CPU kernels do not compute convolutions in bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert "no bfloat16 arithmetic" in str(openvino_peer.missing("bfloat16"))
    assert openvino_peer.missing("float32") == peers.first_missing("openvino")


def test_what_is_missing_is_said_in_words() -> None:
    assert peers.first_missing("torch") is None
    sentence = peers.first_missing("torch", "no_such_library")
    assert sentence == "no_such_library is not installed: pip install 'vidgen[peers]'"


def test_versions_are_those_of_the_installed_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in peers.versions().items():
        assert importlib.metadata.version(name) == version
    for peer in (ort, openvino_peer, opencv_flow, skimage_flow):
        monkeypatch.setattr(peer, "missing", lambda: "no")
    assert peers.versions() == {}


def test_the_benchmark_needs_no_peer_and_loads_none() -> None:
    script = """
import sys
from vidgen.benchmarks import suite
names = {"onnx", "onnxruntime", "onnxscript", "openvino", "cv2", "skimage"}
cases = suite.find_cases(["conv3d_pool3d", "optical_flow_tvl1"], device="cpu", full=True)
assert not names & set(sys.modules), names & set(sys.modules)
"""
    done: Any = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
