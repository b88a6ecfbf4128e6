"""The loop's promises: exact resuming, divisions that change rounding only, phases that keep to themselves."""

import dataclasses
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from tests.train.two_phase import make_task, settings
from vidgen.train import Phase, Task, WeightAverage, read_metrics, train
from vidgen.train.order import examples_at
from vidgen.train.state import latest_state


def _weights(task):
    return {
        f"{name}.{path}": tensor.clone()
        for name, module in task.modules.items()
        for path, tensor in module.state_dict().items()
    }


def _assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def _optimizer_states(directory):
    (state,) = (directory / "state").iterdir()
    return [torch.load(path) for path in sorted(state.glob("optimizer*.bin"))]


@pytest.mark.parametrize("first", [1, 7, 10, 19])
def test_stopped_and_resumed_is_uninterrupted_to_the_bit(tmp_path, first):
    """Weights, optimisers, dropout, averages, best checkpoint and the record of metrics, cut anywhere."""
    whole = make_task()
    summary = train(whole, settings(tmp_path / "whole"))
    assert (summary.step, summary.interrupted) == (20, False)

    part = make_task()
    cut = train(
        part, settings(tmp_path / "cut"), on_step=lambda trainer: trainer.stop() if trainer.step == first else None
    )
    assert (cut.step, cut.interrupted) == (first, True)
    torch.manual_seed(12345)  # whatever state the next program's generators are in
    rest = make_task()
    resumed = train(rest, settings(tmp_path / "cut", resume=True))

    assert (resumed.step, resumed.interrupted) == (20, False)
    assert (resumed.best, resumed.best_step) == (summary.best, summary.best_step)
    _assert_same_bits(_weights(rest), _weights(whole))
    for name in ("best.safetensors", "last.safetensors"):
        _assert_same_bits(load_file(tmp_path / "cut" / name), load_file(tmp_path / "whole" / name))
    for one, other in zip(_optimizer_states(tmp_path / "cut"), _optimizer_states(tmp_path / "whole"), strict=True):
        assert one["param_groups"] == other["param_groups"]
        for index, state in one["state"].items():
            _assert_same_bits(
                {key: torch.as_tensor(value) for key, value in state.items()},
                {key: torch.as_tensor(value) for key, value in other["state"][index].items()},
            )
    assert read_metrics(tmp_path / "cut" / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")


def test_what_a_crash_recorded_after_the_last_save_is_dropped(tmp_path):
    train(make_task(), settings(tmp_path / "whole"))

    def crash(trainer):
        if trainer.step == 16:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(make_task(), settings(tmp_path / "cut", save_every=8, log_every=3), on_step=crash)
    record = tmp_path / "cut" / "metrics.jsonl"
    assert read_metrics(record)[-1]["step"] == 15
    with record.open("a") as file:
        file.write('{"kind": "train", "st')  # the crash came in the middle of a line
    train(make_task(), settings(tmp_path / "cut", save_every=8, resume=True))
    assert read_metrics(record) == read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert all(json.loads(line) for line in record.read_text().splitlines())


@pytest.mark.parametrize("broken", ["safetensors.torch.save_file", "pathlib.Path.rename"])
def test_a_save_that_fails_half_way_leaves_the_one_before(tmp_path, monkeypatch, broken):
    whole = make_task()
    train(whole, settings(tmp_path / "whole"))

    def full_disk(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    def fill_the_disk(trainer):
        if trainer.step == 9:
            monkeypatch.setattr(broken, full_disk)

    with pytest.raises(OSError, match="No space left"):
        train(make_task(), settings(tmp_path / "cut", save_every=8), on_step=fill_the_disk)
    monkeypatch.undo()
    assert latest_state(tmp_path / "cut").name == "step-00000008"
    rest = make_task()
    train(rest, settings(tmp_path / "cut", resume=True))
    _assert_same_bits(_weights(rest), _weights(whole))
    assert [path.name for path in (tmp_path / "cut" / "state").iterdir()] == ["step-00000020"]


def _regression(*, dropout=0.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, dtype=torch.float64, generator=generator)
    y = x.sin().sum(dim=1, keepdim=True)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 1)).double()

    def loss(nets, batch):
        value = nn.functional.mse_loss(nets["net"](batch[0]), batch[1])
        return value, {"twice": 2 * value}

    return Task(
        modules={"net": net},
        phases=(Phase("fit", ("net",), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), loss),),
        data=TensorDataset(x[:40], y[:40]),
        validation=TensorDataset(x[40:], y[40:]),
        evaluate=lambda nets, batch: {"error": (nets["net"](batch[0]) - batch[1]).square().mean(dim=1)},
        monitor="error",
        averaged=("net",),
    )


