"""``vidgen flow``. Commands stand above the layers that they tie together."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from vidgen.extraction.lock import BusyError
from vidgen.extraction.outputs import SINGLE_FILES, Format, Settings
from vidgen.extraction.run import Summary, extract_flow
from vidgen.ops.optical_flow import METHODS


def flow(
    source: Annotated[Path, arg(metavar="IN")],
    out: Annotated[Path, arg(metavar="OUT")],
    /,
    *,
    format: Format | None = None,
    method: str = "dis",
    preset: str | None = None,
    stride: int = 1,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    bound: float = 20.0,
    dtype: Literal["float32", "float16"] = "float32",
    fps: float = 25.0,
    batch: int = 4,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> int:
    """Compute dense optical flow of whole videos.

    IN is a video, or a folder of videos or of numbered pictures, searched to any depth. Of IN/walk/one.mp4 comes
    OUT/walk/one/flow_000000.flo …, a folder for each video, or, with --format safetensors or mp4, one file,
    OUT/walk/one.safetensors. A number is that of the frame from which the flow starts.

    Run again, it goes on where an earlier run of the same settings ended, however that ended, to the same bytes; where
    another run is writing to OUT it does nothing. A video that cannot be read is reported and the rest goes on. Exit
    status: 0, 1 if anything failed, 2 for a wrong call, 130 after Ctrl-C.

    Example: vidgen flow videos flows --preset fast

    Example: vidgen flow clip.mp4 clip-flow.mp4

    Args:
        source: a video, or a folder of videos or of numbered pictures.
        out: a folder; for one video also a name that ends in .mp4 or .safetensors.
        format: flo, Middlebury's; kitti, 16-bit PNG; images, two 8-bit grey PNG of ±bound, as two-stream networks read
            them; safetensors, one file with "flow" (P, 2, H, W) and "timestamps"; mp4, the colour wheel. If not given,
            what the name of OUT says, else flo.
        method: with its presets: METHODS.
        preset: the method's parameters by their name; if not given, its own choice.
        stride: use every stride-th frame only.
        short_side: resize frames so that this is their shorter side. Flow is in pixels of the resized frame.
        size: resize frames to this height and width.
        bound: pixels. images: a longer displacement is clipped; mp4: this one has the full colour.
        dtype: of safetensors.
        fps: frames per second of folders of pictures.
        batch: pairs of frames computed at once; memory grows with it.
        workers: videos at once; torch's threads are divided among them, and memory grows with them. If not given, one
            for each thread, at most four.
        overwrite: compute anew what is there.
        progress: show a progress bar; if not given, on a terminal, and elsewhere a line every minute.
    """
    began = time.monotonic()
    try:
        named: Format = next((each for each, suffix in SINGLE_FILES.items() if out.suffix == suffix), "flo")
        if preset is None and method in METHODS:
            preset = METHODS[method].default
        settings = Settings(format or named, method, preset or "", stride, short_side, size, bound, dtype, fps)
        summary = extract_flow(source, out, settings, batch=batch, workers=workers, overwrite=overwrite, show=progress)
    except (ValueError, FileNotFoundError) as error:
        print(f"vidgen flow: {error}", file=sys.stderr)
        return 2
    except BusyError as error:
        print(f"vidgen flow: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"vidgen flow: {error}; once that is mended, the same command goes on", file=sys.stderr)
        return 1
    _tell(summary, out, time.monotonic() - began)
    return 130 if summary.stopped else 1 if summary.failed else 0


def _tell(summary: Summary, out: Path, seconds: float) -> None:
    earlier = f", {summary.skipped} were there already" if summary.skipped else ""
    print(f"{summary.done} of {summary.videos} videos, {summary.flows} flows in {seconds:.1f} s{earlier}: {out}")
    for path, note in summary.notes:
        print(f"note: {path} {note}", file=sys.stderr)
    if summary.failed:
        print(f"{len(summary.failed)} failed:", file=sys.stderr)
        for path, reason in summary.failed:
            print(f"  {reason}" if path in reason else f"  {path}: {reason}", file=sys.stderr)
    if summary.stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)


flow.__doc__ = (flow.__doc__ or "").replace(
    "METHODS", "; ".join(f"{name} ({', '.join(kind.presets)})" for name, kind in METHODS.items())
)
