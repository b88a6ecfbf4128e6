"""``vidgen train``. Commands stand above the layers that they tie together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from vidgen.train.task import Task

ModelName = Literal["pixelcnn", "gated-pixelcnn", "pixelcnnpp", "c3d", "single-frame", "two-stream"]

# what a model has options for, and their values where none is given
_MOTION = {
    "data": "moving-digits",
    "steps": 100,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup": 20,
    "weight_decay": 0.01,
    "ema": 0.95,
    "validate_every": 25,
    "width": 8,
    "frames": 16,
    "size": 32,
    "clips": 4096,
}
_DIGITS = {
    "data": "digits",
    "steps": 1000,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "warmup": 100,
    "weight_decay": 0.0,
    "ema": 0.99,
    "validate_every": 100,
    "dropout": 0.5,
    "recipe": "cosine",
}
_BY_CLASS = {**_DIGITS, "steps": 800, "learning_rate": 3e-3, "class_conditional": True}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "pixelcnn": {**_DIGITS, "hidden": 64, "blocks": 6},
    "gated-pixelcnn": {**_BY_CLASS, "hidden": 64, "blocks": 4},
    "pixelcnnpp": {**_BY_CLASS, "hidden": 24, "blocks": 1},
    "c3d": {**_MOTION, "dropout": 0.5},
    "single-frame": _MOTION,
    "two-stream": {
        **_MOTION,
        "steps": 160,
        "learning_rate": 2e-3,
        "width": 12,
        "clips": 2048,
        "dropout": 0.0,
        "length": 10,
        "stacking": "optical_flow",
        "bidirectional": False,
    },
}


def train(
    model: ModelName,
    /,
    *,
    data: Literal["digits", "moving-digits"] | None = None,
    out: Path | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    hidden: int | None = None,
    blocks: int | None = None,
    class_conditional: bool | None = None,
    recipe: Literal["cosine", "pixelcnn++"] | None = None,
    width: int | None = None,
    frames: int | None = None,
    size: int | None = None,
    clips: int | None = None,
    length: int | None = None,
    stacking: Literal["optical_flow", "trajectory"] | None = None,
    bidirectional: bool | None = None,
    dropout: float | None = None,
    learning_rate: float | None = None,
    warmup: int | None = None,
    weight_decay: float | None = None,
    ema: float | None = None,
    seed: int = 0,
    resume: bool = False,
    accumulate: int = 1,
    precision: Literal["no", "bf16", "fp16"] = "no",
    device: Literal["auto", "cpu"] = "auto",
    log_every: int | None = None,
    validate_every: int | None = None,
    save_every: int = 500,
    workers: int = 0,
    tensorboard: bool = False,
    progress: bool | None = None,
) -> None:
    """Train a model; Ctrl-C saves, and --resume continues to the same bits.

    pixelcnn, and class by class gated-pixelcnn and pixelcnnpp, learn to draw scikit-learn's 1,797 digits of 8×8
    pixels; `vidgen sample` draws with their weights. c3d learns to tell how a digit moves.
    single-frame is its control: it looks at one frame at a time, and none shows how. two-stream tells digit and motion
    before a texture: one stream by frames, the other by optical flow. best.safetensors averages their scores,
    fused.safetensors fuses them by a linear SVM.

    The folder gets best.safetensors, last.safetensors, metrics.jsonl and the state to resume from. Several processes:
    accelerate launch -m vidgen.cli train …, or torchrun -m vidgen.cli train …

    Examples: vidgen train pixelcnn --data digits --out runs/digits; vidgen train c3d --data moving-digits

    Args:
        model: which model.
        data: moving-digits for c3d, single-frame and two-stream, else digits.
        out: the run's folder; runs/MODEL-DATA if not given.
        steps: training steps; the learning rate falls to 0 over them. 1000 for pixelcnn, 800 for
            gated-pixelcnn and pixelcnnpp, 100 for c3d and single-frame, 160 for two-stream, whose spatial stream is
            updated three times in each.
        batch_size: images or clips per step, over all processes. 32 for c3d, single-frame and two-stream, else 64.
        hidden: pixelcnn: width inside the residual blocks, 64, outside it is twice that; gated-pixelcnn: width of both
            stacks, 64; pixelcnnpp: filters of both streams, 24.
        blocks: pixelcnn: residual blocks, 6; gated-pixelcnn: layers after the first, 4; pixelcnnpp: blocks of each
            stream and scale, 1.
        class_conditional: gated-pixelcnn, pixelcnnpp: whether images are drawn class by class; true if not given.
        recipe: pixelcnn, gated-pixelcnn, pixelcnnpp: cosine is AdamW as described below; pixelcnn++ is what PixelCNN++
            was trained with, Adam whose learning rate is times 0.999995 in every step, without warmup or weight decay.
        width: c3d, single-frame: channels of the first convolution, 8; two-stream: of both streams', a multiple of 3,
            12.
        frames: of a clip, for c3d, single-frame and two-stream, 16.
        size: height and width of a clip, for the same, 32.
        clips: clips to train on, for the same, 4096; two-stream: 2048.
        length: two-stream: displacement fields in a stack, 10; fewer than frames.
        stacking: two-stream: fields at the same pixel, optical_flow, or along what moves, trajectory.
        bidirectional: two-stream: whether half of the fields lead back from the frame.
        dropout: all but single-frame: share of values dropped in training, 0.5; two-stream: 0.
        learning_rate: AdamW's, at its highest. 0.002 for pixelcnn and two-stream, 0.003 for gated-pixelcnn and
            pixelcnnpp, 0.001 for c3d and single-frame.
        warmup: steps over which the learning rate rises. 20 for c3d, single-frame and two-stream, else 100.
        weight_decay: AdamW's. 0.01 for c3d, single-frame and two-stream, else 0.
        ema: decay of the weights' moving average, which is validated and saved; 0 turns it off. 0.95 for c3d,
            single-frame and two-stream, else 0.99.
        seed: decides weights, order of the examples and dropout.
        resume: continue the run in the folder, if there is one.
        accumulate: parts in which a batch is computed, to save memory.
        precision: of the forward pass; no is float32.
        device: auto takes a GPU if PyTorch sees one.
        log_every: steps between records of the training loss; half of validate_every if not given.
        validate_every: steps between validations; the best one's weights are kept. 100 for pixelcnn, else 25.
        save_every: steps between saves of the full state.
        workers: processes that prepare batches.
        tensorboard: write event files too.
        progress: show a progress bar; if not given, on a terminal only.
    """
    import torch

    from vidgen.extras import require
    from vidgen.train.loop import Settings
    from vidgen.train.loop import train as run

    given = {
        "data": data,
        "steps": steps,
        "batch_size": batch_size,
        "hidden": hidden,
        "blocks": blocks,
        "class_conditional": class_conditional,
        "recipe": recipe,
        "width": width,
        "frames": frames,
        "size": size,
        "clips": clips,
        "length": length,
        "stacking": stacking,
        "bidirectional": bidirectional,
        "dropout": dropout,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "ema": ema,
        "validate_every": validate_every,
    }
    options = _options(model, given)
    out = out or Path("runs") / f"{model}-{options['data']}"
    settings = Settings(
        directory=out,
        steps=options["steps"],
        batch_size=options["batch_size"],
        accumulate=accumulate,
        seed=seed,
        ema=options["ema"],
        precision=precision,
        device=device,
        log_every=log_every or max(options["validate_every"] // 2, 1),
        validate_every=options["validate_every"],
        save_every=save_every,
        workers=workers,
        resume=resume,
        tensorboard=tensorboard,
        progress=progress,
    )
    torch.manual_seed(seed)
    if model == "two-stream":
        task = _two_stream_task(options, seed)
    else:
        task = _motion_task(model, options, seed) if model in ("c3d", "single-frame") else _digits_task(model, options)
    summary = run(task, settings)
    if require("accelerate", extra="train").PartialState().is_main_process:
        if summary.interrupted:
            print(f"stopped and saved at step {summary.step} of {settings.steps}; --resume continues")
        else:
            print(f"trained {summary.step} steps in {summary.seconds:.0f} s")
        if summary.best is not None:
            unit = (
                "bits/dim on held-out images"
                if options["data"] == "digits"
                else "nats of cross entropy on held-out clips"
            )
            print(f"best so far: {summary.best:.4f} {unit} at step {summary.best_step}")
            if options["data"] != "digits":
                verdict = _two_stream_verdict if model == "two-stream" else _motion_verdict
                print(verdict(out, options, seed))
        print(f"weights in {out}: best.safetensors, last.safetensors")


def _options(model: ModelName, given: dict[str, Any]) -> dict[str, Any]:
    """The model's options: what was given, else its own values."""
    defaults = _DEFAULTS[model]
    options = dict(defaults)
    for name, value in given.items():
        if value is None:
            continue
        if name not in defaults:
            raise ValueError(f"{name}: {model} has no such option, got {value!r}")
        options[name] = value
    if options["data"] != defaults["data"]:
        raise ValueError(f"data: {model} learns {defaults['data']}, got {options['data']!r}")
    return options


