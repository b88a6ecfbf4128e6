"""Executors behind the gate: a default only where it opens, and past it by `impl=`."""

import warnings

import pytest
import torch

from vidgen.ops import gate
from vidgen.sampling import Categorical, generate, graphed, self_check, trace
from vidgen.sampling import executors as table
from vidgen.sampling.executors import Executor, choose

from .test_graphed import DEVICES, ROWS
from .test_plan import build


def test_what_it_cannot_draw_from():
    class Own(Categorical):
        pass

    assert "runs on CUDA devices, the model is on cpu" in graphed.supports(torch.device("cpu"), Categorical(4))
    assert graphed.supports(torch.device("cuda"), Categorical(4)) is None
    assert "not from Own" in graphed.supports(torch.device("cuda"), Own(4))
    with pytest.raises(ValueError, match=r"'graph' cannot draw from Plain: it runs on CUDA devices"):
        generate(build("plain"), 1, impl="graph", progress=False)
    with pytest.raises(ValueError, match="bfloat16: it keeps weights in the model's dtype"):
        generate(build("plain"), 1, impl="graph", weight_dtype=torch.bfloat16, progress=False)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A model that seems to be on one; returns the gate's answer, to be set."""
    verdict: list[str | None] = [None]
    monkeypatch.setattr(graphed, "supports", lambda device, head: None)
    monkeypatch.setattr(table, "supports", lambda *args: "it runs on the CPU")
    monkeypatch.setattr(table, "gate", lambda op, backend, device: verdict[0])
    monkeypatch.setattr(table, "_warned", set())
    return verdict


def test_the_gate_decides_and_the_user_may_insist(on_a_gpu):
    model = build("plain")
    assert choose(model, None)[0].name == "graph"
    on_a_gpu[0] = "it has not been tested on a GPU"
    with pytest.warns(UserWarning, match="Plain is drawn from without the executor 'graph': it has not been tested"):
        assert choose(model, None)[0].name == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(model, None)[0].name == "eager", "one warning per model and reason"
        assert choose(model, "graph")[0].name == "graph"


def test_the_gate_knows_its_source_and_its_check(tmp_path, monkeypatch):
    known = gate.source_hash("sampling", "graph")
    assert len(known) == 32
    assert ("sampling", "graph") in gate._checks
    folder = gate.PACKAGE / "sampling"
    (tmp_path / "sampling").mkdir()
    for path in folder.glob("*.py"):
        (tmp_path / "sampling" / path.name).write_text(path.read_text())
    monkeypatch.setattr(gate, "PACKAGE", tmp_path)

    def hashed(name, change):
        path = tmp_path / "sampling" / name
        before = path.read_text()
        path.write_text(change(before))
        gate.source_hash.cache_clear()
        found = gate.source_hash("sampling", "graph")
        path.write_text(before)
        return found

    try:
        assert hashed("graphed.py", lambda text: f"{text}\n# a comment\n") == known
        for name in ("graphed", "graphed_moments", "graphed_pixels", "graphed_rows", "graphed_memory", "heads"):
            assert hashed(f"{name}.py", lambda text: f"{text}\nchanged = 1\n") != known, name
        assert hashed("generate.py", lambda text: f"{text}\nchanged = 1\n") == known
    finally:
        gate.source_hash.cache_clear()


@pytest.mark.parametrize("where", DEVICES)
def test_the_self_check_passes_what_is_right(where):
    assert self_check.same_as_eager("graph")(torch.device(where)) is None


@pytest.mark.parametrize("wrong", ["parameters", "images"])
def test_the_self_check_refuses_what_is_wrong(wrong, monkeypatch):
    def run(prepared, request):
        images = ROWS["eager"].run(prepared, request)
        if wrong == "parameters":
            request.parameters[1, 2, 0, -1, -1] += 1e-3
        else:
            images[-1, 0, -1, -1] += 0.1
        return images

    monkeypatch.setattr(self_check, "EXECUTORS", (Executor("bad", ROWS["eager"].prepare, run), ROWS["eager"]))
    expected = {"parameters": "is off by 1.0e-03", "images": "draws other images"}[wrong]
    assert expected in self_check.same_as_eager("bad")(torch.device("cpu"))
    program = {
        network.__class__: trace(network.double().eval()).best_program
        for network in (self_check._Streams(), self_check._Stack())
    }
    assert [bool(p.wave) for p in program.values()] == [False, True]
