"""One run at a time writes to a place: a lock of the operating system, which ends with its process however that ends.

The lock is on a file beside what is written. A file that a killed run has left is no lock: the next run takes it over.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

# a place that nobody may write to, and a file system that has no locks
_NO_LOCKS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class BusyError(RuntimeError):
    """Another run is writing to the same place."""


@contextlib.contextmanager
def alone_in(out: Path, *, is_file: bool) -> Iterator[None]:
    """Keeps other runs from a folder, or from a file, for the time of the block.

    The folder is made if there is none, and removed again if the block ends in an error before anything has come into
    it. Where there can be no lock, as on a read-only disk, the block runs without one.

    Raises:
        BusyError: another run is there.
    """
    folder = out.parent if is_file else out
    made = _make(folder)
    path = folder / (f".{out.name}.lock" if is_file else ".vidgen-flow.lock")
    try:
        lock = _lock(path, out)
        try:
            yield
        finally:
            if lock is not None:
                # first the name, then the lock: whoever opens the file in between sees that it has no name any more
                try:
                    _unlink(path)
                finally:
                    os.close(lock)
    except BaseException:
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()
        raise


def _make(folder: Path) -> list[Path]:
    """Makes a folder and those above it; returns the new ones, the deepest first."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def _lock(path: Path, out: Path) -> int | None:
    """An open file with the lock, or None where there can be none."""
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        return None
    while True:
        file = _open(path)
        if file is None:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(file, path):
                return file
            os.close(file)
        except OSError as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                raise BusyError(
                    f"OUT: another run is writing to {out}; wait until it has ended, or choose another OUT"
                ) from None
            if error.errno in _NO_LOCKS:
                return None
            raise


def _open(path: Path) -> int | None:
    """The file, which is made if there is none; None where it can neither be made nor be read."""
    # the second time in case another run has removed it between the two ways to open it
    for _ in range(2):
        for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):  # another user's file is locked by who can but read it
            try:
                return os.open(path, flags, 0o666)
            except FileNotFoundError:
                if flags != os.O_RDONLY:
                    raise
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
    return None


def _unlink(path: Path) -> None:
    """Where it is another user's file and must stay, it is no lock once it is closed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_named(file: int, path: Path) -> bool:
    """Whether the file still has its name: another run may have ended, and taken it away, since it was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