_OPTIMIZATION = ("steps", "learning_rate", "weight_decay", "warmup")


def _digits_task(model: ModelName, options: dict[str, Any]) -> Task:
    from vidgen.data import DIGITS_LEVELS, digits
    from vidgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP
    from vidgen.nn import initialize_from_data
    from vidgen.train.likelihood import likelihood_task

    data: tuple[Tensor, ...] = digits("train")
    held_out: tuple[Tensor, ...] = digits("validation")
    height, width = data[0].shape[2:]
    shape, hidden, blocks, dropout = (1, height, width), options["hidden"], options["blocks"], options["dropout"]
    optimization = {name: options[name] for name in _OPTIMIZATION}
    optimization["recipe"] = options["recipe"]
    description = {"data": options["data"]}
    classes = 10 if options.get("class_conditional") else 0
    if not classes:
        data, held_out = data[:1], held_out[:1]
    network: PixelCNN | GatedPixelCNN | PixelCNNPP
    if model == "pixelcnn":
        network = PixelCNN(shape, DIGITS_LEVELS, hidden, blocks, dropout=dropout)
    elif model == "gated-pixelcnn":
        network = GatedPixelCNN(shape, DIGITS_LEVELS, hidden, blocks, classes=classes, dropout=dropout)
    else:
        network = PixelCNNPP(shape, blocks, hidden, 5, classes, dropout, DIGITS_LEVELS)
        initialize_from_data(network.train(), *(tensor[:256] for tensor in data))
    return likelihood_task(network, data, held_out, **optimization, description=description)


