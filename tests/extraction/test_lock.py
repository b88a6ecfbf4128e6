"""Two runs that write to one place would tear up each other's files: the second one says so and does nothing."""

import errno
import os
import subprocess
import sys

import pytest

from vidgen.cli import main
from vidgen.extraction.lock import BusyError, alone_in

from .clips import make, tree

#: holds the lock on a folder until its standard input ends
HOLDER = (
    "import pathlib, sys; from vidgen.extraction.lock import alone_in\n"
    "with alone_in(pathlib.Path(sys.argv[1]), is_file=False):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_a_second_run_is_turned_away_and_a_killed_one_is_not_waited_for(tmp_path, capsys):
    clip, out = make(tmp_path / "clip.mp4"), tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        before = tree(out)
        assert main(["flow", str(clip), str(out), "--preset", "fast"]) == 1
        assert f"another run is writing to {out}" in capsys.readouterr().err
        assert tree(out) == before, "it has touched nothing"
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    assert list(out.glob(".*.lock")), "what the killed run has left must not be in the way"
    assert main(["flow", str(clip), str(out), "--preset", "fast"]) == 0
    assert not list(out.glob(".*")), "and is gone with the next run"


def test_files_in_one_folder_do_not_shut_each_other_out(tmp_path):
    with alone_in(tmp_path / "a.mp4", is_file=True), alone_in(tmp_path / "b.mp4", is_file=True):
        with pytest.raises(BusyError, match=r"another run is writing to .*a\.mp4"):
            alone_in(tmp_path / "a.mp4", is_file=True).__enter__()
        assert (tmp_path / ".a.mp4.lock").exists(), "whoever is turned away does not take the other's lock with him"
    assert not list(tmp_path.iterdir())


def run_into_an_error(out, *, after_writing):
    with alone_in(out, is_file=False):
        assert out.is_dir()
        if after_writing:
            (out / "flow").touch()
        raise ValueError("wrong")


def test_what_it_made_itself_and_is_still_empty_is_removed_after_an_error(tmp_path):
    out = tmp_path / "deep" / "er"
    for writes in (False, True):
        with pytest.raises(ValueError, match="wrong"):
            run_into_an_error(out, after_writing=writes)
        assert (tmp_path / "deep").exists() == writes
    (out / "flow").unlink()
    with pytest.raises(ValueError, match="wrong"):
        run_into_an_error(out, after_writing=False)
    assert out.is_dir()


def test_a_lock_that_was_taken_from_under_its_name_is_no_lock(tmp_path, monkeypatch):
    """Between opening the file and locking it, the run before may end and remove it: then there is a new one."""
    path, opened = tmp_path / ".vidgen-flow.lock", os.open
    removed = []

    def open_late(name, *arguments):
        file = opened(name, *arguments)
        if not removed:
            removed.append(path.unlink())
        return file

    monkeypatch.setattr(os, "open", open_late)
    with alone_in(tmp_path, is_file=False):
        assert path.exists()
        with pytest.raises(BusyError):
            alone_in(tmp_path, is_file=False).__enter__()


def test_the_name_may_vanish_while_it_is_looked_at(tmp_path, monkeypatch):
    """Then the file is not the one that others will open, and there is a new one."""
    path, stat = tmp_path / ".vidgen-flow.lock", os.stat
    removed = []

    def stat_late(name, *arguments, **keywords):
        if name == path and path.parent.is_dir() and not removed:
            removed.append(os.unlink(path))
        return stat(name, *arguments, **keywords)

    monkeypatch.setattr(os, "stat", stat_late)
    with alone_in(tmp_path, is_file=False):
        assert removed
        assert path.exists()


def test_a_file_that_may_only_be_read_is_locked_all_the_same(tmp_path, monkeypatch):
    """As one that another user's run has made, who is not turned out either."""
    path, opened = tmp_path / ".vidgen-flow.lock", os.open

    def refuse_writing(name, flags, *arguments):
        if flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name, flags, *arguments)

    def refuse(*_arguments, **_keywords):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path.touch()
    monkeypatch.setattr(os, "open", refuse_writing)
    monkeypatch.setattr(os, "unlink", refuse)
    for _ in range(2):
        with alone_in(tmp_path, is_file=False), pytest.raises(BusyError):
            alone_in(tmp_path, is_file=False).__enter__()
    assert path.exists()


def test_where_nobody_can_write_there_is_no_lock_and_no_error(tmp_path, monkeypatch):
    """A run that finds everything whole on a read-only disk has nothing to write."""

    def refuse(*_arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with alone_in(tmp_path, is_file=False):
        assert not list(tmp_path.iterdir())
