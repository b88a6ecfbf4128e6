"""The training loop, one for every model.

A training step runs the task's phases; a phase makes one or more optimiser updates, each on a batch of its own. The
loop adds what every training needs: device, mixed precision and processes (by ``accelerate``: start it with plain
Python, ``accelerate launch`` or ``torchrun``), gradient accumulation, moving average of the weights, validation, best
checkpoint, a record of metrics, and full-state saving on which Ctrl-C relies.

Files of a run:

    metrics.jsonl        one JSON object per line: {"kind": "train" | "validation", "step": …, metrics}
    best.safetensors     weights with the least monitored metric so far (averaged, if ``ema`` > 0)
    last.safetensors     weights at the last save, likewise
    state/               what resuming needs

How the same task is divided over processes and accumulation steps changes rounding and nothing else: batches are a
function of (seed, update) over all of them together, and every part has the same size.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vidgen.extras import require
from vidgen.progress import Bar, progress_bar
from vidgen.signals import stop_on_signals
from vidgen.train.average import WeightAverage
from vidgen.train.metrics import MetricsLog
from vidgen.train.order import batches
from vidgen.train.state import latest_state, load_state, read_run, save_state
from vidgen.train.task import Phase, Task


@dataclass(frozen=True)
class Settings:
    """How a task is trained.

    Attributes:
        directory: the run's folder.
        steps: training steps of the whole run.
        batch_size: examples per update, over all processes and accumulation steps.
        accumulate: micro-batches per update.
        seed: decides the order of the data and every random draw of the training.
        ema: decay of the weights' moving average; 0 turns it off.
        precision: "no" (float32), "bf16" or "fp16".
        device: "auto" (a GPU where torch sees one) or "cpu".
        log_every, validate_every, save_every: in training steps. Logged figures are means since the last log.
        workers: processes that fetch batches; 0: none.
        resume: continue the run in the folder, if there is one; else a folder that holds a run is refused.
        tensorboard: write event files too.
        progress: show a progress bar: True, False, or None (on a terminal).
    """

    directory: Path
    steps: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    ema: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    device: Literal["auto", "cpu"] = "auto"
    log_every: int = 50
    validate_every: int = 500
    save_every: int = 500
    workers: int = 0
    resume: bool = False
    tensorboard: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers: expected at least 0, got {self.workers}")


@dataclass(frozen=True)
class Summary:
    """How a run ended: steps done, whether a signal stopped it, the best monitored metric, seconds of this call."""

    step: int
    interrupted: bool
    best: float | None
    best_step: int | None
    seconds: float


def train(task: Task, settings: Settings, *, on_step: Callable[["Trainer"], None] | None = None) -> Summary:
    """Trains a task; its modules hold the final (not the averaged) weights afterwards.

    Args:
        task: what to train.
        settings: how.
        on_step: called after every step; ``trainer.step`` is the number of steps done, ``trainer.stop()`` ends the run
            as Ctrl-C would.

    Raises:
        ValueError: the folder holds a run and ``resume`` is False, or that run was another task's or had another batch,
            seed or average; the batch cannot be divided.
        RuntimeError: the loss is no longer finite.
        ModuleNotFoundError: accelerate or safetensors is not installed (``pip install 'vidgen[train]'``).
    """
    return Trainer(task, settings, on_step).run()


class Trainer:
    """A run in progress; made by ``train``."""

    def __init__(self, task: Task, settings: Settings, on_step: Callable[["Trainer"], None] | None = None):
        # first, since accelerate needs it too, and says so in its own words
        require("safetensors", extra="train")
        accelerate = require("accelerate", extra="train")
        self.task, self.settings = task, settings
        self.step = 0
        self.best: float | None = None
        self.best_step: int | None = None
        self._on_step = on_step or (lambda trainer: None)
        self._stopping = False
        self._totals: dict[str, Tensor] = {}
        self._steps_in_totals = 0
        self.accelerator = accelerate.Accelerator(
            mixed_precision=settings.precision, cpu=settings.device == "cpu" or not torch.cuda.is_available()
        )
        state = self._find_state()
        # every process draws its own dropout; the caller has made the weights, and wrapping makes them equal everywhere
        accelerate.utils.set_seed(settings.seed % 2**32, device_specific=True)
        self._trainable = {
            name: [parameter for parameter in module.parameters() if parameter.requires_grad]
            for name, module in task.modules.items()
        }
        self._wrapped = {name: self.accelerator.prepare_model(module) for name, module in task.modules.items()}
        self._optimizers = [self._optimizer(phase) for phase in task.phases]
        averaged = {name: task.modules[name] for name in task.averaged}
        self._average = WeightAverage(averaged, settings.ema) if settings.ema else None
        if state is not None:
            self._restore(state)

    def stop(self) -> None:
        """Ends the run after the present step, saved (with several processes: at the next log)."""
        self._stopping = True

    def run(self) -> Summary:
        """Trains from the present step to the last."""
        settings, main = self.settings, self.accelerator.is_main_process
        began = time.monotonic()
        if main:
            settings.directory.mkdir(parents=True, exist_ok=True)
        log = MetricsLog(settings.directory, step=self.step, tensorboard=settings.tensorboard) if main else None
        show = settings.progress if main else False
        bar = progress_bar(settings.steps, "training", show=show, initial=self.step, unit="step")
        stopped = False
        try:
            with stop_on_signals(self.stop, speak=main):
                data = self._batches()
                self._set_mode(training=True)
                while self.step < settings.steps and not stopped:
                    self._train_step(data)
                    stopped = self._finish_step(log, bar)
        finally:
            bar.close()
            if log is not None:
                log.close()
            self._select_trainable(self.task.modules)
            for wrapped in self._wrapped.values():
                self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        interrupted = self.step < settings.steps
        return Summary(self.step, interrupted, self.best, self.best_step, time.monotonic() - began)

    def _train_step(self, data: Iterator[Any]) -> None:
        for phase, optimizer in zip(self.task.phases, self._optimizers, strict=True):
            for _ in range(phase.updates):
                self._update(phase, optimizer, data)
        if self._average is not None:
            self._average.update()
        self.step += 1
        self._steps_in_totals += 1

    def _update(self, phase: Phase, optimizer: Any, data: Iterator[Any]) -> None:
        """One optimiser step."""
        self._select_trainable(phase.trains)
        # modules that stand still are used bare: they have no gradients for a distributed wrapper to exchange
        modules = {
            name: self._wrapped[name] if name in phase.trains else module for name, module in self.task.modules.items()
        }
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * phase.schedule(self.step)
        parts = self.settings.accumulate
        for part in range(parts):
            batch = self._to_device(next(data))
            with contextlib.ExitStack() as stack:
                if part < parts - 1:
                    for name in phase.trains:
                        stack.enter_context(self.accelerator.no_sync(self._wrapped[name]))
                loss, metrics = phase.loss(modules, batch)
                self.accelerator.backward(loss / parts)
            prefix = f"{phase.name}/" if len(self.task.phases) > 1 else ""
            for name, value in {"loss": loss, **metrics}.items():
                share = value.detach().double() / (parts * phase.updates)
                self._totals[prefix + name] = self._totals.get(prefix + name, 0.0) + share
        if phase.max_grad_norm is not None:
            parameters = [parameter for name in phase.trains for parameter in self._trainable[name]]
            self.accelerator.clip_grad_norm_(parameters, phase.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def _finish_step(self, log: MetricsLog | None, bar: Bar) -> bool:
        """Everything between two steps; True if the run is to stop."""
        settings = self.settings
        last = self.step >= settings.steps
        logging = self.step % settings.log_every == 0 or last
        if logging:
            values = self._read_totals()
            if log is not None:
                log.write("train", self.step, values)
                bar.set_postfix_str(", ".join(f"{name} {value:.4g}" for name, value in values.items()), refresh=False)
            if not all(math.isfinite(value) for value in values.values()):
                raise RuntimeError(f"training has diverged: at step {self.step} it recorded {values}")
        if self.task.validation is not None and (self.step % settings.validate_every == 0 or last):
            values = self._validate()
            if log is not None:
                log.write("validation", self.step, values)
        bar.update(1)
        self._on_step(self)
        stop = self._stop_agreed(logging)
        if stop or last or self.step % settings.save_every == 0:
            self._save()
        return stop

    def _stop_agreed(self, logging: bool) -> bool:
        """Whether any process is to stop. All must stop at one step; asking costs a wait, hence only when logging."""
        if self.accelerator.num_processes == 1:
            return self._stopping
        if not logging:
            return False
        flag = torch.tensor([int(self._stopping)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _read_totals(self) -> dict[str, float]:
        """Means per step since the last log, over all processes; starts anew."""
        steps = self._steps_in_totals
        values = {name: total / steps for name, total in self._reduced(self._totals, "mean").items()}
        self._totals, self._steps_in_totals = {}, 0
        return values

    def _reduced(self, values: dict[str, Tensor], how: Literal["mean", "sum"]) -> dict[str, float]:
        """Scalars of all processes -> one float each."""
        names = sorted(values)
        if not names:
            return {}
        stacked = torch.stack([values[name] for name in names])
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, how)
        return dict(zip(names, stacked.tolist(), strict=True))

    def _validate(self) -> dict[str, float]:
        """Means of the task's metrics over the held-out examples; saves the checkpoint if it is the best so far."""
        data, evaluate = self.task.validation, self.task.evaluate
        assert data is not None
        assert evaluate is not None
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size = self.settings.batch_size
        blocks = math.ceil(len(data) / size)
        sums: dict[str, Tensor] = {}
        with self._evaluating():
            # a process without a block of its own repeats one with no weight, so that all reduce the same metrics
            for number in range(rank, max(blocks, world), world):
                first = number % blocks * size
                batch = self._to_device(data[list(range(first, min(first + size, len(data))))])
                for name, value in evaluate(self.task.modules, batch).items():
                    total = value.double().sum() * float(number < blocks)
                    sums[name] = sums[name] + total if name in sums else total
            values = {name: total / len(data) for name, total in self._reduced(sums, "sum").items()}
            monitored = values[self.task.monitor] if self.task.monitor else math.inf
            if monitored < (math.inf if self.best is None else self.best):
                self.best, self.best_step = monitored, self.step
                self._write_checkpoint("best.safetensors", values)
        return values

    def _save(self) -> None:
        """The full state, and the present weights as a checkpoint."""
        with self._evaluating():
            self._write_checkpoint("last.safetensors", {})
        run = {
            **self._identity(),
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "average_updates": self._average.updates if self._average is not None else 0,
            "totals": self._reduced(self._totals, "mean"),
            "steps_in_totals": self._steps_in_totals,
        }
        average = self._average.state_dict() if self._average is not None else None
        save_state(self.accelerator, self.settings.directory, self.step, run, average)

    def _write_checkpoint(self, name: str, metrics: dict[str, float]) -> None:
        if self.task.save is not None and self.accelerator.is_main_process:
            self.task.save(self.settings.directory / name, {"step": self.step, "metrics": metrics})

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the saved one."""
        settings = self.settings
        return {
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "ema": settings.ema,
            "description": json.loads(json.dumps(self.task.description)),
        }

    def _find_state(self) -> Path | None:
        """The state to resume from, checked; None to start afresh."""
        settings = self.settings
        state = latest_state(settings.directory)
        if not settings.resume:
            if state is not None or (settings.directory / "metrics.jsonl").exists():
                raise ValueError(
                    f"directory: {settings.directory} already holds a run; resume it (resume=True, --resume) or choose "
                    "another folder"
                )
        elif state is not None:
            saved = read_run(state)
            for name, value in self._identity().items():
                if saved[name] != value:
                    raise ValueError(f"{name}: the run in {settings.directory} had {saved[name]!r}, got {value!r}")
        self.accelerator.wait_for_everyone()
        return state

    def _restore(self, state: Path) -> None:
        average = load_state(self.accelerator, state)
        run = read_run(state)
        self.step, self.best, self.best_step = run["step"], run["best"], run["best_step"]
        self._steps_in_totals = run["steps_in_totals"]
        self._totals = {
            name: torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
            for name, value in run["totals"].items()
        }
        if self._average is not None and average is not None:
            self._average.load_state_dict(average, run["average_updates"])

    def _optimizer(self, phase: Phase) -> Any:
        optimizer = phase.optimizer([parameter for name in phase.trains for parameter in self._trainable[name]])
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return self.accelerator.prepare_optimizer(optimizer)

    def _batches(self) -> Iterator[Any]:
        settings, accelerator = self.settings, self.accelerator
        return batches(
            self.task.data,
            seed=settings.seed,
            batch_size=settings.batch_size,
            start=self.step * sum(phase.updates for phase in self.task.phases),
            accumulate=settings.accumulate,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=settings.workers,
            augment=self.task.augment,
            pin_memory=accelerator.device.type == "cuda",
        )

    def _to_device(self, batch: Any) -> Any:
        send = require("accelerate.utils", extra="train").send_to_device
        return send(batch, self.accelerator.device, non_blocking=True)

    def _select_trainable(self, names: Collection[str]) -> None:
        """Only these modules' weights get gradients."""
        for name, parameters in self._trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(name in names)

    def _set_mode(self, *, training: bool) -> None:
        for wrapped in self._wrapped.values():
            wrapped.train(training)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Eval mode, no gradients, averaged weights."""
        self._set_mode(training=False)
        try:
            with torch.no_grad(), self._average.applied() if self._average is not None else contextlib.nullcontext():
                yield
        finally:
            self._set_mode(training=True)