def _motion_task(model: Any, options: dict[str, Any], seed: int) -> Task:
    from vidgen.train.classification import classification_task
    from vidgen.train.moving_digits import motion_clips, motion_model

    shape = {name: options[name] for name in ("frames", "size")}
    parts = motion_clips(**shape, clips=options["clips"], seed=seed)
    network = motion_model(model, **shape, width=options["width"], dropout=options.get("dropout", 0.0))
    train, held_out = ((parts[name].video, parts[name].motion) for name in ("train", "validation"))
    optimization = {name: options[name] for name in _OPTIMIZATION}
    description = {"data": options["data"], "clips": options["clips"]}
    return classification_task(network, train, held_out, **optimization, description=description)


def _motion_verdict(out: Path, options: dict[str, Any], seed: int) -> str:
    """What the best weights make of clips of digits that were not trained on."""
    from vidgen.data import MOTIONS
    from vidgen.models import load_checkpoint
    from vidgen.train.classification import predictions
    from vidgen.train.moving_digits import motion_clips

    test = motion_clips(options["frames"], options["size"], 0, seed)["test"]
    right = predictions(load_checkpoint(out / "best.safetensors"), test.video) == test.motion
    share, chance = float(right.double().mean()), 1 / len(MOTIONS)
    return (
        f"motion told right in {share:.1%} of {len(right)} clips of unseen digits; by chance it would be {chance:.0%}"
    )


def _two_stream_task(options: dict[str, Any], seed: int) -> Task:
    from vidgen.train.two_stream import classes_of, two_stream_clips, two_stream_model, two_stream_task

    parts = two_stream_clips(options["frames"], options["size"], options["clips"], seed)
    names = ("size", "width", "dropout", "length", "stacking", "bidirectional")
    network = two_stream_model(**{name: options[name] for name in names})
    train, held_out = ((parts[name].video, classes_of(parts[name])) for name in ("train", "validation"))
    optimization = {name: options[name] for name in _OPTIMIZATION}
    description = {"data": options["data"], "clips": options["clips"], "frames": options["frames"]}
    return two_stream_task(network, train, held_out, **optimization, seed=seed, description=description)


def _two_stream_verdict(out: Path, options: dict[str, Any], seed: int) -> str:
    """What the best weights make of clips of unseen digits, by both fusions; keeps those with the SVM."""
    from vidgen.models import TwoStream, load_checkpoint, read_metadata, save_checkpoint
    from vidgen.train.two_stream import CLASSES, judge, two_stream_clips

    parts = two_stream_clips(options["frames"], options["size"], options["clips"], seed)
    best = out / "best.safetensors"
    network = load_checkpoint(best)
    assert isinstance(network, TwoStream)
    right, _ = judge(network, parts["train"], parts["test"])
    more = {name: value for name, value in read_metadata(best).items() if name not in ("format", "model", "config")}
    save_checkpoint(network, out / "fused.safetensors", **more)
    count = len(parts["test"].motion)
    shares = ", ".join(f"{name} {right[name] / count:.1%}" for name in ("spatial", "temporal", "average", "svm"))
    return f"digit and motion told right in {count} clips of unseen digits: {shares}; by chance {1 / CLASSES:.1%}"
