"""The gate before GPU kernels: no untested source, no failing card, and the user can always learn why or insist."""

import contextlib
import json
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import torch

from vidgen.ops import backends, gate, self_check, source_hash  # noqa: F401 (self_check registers the checks)
from vidgen.ops.backends import TABLE, Backend

ROOT = Path(__file__).parents[2]
CARD = torch.device("cuda", 0)
OP = "masked_conv2d"


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A machine that seems to have one card of compute capability 9.0, and a package with kernels of its own.

    Returns what writes the manifest: entries of (op, backend, capability, hash).
    """
    monkeypatch.delenv("VIDGEN_EXPERIMENTAL", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(gate, "PACKAGE", tmp_path)
    monkeypatch.setattr(gate, "MANIFEST", tmp_path / "gpu_manifest.json")
    monkeypatch.setattr(gate, "_checks", dict(gate._checks))
    gate.register_self_check(OP, "triton", lambda device: None)

    def passed(*entries):
        keys = ("op", "backend", "compute_capability", "source_hash")
        manifest = {"format": 1, "entries": [dict(zip(keys, entry, strict=True)) for entry in entries]}
        gate.MANIFEST.write_text(json.dumps(manifest))
        gate.reset()

    gate.reset()
    yield passed
    gate.reset()


def present():
    return gate.source_hash(OP, "triton")


def test_a_tested_source_and_a_passing_self_check_open_the_gate(card):
    card((OP, "triton", "9.0", present()))
    assert gate.gate(OP, "triton", CARD) is None
    assert gate.gate(OP, "triton", torch.device("cuda")) is None


def test_what_no_gpu_has_tested_is_refused(card):
    assert "has not been tested on a GPU of compute capability 9.0" in gate.gate(OP, "triton", CARD)
    card((OP, "triton", "8.0", present()))
    assert "tested on other GPUs, not on compute capability 9.0" in gate.gate(OP, "triton", CARD)
    card((f"{OP}_grad_input", "triton", "9.0", present()), (OP, "cuda", "9.0", present()))
    assert "has not been tested" in gate.gate(OP, "triton", CARD)


def test_a_changed_source_is_refused_and_a_changed_comment_is_not(card):
    card((OP, "triton", "9.0", present()))
    kernel = gate.PACKAGE / "kernels" / f"{OP}.py"
    text = kernel.read_text()
    kernel.write_text(text.replace("\n\n\n", "\n# another comment\n\n\n"))
    gate.reset()
    assert gate.gate(OP, "triton", CARD) is None
    kernel.write_text(text.replace("acc + part", "acc").replace("part, 0.0", "part, 1.0"))
    gate.reset()
    assert "source has changed since it was tested on compute capability 9.0" in gate.gate(OP, "triton", CARD)
    kernel.write_text(text)
    imported = gate.PACKAGE / "kernels" / "tiles.py"
    imported.write_text(imported.read_text().replace("8 if m", "4 if m"))
    gate.reset()
    assert "source has changed" in gate.gate(OP, "triton", CARD)


@pytest.mark.parametrize("broken", ["missing", "not json", "of another format"])
def test_a_manifest_that_cannot_be_read_opens_nothing(card, broken):
    card((OP, "triton", "9.0", present()))
    if broken == "missing":
        gate.MANIFEST.unlink()
    elif broken == "not json":
        gate.MANIFEST.write_text("{")
    else:
        gate.MANIFEST.write_text(gate.MANIFEST.read_text().replace('"format": 1', '"format": 2'))
    gate.reset()
    assert "has not been tested" in gate.gate(OP, "triton", CARD)


def test_a_failing_self_check_is_refused_with_its_words(card):
    card((OP, "triton", "9.0", present()))
    gate.register_self_check(OP, "triton", lambda device: "off by 1")
    assert gate.gate(OP, "triton", CARD) == "its self-check failed on this GPU: off by 1"
    gate.reset()
    gate.register_self_check(OP, "triton", lambda device: 1 // 0)
    assert "ZeroDivisionError" in gate.gate(OP, "triton", CARD)


def test_the_self_check_runs_once_whoever_asks(card):
    card((OP, "triton", "9.0", present()))
    runs = []
    started = threading.Barrier(8)

    def check(device):
        runs.append(device)
        threading.Event().wait(0.05)

    def ask():
        started.wait()
        answers.append(gate.gate(OP, "triton", CARD))

    answers = []
    gate.register_self_check(OP, "triton", check)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == [CARD]
    assert answers == [None] * 8


def test_the_self_check_does_not_see_the_callers_modes(card):
    card((OP, "triton", "9.0", present()))
    seen = []

    def check(device):
        seen.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))

    gate.register_self_check(OP, "triton", check)
    with torch.inference_mode(), torch.autocast("cpu"):
        assert gate.gate(OP, "triton", CARD) is None
    assert seen == [(False, False, False)]


@pytest.mark.parametrize("busy", ["compiling", "capturing"])
def test_no_self_check_while_a_graph_is_made_but_afterwards(card, monkeypatch, busy):
    card((OP, "triton", "9.0", present()))
    with monkeypatch.context() as patch:
        if busy == "compiling":
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
        else:
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        gate.register_self_check(OP, "triton", lambda device: pytest.fail("ran"))
        assert "call the op once before" in gate.gate(OP, "triton", CARD)
    gate.register_self_check(OP, "triton", lambda device: None)
    assert gate.gate(OP, "triton", CARD) is None


def test_the_user_can_insist(card, monkeypatch):
    """impl= and VIDGEN_EXPERIMENTAL=1 use what the gate refuses; without them the call is eager, with the reason."""
    rows = tuple(
        Backend(name, devices, lambda: None, lambda *args: None, run, gated=name == "triton")
        for name, devices, run in [("triton", ("cuda",), lambda: 1), ("reference", (), lambda: 2)]
    )
    monkeypatch.setitem(TABLE, OP, rows)
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.delenv("VIDGEN_IMPL", raising=False)
    with pytest.warns(UserWarning, match="has not been tested on a GPU of compute capability 9.0"):
        assert backends.select(OP, CARD, None, ()).name == "reference"
    assert "has not been tested" in dict(backends.explain_rows(OP, CARD, ()))["triton"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select(OP, CARD, None, ()).name == "reference", "one warning per op and reason"
        assert backends.select(OP, CARD, "triton", ()).name == "triton"
        monkeypatch.setenv("VIDGEN_EXPERIMENTAL", "1")
        assert backends.select(OP, CARD, None, ()).name == "triton"


def test_every_gated_backend_has_a_self_check_and_a_hash():
    for op, rows in TABLE.items():
        for row in rows:
            if row.gated:
                assert (op, row.name) in gate._checks
                if row.name == "triton":
                    assert gate.source_hash(op, row.name)


@pytest.mark.parametrize("op", sorted(op for op, rows in TABLE.items() if any(row.gated for row in rows)))
@pytest.mark.parametrize("fault", ["none", "one part in fifty", "one NaN", "raises"])
@pytest.mark.parametrize("output", [0, 1])
def test_the_self_check_sees_a_wrong_kernel(op, fault, output, monkeypatch):
    reference = next(row.run for row in TABLE[op] if row.name == "reference")
    outputs = 2 if op == "conv3d_pool3d_grad_weight" else 1

    def faulty(*args):
        out = reference(*args)
        results = list(out) if isinstance(out, tuple) else [out]
        assert len(results) == outputs
        if fault == "raises":
            raise RuntimeError("no kernel image")
        wrong = results[output % outputs]
        if fault == "one NaN":
            wrong[(0,) * wrong.dim()] = torch.nan
        if fault == "one part in fifty":
            results[output % outputs] = wrong * 1.02
        return tuple(results) if isinstance(out, tuple) else results[0]

    gated = [row.name for row in TABLE[op] if row.gated]
    rows = [Backend(name, ("cuda",), lambda: None, lambda *args: None, faulty, gated=True) for name in gated]
    monkeypatch.setitem(TABLE, op, (*rows, *(r for r in TABLE[op] if r.name == "reference")))
    for name in gated:
        check = gate._checks[op, name]
        if fault == "raises":
            with pytest.raises(RuntimeError, match="no kernel image"):
                check(torch.device("cpu"))
        else:
            assert (check(torch.device("cpu")) is None) == (fault == "none")


def test_the_self_check_sees_a_gradient_at_another_of_equal_maxima(monkeypatch):
    op = "conv3d_pool3d_grad_preactivation"
    reference = next(row.run for row in TABLE[op] if row.name == "reference")

    def last_of_equals(grad, x, weight, bias, padding, activation, pool, ceil_mode):
        def turned(t):
            return None if t is None else t.flip(tuple(range(2, t.dim())))

        # the windows of a floor that leaves nothing over are the same from both ends
        back = [padding[i ^ 1] for i in range(6)]
        out = reference(turned(grad), turned(x), turned(weight), bias, back, activation, pool, ceil_mode)
        return turned(out)

    row = Backend("triton", ("cuda",), lambda: None, lambda *args: None, last_of_equals, gated=True)
    monkeypatch.setitem(TABLE, op, (row, *(r for r in TABLE[op] if r.name == "reference")))
    assert "is off by" in gate._checks[op, "triton"](torch.device("cpu"))


def test_the_shipped_manifest_is_well_formed():
    manifest = json.loads(gate.MANIFEST.read_text())
    assert manifest["format"] == gate.MANIFEST_FORMAT
    for entry in manifest["entries"]:
        assert entry["op"] in TABLE
        assert entry["backend"] in {row.name for row in TABLE[entry["op"]] if row.gated}
        assert len(entry["source_hash"]) == 32
        major, minor = entry["compute_capability"].split(".")
        assert major.isdigit()
        assert minor.isdigit()


def test_the_compiled_library_carries_the_hash_of_the_present_source():
    library = ROOT / "vidgen" / "_C_cuda.so"
    if not library.is_file():
        pytest.skip("there was no nvcc when vidgen was compiled")
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        assert source_hash.cuda_hash(ROOT / "csrc", source.stem).encode() in library.read_bytes()