def test_accumulated_parts_are_the_big_batch(tmp_path):
    """In float64 the order of summing is all that differs, so 1e-12 separates it from any real difference."""
    whole, parts = _regression(), _regression()
    train(whole, settings(tmp_path / "whole", batch_size=12, log_every=1))
    train(parts, settings(tmp_path / "parts", batch_size=12, log_every=1, accumulate=3))
    for one, other in zip(_weights(whole).values(), _weights(parts).values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)
    losses = [
        [record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl") if record["kind"] == "train"]
        for name in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_plain_training_is_the_textbook_loop(tmp_path):
    task = _regression()
    train(task, settings(tmp_path, seed=4))
    expected = _regression()
    net, data = expected.modules["net"], expected.data
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    average = WeightAverage({"net": net}, 0.9)
    losses = []
    for step in range(20):
        x, y = data[examples_at(torch.arange(step * 8, step * 8 + 8).numpy(), 4, 40)]
        loss = nn.functional.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update()
        losses.append(loss.item())
    _assert_same_bits(_weights(task), _weights(expected))
    records = read_metrics(tmp_path / "metrics.jsonl")
    logged = {record["step"]: record for record in records if record["kind"] == "train"}
    assert sorted(logged) == [3, 6, 9, 12, 15, 18, 20]
    assert logged[6]["loss"] == pytest.approx(sum(losses[3:6]) / 3)
    assert logged[20]["twice"] == pytest.approx(sum(losses[18:20]))
    with average.applied(), torch.no_grad():
        x, y = expected.validation[:]
        error = float((net(x) - y).square().mean())
    validation = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validation] == [5, 10, 15, 20]
    assert validation[-1]["error"] == pytest.approx(error)


def test_the_best_checkpoint_is_the_best_validations(tmp_path):
    task = _regression()
    saved = []
    errors = iter([3.0, 1.0, 2.0, 1.0])

    def evaluate(nets, batch):
        # one block of validation per call, with a curve that has its minimum in the middle
        return {"error": torch.full((len(batch[0]),), current[0])}

    current = [next(errors)]

    def on_step(trainer):
        if trainer.step % 5 == 0:
            current[0] = next(errors, 0.0)

    task = dataclasses.replace(
        task, evaluate=evaluate, save=lambda path, metadata: saved.append((path.name, metadata["step"]))
    )
    summary = train(task, settings(tmp_path), on_step=on_step)
    assert (summary.best, summary.best_step) == (1.0, 10)
    assert saved == [("best.safetensors", 5), ("best.safetensors", 10), ("last.safetensors", 20)]


def test_phases_move_their_own_weights_on_batches_of_their_own(tmp_path):
    seen, kept = [], []
    task = make_task(seen=seen)
    original = {phase.name: phase.loss for phase in task.phases}

    def watched(name):
        def loss(nets, batch):
            kept.append((name, {module: _flat(net) for module, net in task.modules.items()}))
            trains = {module: all(p.requires_grad for p in net.parameters()) for module, net in task.modules.items()}
            assert trains == {module: module == name for module in task.modules}
            return original[name](nets, batch)

        return loss

    phases = tuple(dataclasses.replace(phase, loss=watched(phase.name)) for phase in task.phases)
    train(dataclasses.replace(task, phases=phases), settings(tmp_path, steps=4))

    assert [name for name, _ in seen] == ["discriminator", "discriminator", "generator"] * 4
    expected = examples_at(torch.arange(3 * 4 * 8).numpy(), 0, 50)
    assert torch.equal(torch.cat([batch for _, batch in seen]), task.data[expected][0])
    for (name, before), (_, after) in itertools.pairwise(kept):
        for module in task.modules:
            assert torch.equal(before[module], after[module]) == (module != name)
    assert all(p.requires_grad for net in task.modules.values() for p in net.parameters())
    recorded = read_metrics(tmp_path / "metrics.jsonl")[0].keys()
    assert {"discriminator/loss", "discriminator/score", "generator/loss"} < recorded


def _flat(net):
    return torch.cat([parameter.detach().flatten().clone() for parameter in net.parameters()])


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    train(_regression(), settings(tmp_path, steps=2))
    with pytest.raises(ValueError, match=r"directory: .* already holds a run; resume it"):
        train(_regression(), settings(tmp_path, steps=2))


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("batch_size", 4), ("ema", 0.5)])
def test_another_run_cannot_be_resumed(tmp_path, name, value):
    train(_regression(), settings(tmp_path, steps=2))
    with pytest.raises(ValueError, match=f"{name}: the run in .* had .*, got {value}"):
        train(_regression(), settings(tmp_path, steps=4, resume=True, **{name: value}))
    other = dataclasses.replace(_regression(), description={"width": 3})
    with pytest.raises(ValueError, match="description: the run in"):
        train(other, settings(tmp_path, steps=4, resume=True))


def test_divergence_stops_the_run(tmp_path):
    task = _regression()
    bad = dataclasses.replace(task.phases[0], loss=lambda nets, batch: (nets["net"](batch[0]).sum() * torch.nan, {}))
    with pytest.raises(RuntimeError, match="training has diverged: at step 3"):
        train(dataclasses.replace(task, phases=(bad,)), settings(tmp_path))


def test_tensorboard_gets_the_same_figures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(_regression(), settings(tmp_path, tensorboard=True))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    recorded = [(event.step, event.value) for event in events.Scalars("train/loss")]
    lines = [record for record in read_metrics(tmp_path / "metrics.jsonl") if record["kind"] == "train"]
    assert [step for step, _ in recorded] == [record["step"] for record in lines]
    assert [value for _, value in recorded] == pytest.approx([record["loss"] for record in lines], rel=1e-6)


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "log_every", "validate_every", "save_every"])
def test_bad_settings_are_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        settings(tmp_path, **{name: 0})


def test_a_phase_of_no_module_is_named():
    task = _regression()
    with pytest.raises(ValueError, match="phases: fit trains 'netz', expected one of net"):
        dataclasses.replace(task, phases=(dataclasses.replace(task.phases[0], trains=("netz",)),))
    with pytest.raises(ValueError, match="averaged: expected one of net, got 'ema'"):
        dataclasses.replace(task, averaged=("ema",))
