"""What flow is computed of: video files, and folders of numbered pictures, each by the name that its output gets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidgen.data import Frame, expected_frames, iter_frames

VIDEOS = (
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts"),
    *(".vob", ".webm", ".wmv", ".y4m"),
)
PICTURES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Source:
    """A video file, or a folder of pictures in the order of their numbers.

    Attributes:
        path: of the file or folder.
        name: where its output goes, relative to the output folder: the path under the input folder without suffix.
        is_folder: whether it is a folder of pictures. They are listed when asked for: a data set has millions.
        fps: of a folder of pictures.
    """

    path: Path
    name: Path
    is_folder: bool = False
    fps: float = 25.0

    def pictures(self) -> list[Path]:
        """The frames' files, in order."""
        names = (name for name in os.listdir(self.path) if _is_picture(name))
        return [self.path / name for name in sorted(names, key=natural_order)]

    def frames(self, *, threads: int = 0) -> Iterator[Frame]:
        """The frames one by one; ValueError where they are damaged.

        Args:
            threads: of the decoder, 0 for as many as there are processor cores.
        """
        if not self.is_folder:
            yield from iter_frames(self.path, threads=threads)
            return
        for number, path in enumerate(self.pictures()):
            # what a file of several pictures holds beyond the first is no frame of the series
            frame = next(iter_frames(path, threads=1))
            yield frame._replace(seconds=number / self.fps)

    def expected_frames(self) -> int | None:
        """About how many there are, for the progress bar; None if nobody knows, as where the file is damaged."""
        if self.is_folder:
            return len(self.pictures())
        try:
            return expected_frames(self.path)
        except (ValueError, OSError):
            return None

    def identity(self) -> dict[str, str | int]:
        """What tells that a later run has the same source before it: its name and its size."""
        files = self.pictures() if self.is_folder else [self.path]
        known: dict[str, str | int] = {"name": self.path.name, "bytes": sum(path.stat().st_size for path in files)}
        return {**known, "pictures": len(files)} if self.is_folder else known


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(PICTURES)


def find_sources(given: Path, *, fps: float = 25.0, apart_from: Path | None = None) -> list[Source]:
    """The video that a path is, or every video and folder of pictures under a folder, in the order of their names.

    Folders are searched to any depth, and through links. A folder of pictures holds no video: pictures beside videos
    are not taken for frames. Names that begin with a dot are passed over.

    Args:
        given: a video file, or a folder.
        fps: frames per second of folders of pictures.
        apart_from: a folder that is not searched, such as the one that is written to.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: there is nothing to compute, or two sources would have the same output.
    """
    if given.is_file():
        if given.suffix.lower() in PICTURES:
            raise ValueError(f"IN must be a video or a folder; {given} is one picture")
        return [Source(given, Path(given.stem))]
    if not given.is_dir():
        raise FileNotFoundError(f"IN: there is no file or folder {given}")
    found = list(_search(given, fps, apart_from.resolve() if apart_from else None))
    if not found:
        raise ValueError(f"IN must hold videos ({' '.join(VIDEOS)}) or numbered pictures, found none in {given}")
    found.sort(key=lambda source: natural_order(source.name.as_posix()))
    taken: dict[Path, Path] = {}
    for source in found:
        if source.name in taken:
            raise ValueError(
                f"IN must have one source for each output; {taken[source.name]} and {source.path} would both be "
                f"{source.name}: rename one"
            )
        taken[source.name] = source.path
    return found


def _search(root: Path, fps: float, apart_from: Path | None) -> Iterator[Source]:
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder)
        # a link to a folder above would lead round for ever
        if (real := here.resolve()) in seen or real == apart_from:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        files = [here / name for name in names if not name.startswith(".")]
        if videos := [path for path in files if path.suffix.lower() in VIDEOS]:
            yield from (Source(path, path.relative_to(root).with_suffix("")) for path in videos)
        elif any(_is_picture(name) for name in names):
            name = here.relative_to(root) if here != root else Path(root.resolve().name)
            yield Source(here, name, True, fps)


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame2 before frame10."""
    # every second part is a number
    return [(int(part) if i % 2 else 0, part) for i, part in enumerate(re.split(r"(\d+)", name))]
