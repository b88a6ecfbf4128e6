"""The record of a run: one JSON object per line, and TensorBoard if wanted."""

import json
from pathlib import Path
from typing import Any

from vidgen.extras import require
from vidgen.files import write_atomically


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a last line that a crash cut short is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class MetricsLog:
    """Appends records to ``metrics.jsonl`` in a run's folder.

    Each record has "step" (training steps done) and "kind" ("train" or "validation"), and its metrics.

    Args:
        directory: the run's folder.
        step: the step that the run continues from; what an interrupted run recorded after it is dropped.
        tensorboard: write event files to ``directory/tensorboard`` as well.
    """

    def __init__(self, directory: Path, *, step: int, tensorboard: bool):
        self._path = directory / "metrics.jsonl"
        kept = [r for r in read_metrics(self._path) if r["step"] <= step] if step and self._path.exists() else []
        write_atomically(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._writer: Any = None
        if tensorboard:
            require("tensorboard", extra="tensorboard")
            writer = require("torch.utils.tensorboard", extra="tensorboard").SummaryWriter
            self._writer = writer(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Adds a record; it is on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes the event files."""
        if self._writer is not None:
            self._writer.close()
