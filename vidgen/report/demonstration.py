"""What the page's demonstrations share: a folder of their own, a training run of which all or nothing counts."""

import shutil
from pathlib import Path
from typing import Any

from vidgen.train import Settings, Summary, Task, read_metrics, train

_POINTS = 25


def fresh_folder(directory: str | Path, name: str) -> Path:
    """An empty folder ``directory/name``; that of an earlier demonstration is replaced.

    Raises:
        ValueError: what is there is no training run.
    """
    folder = Path(directory) / name
    if folder.exists():
        if not (folder / "metrics.jsonl").exists():
            raise ValueError(f"directory: {folder} exists and holds no run of this demonstration")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def trained(
    task: Task,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    ema: float,
    progress: bool | None,
    points: int = _POINTS,
) -> Summary:
    """Trains the task, validating it about ``points`` times; the best weights are in ``folder/best.safetensors``."""
    every = max(steps // points, 1)
    settings = Settings(
        folder,
        steps,
        batch_size,
        seed=seed,
        ema=ema,
        log_every=every,
        validate_every=every,
        save_every=steps,
        progress=progress,
    )
    summary = train(task, settings)
    if summary.interrupted:
        # a report of half a training would look like one of a whole one
        raise KeyboardInterrupt
    return summary


def curve(folder: Path, metric: str) -> list[dict[str, float]]:
    """[{"step", "train_METRIC" (mean since the entry before), "validation_METRIC" (averaged weights)}] of a run."""
    records: list[dict[str, Any]] = read_metrics(folder / "metrics.jsonl")
    training = {record["step"]: record[metric] for record in records if record["kind"] == "train"}
    return [
        {
            "step": record["step"],
            f"train_{metric}": training[record["step"]],
            f"validation_{metric}": record[metric],
        }
        for record in records
        if record["kind"] == "validation"
    ]
