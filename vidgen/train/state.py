"""The full state of a run, so that it continues to the same bits.

    DIRECTORY/state/step-00000400/     weights, optimisers, gradient scaler and random generators of every process
                                       (accelerate's format), average.safetensors, run.json

A state is written to a folder of another name and renamed when it is complete; older ones are removed after that.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vidgen.extras import require

_COMPLETE = re.compile(r"step-(\d+)")


def latest_state(directory: Path) -> Path | None:
    """The folder of the newest complete state of a run, or None."""
    states = [path for path in (directory / "state").glob("step-*") if _COMPLETE.fullmatch(path.name)]
    return max(states, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def save_state(
    accelerator: Any, directory: Path, step: int, run: dict[str, Any], average: Mapping[str, Tensor] | None
) -> None:
    """Writes the state after ``step`` training steps; called by every process of the run."""
    final = directory / "state" / f"step-{step:08d}"
    partial = final.with_name(f"partial-{step:08d}")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        if average is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in average.items()}
            require("safetensors.torch", extra="train").save_file(tensors, partial / "average.safetensors")
        (partial / "run.json").write_text(json.dumps(run), encoding="utf-8")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        # a state of this step is there only if the run was resumed and stopped at once; the new one is the same
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for other in (directory / "state").iterdir():
            if other != final:
                shutil.rmtree(other, ignore_errors=True)
    accelerator.wait_for_everyone()


def read_run(state: Path) -> dict[str, Any]:
    """What ``save_state`` was given as ``run``."""
    run: dict[str, Any] = json.loads((state / "run.json").read_text(encoding="utf-8"))
    return run


def load_state(accelerator: Any, state: Path) -> dict[str, Tensor] | None:
    """Restores weights, optimisers and random generators in place; returns the averages, if there are any."""
    accelerator.load_state(str(state))
    path = state / "average.safetensors"
    if not path.is_file():
        return None
    average: dict[str, Tensor] = require("safetensors.torch", extra="train").load_file(path)
    return average
