"""``vidgen train``. Commands stand above the layers that they tie together."""

from pathlib import Path
from typing import Literal


def train(
    model: Literal["pixelcnn"],
    /,
    *,
    data: Literal["digits"] = "digits",
    out: Path = Path("runs/pixelcnn-digits"),
    steps: int = 1000,
    batch_size: int = 64,
    hidden: int = 64,
    blocks: int = 6,
    dropout: float = 0.5,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    weight_decay: float = 0.0,
    ema: float = 0.99,
    seed: int = 0,
    resume: bool = False,
    accumulate: int = 1,
    precision: Literal["no", "bf16", "fp16"] = "no",
    device: Literal["auto", "cpu"] = "auto",
    log_every: int = 50,
    validate_every: int = 100,
    save_every: int = 500,
    workers: int = 0,
    tensorboard: bool = False,
    progress: bool | None = None,
) -> None:
    """Train a model; Ctrl-C saves, and --resume continues to the same bits.

    The folder gets best.safetensors and last.safetensors (for `vidgen sample`), metrics.jsonl and the state to resume
    from. Several processes: accelerate launch -m vidgen.cli train …, or torchrun -m vidgen.cli train …

    Example: vidgen train pixelcnn --data digits --out runs/digits

    Args:
        model: which model.
        data: which images; digits are scikit-learn's 1,797 of 8×8 pixels.
        out: the run's folder.
        steps: training steps; the learning rate falls to 0 over them.
        batch_size: images per step, over all processes.
        hidden: width inside the residual blocks; outside it is twice that.
        blocks: number of residual blocks.
        dropout: share of values dropped in training.
        learning_rate: AdamW's, at its highest.
        warmup: steps over which the learning rate rises.
        weight_decay: AdamW's.
        ema: decay of the weights' moving average, which is validated and saved; 0 turns it off.
        seed: decides weights, order of the images and dropout.
        resume: continue the run in the folder, if there is one.
        accumulate: parts in which a batch is computed, to save memory.
        precision: of the forward pass; no is float32.
        device: auto takes a GPU if PyTorch sees one.
        log_every: steps between records of the training loss.
        validate_every: steps between validations; the best one's weights are kept.
        save_every: steps between saves of the full state.
        workers: processes that prepare batches.
        tensorboard: write event files too.
        progress: show a progress bar; if not given, on a terminal only.
    """
    import torch

    from vidgen.data import DIGITS_LEVELS, digits
    from vidgen.extras import require
    from vidgen.models import PixelCNN
    from vidgen.train.likelihood import likelihood_task
    from vidgen.train.loop import Settings
    from vidgen.train.loop import train as run

    settings = Settings(
        directory=out,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        seed=seed,
        ema=ema,
        precision=precision,
        device=device,
        log_every=log_every,
        validate_every=validate_every,
        save_every=save_every,
        workers=workers,
        resume=resume,
        tensorboard=tensorboard,
        progress=progress,
    )
    images, held_out = digits("train")[0], digits("validation")[0]
    torch.manual_seed(seed)
    height, width = images.shape[2:]
    network = PixelCNN((1, height, width), DIGITS_LEVELS, hidden, blocks, dropout=dropout)
    task = likelihood_task(
        network,
        images,
        held_out,
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        description={"data": data},
    )
    summary = run(task, settings)
    if require("accelerate", extra="train").PartialState().is_main_process:
        if summary.interrupted:
            print(f"stopped and saved at step {summary.step} of {steps}; --resume continues")
        else:
            print(f"trained {summary.step} steps in {summary.seconds:.0f} s")
        if summary.best is not None:
            print(f"best so far: {summary.best:.4f} bits/dim on held-out images at step {summary.best_step}")
        print(f"weights in {out}: best.safetensors, last.safetensors")
