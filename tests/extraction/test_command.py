"""`vidgen flow` as people use it: on folders with bad files in them, interrupted, killed, and run again."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from vidgen.cli import main
from vidgen.data import iter_frames
from vidgen.extraction import extract_flow, outputs, pipeline, run, sources
from vidgen.extraction.outputs import open_output
from vidgen.extraction.pipeline import extract_one
from vidgen.extraction.sources import find_sources
from vidgen.ops import optical_flow

from .clips import make, settings, tree

FLOW = [sys.executable, "-m", "vidgen.cli", "flow"]


def call(*arguments, preset="fast"):
    return main(["flow", *map(str, arguments), "--preset", preset])


def test_a_folder_with_bad_files_in_it(tmp_path, capsys):
    """What can be read is done, what cannot is named with its reason, and the exit status tells."""
    videos = tmp_path / "videos"
    good = [make(videos / "one.mp4"), make(videos / "deep" / "er" / "two.mkv", seed=1)]
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.avi").write_text("no video " * 99)
    content = make(videos / "cut.mp4", frames=30).read_bytes()
    (videos / "cut.mp4").write_bytes(content[: len(content) // 2])
    make(videos / "still.mp4", frames=1)
    (videos / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (videos / "readme.txt").write_text("not to be looked at")
    make(videos / ".hidden.mp4")
    assert call(videos, tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "2 of 7 videos, 10 flows" in printed.out
    for words in (
        "5 failed",
        "No such file or directory",
        "empty.mp4 is empty",
        "text.avi is damaged",
        "cut.mp4 is damaged",
        "still.mp4: it has 1",
    ):
        assert words in printed.err
    assert "Traceback" not in printed.err
    folders = {path.parent.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.flo")}
    assert folders == {"one", "deep/er/two"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deep", "one"], "failures leave nothing"
    # once the bad ones are gone, there is nothing left to do
    for path in videos.rglob("*"):
        if not path.is_dir() and path not in good:
            path.unlink()
    before = tree(tmp_path / "out")
    assert call(videos, tmp_path / "out") == 0
    assert "2 were there already" in capsys.readouterr().out
    assert tree(tmp_path / "out") == before


def test_damage_in_the_middle_ends_that_video_only(tmp_path, capsys):
    content = bytearray(make(tmp_path / "in" / "bad.mkv", frames=40).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    (tmp_path / "in" / "bad.mkv").write_bytes(content)
    make(tmp_path / "in" / "good.mp4")
    for kind, whole in (("safetensors", ["good.safetensors"]), ("mp4", ["good.mp4"])):
        assert call(tmp_path / "in", tmp_path / kind, "--format", kind) == 1
        assert "bad.mkv" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / kind).iterdir()] == whole
    # of separate files those before the damage stay, and it is the same ones in any batch
    results = []
    for batch in (1, 5, 64):
        assert call(tmp_path / "in", tmp_path / f"{batch}", "--batch", batch) == 1
        results.append(tree(tmp_path / f"{batch}"))
    assert results[0] == results[1] == results[2]
    assert 0 < len([name for name in results[0] if name.startswith("bad/flow_")]) < 39


def test_a_matroska_file_that_is_cut_off_is_noted(tmp_path, capsys):
    """FFmpeg takes its end for the video's; only the length in the header is longer."""
    content = make(tmp_path / "in" / "cut.mkv", frames=60).read_bytes()
    (tmp_path / "in" / "cut.mkv").write_bytes(content[: len(content) // 2])
    assert call(tmp_path / "in", tmp_path / "out") == 0
    assert "its header promises about 59: it may be cut off" in capsys.readouterr().err


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch, capsys):
    """No other video could be written, and a thousand reports of it would help nobody."""
    for number in range(5):
        make(tmp_path / "in" / f"{number}.mp4", frames=3)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outputs.flow_io, "write_flo", full)
    assert call(tmp_path / "in", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "No space left on device; once that is mended, the same command goes on" in error
    assert error.count("No space") == 1
    monkeypatch.undo()
    assert call(tmp_path / "in", tmp_path / "out") == 0


@pytest.mark.parametrize("format", ["flo", "images", "safetensors", "mp4"])
def test_batch_and_workers_change_no_byte(tmp_path, format, threads):
    for number in range(3):
        make(tmp_path / "in" / f"{number}.mp4", frames=5 + number, seed=number)
    results = []
    for batch, workers, torch_threads in ((1, 1, 1), (3, 2, 2), (16, 5, 2)):
        threads(torch_threads)
        out = tmp_path / f"{batch}-{workers}"
        summary = extract_flow(tmp_path / "in", out, settings(format), batch=batch, workers=workers, show=False)
        assert (summary.done, summary.flows, torch.get_num_threads()) == (3, 15, torch_threads)
        results.append(tree(out))
    assert results[0] == results[1] == results[2]


def count_pairs(monkeypatch):
    """Every pair that the op is asked for from here on."""
    pairs = []

    def counted(prev, next, **how):
        pairs.extend([1] * len(prev))
        return optical_flow(prev, next, **how)

    monkeypatch.setattr(pipeline, "optical_flow", counted)
    return pairs


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("missing", [(0,), (8,), (3, 4, 7), (0, 2, 4, 6, 8), (1, 5)])
def test_only_missing_flows_are_computed(tmp_path, monkeypatch, batch, missing):
    clip, out = make(tmp_path / "clip.mp4", frames=10), tmp_path / "out"
    extract_flow(clip, out, settings(), show=False)
    whole, pairs = tree(out), count_pairs(monkeypatch)
    for number in missing:
        (out / "clip" / f"flow_{number:06d}.flo").unlink()
    summary = extract_flow(clip, out, settings(), batch=batch, show=False)
    assert tree(out) == whole
    assert (len(pairs), summary.flows) == (len(missing), 9)
    extract_flow(clip, out, settings(), batch=batch, show=False)
    assert len(pairs) == len(missing)
    extract_flow(clip, out, settings(), overwrite=True, show=False)
    assert len(pairs) == len(missing) + 9
    assert tree(out) == whole


@pytest.mark.parametrize("format", ["flo", "safetensors", "mp4"])
def test_other_settings_or_another_video_are_refused(tmp_path, format, capsys):
    """Flows of two kinds in one folder would be found out by nobody."""
    clip, out = make(tmp_path / "clip.mp4"), tmp_path / "out"
    kind = ["--format", format]
    assert call(clip, out, *kind) == 0
    before = tree(out)
    assert call(clip, out, *kind, preset="medium") == 2
    assert "was made with preset fast (now medium); choose another OUT, or --overwrite" in capsys.readouterr().err
    assert call(clip, out, *kind, "--stride", 2) == 2
    assert "stride none (now 2)" in capsys.readouterr().err
    make(clip, frames=4)
    assert call(clip, out, *kind) == 2
    assert "was made with bytes" in capsys.readouterr().err
    assert tree(out) == before
    assert call(clip, out, *kind, "--overwrite") == 0
    fresh = tmp_path / "fresh"
    assert call(clip, fresh, *kind) == 0
    assert tree(out) == tree(fresh)


def test_files_of_somebody_else_are_left_alone(tmp_path, capsys):
    clip = make(tmp_path / "clip.mp4")
    strange = [("flo", "clip/flow_000000.flo"), ("safetensors", "clip.safetensors"), ("mp4", "clip.mp4")]
    for format, name in strange:
        path = tmp_path / format / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
        assert call(clip, tmp_path / format, "--format", format) == 2
        assert "is not known to be of this command" in capsys.readouterr().err
        assert tree(tmp_path / format).keys() == {name}


def wait_for(condition, program):
    deadline = time.monotonic() + 60
    while not condition():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def under_way(out, format):
    """Whether some of a video is written, by the names of files that only a run in the middle has."""
    if format == "flo":
        return len(list(out.glob("*/*.flo"))) >= 4
    return any(path.stat().st_size > 0 for path in out.glob(".*.partial"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two videos that take a second or more."""
    folder = tmp_path_factory.mktemp("two")
    for seed in (0, 1):
        make(folder / f"{seed}.mp4", frames=24, height=176, width=240, seed=seed)
    return folder


@pytest.mark.parametrize("format", ["flo", "safetensors", "mp4"])
def test_killed_and_run_again_is_as_if_never_killed(two, tmp_path, format):
    out = tmp_path / "out"
    options = ["--format", format, "--method", "tvl1", "--preset", "fast", "--workers", "2", "--batch", "2"]
    program = subprocess.Popen([*FLOW, two, out, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: under_way(out, format), program)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    assert program.returncode == -signal.SIGKILL
    extract_flow(two, tmp_path / "whole", settings(format), show=False)
    whole = tree(tmp_path / "whole")
    left = {name: content for name, content in tree(out).items() if not os.path.basename(name).startswith(".")}
    assert len(left) < len(whole), "it was killed too late to show anything"
    # a record says that the folder is not complete; everything else under its own name is whole
    assert all(whole[name] == content for name, content in left.items() if not name.endswith("flow.json"))
    extract_flow(two, out, settings(format), workers=2, show=False)
    assert tree(out) == whole


def test_ctrl_c_leaves_no_mess_and_says_how_to_go_on(two, tmp_path):
    out = tmp_path / "out"
    program = subprocess.Popen(
        # one worker: the second clip waits while the first is under way
        [*FLOW, two, out, "--format", "safetensors", "--batch", "1", "--preset", "fast", "--workers", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: under_way(out, "safetensors"), program)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 130, errors
    assert "the same command goes on from here" in errors
    assert "Traceback" not in errors
    assert not list(out.glob(".*"))
    assert len(list(out.iterdir())) < 2


def test_a_run_is_stopped_between_batches(tmp_path):
    """What is computed by then is written, and no more."""
    clip, stop = make(tmp_path / "clip.mp4", frames=30), threading.Event()

    def stopping(prev, next, **how):
        stop.set()
        return optical_flow(prev, next, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "optical_flow", stopping)
        summary = extract_flow(clip, tmp_path / "out", settings(), batch=4, show=False, stop=stop)
    assert (summary.stopped, summary.done, summary.failed) == (True, 0, [])
    assert len(list((tmp_path / "out" / "clip").glob("*.flo"))) == 4


def test_memory_does_not_grow_with_the_video(tmp_path):
    """Four times the frames in the same memory: 180 more flows of 0.15 MB each would be seen, and so would frames."""
    program = (
        "import sys, resource, pathlib; from tests.extraction.clips import settings; import vidgen.extraction as e\n"
        "for name in sys.argv[1:]:\n"
        "    e.extract_flow(name + '.mp4', name, settings('safetensors', dtype='float32'), show=False)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    # the longer one after the shorter: what the process has already taken it may use again
    for name, frames in (("short", 60), ("long", 240)):
        make(tmp_path / f"{name}.mp4", frames=frames, height=120, width=160)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "short"), str(tmp_path / "long")],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    short, long = map(float, done.stdout.split())
    assert long - short < 12, done.stdout


def test_decoding_waits_for_writing(tmp_path, monkeypatch):
    """A slow disk must not fill the memory with frames and flows that wait for it."""
    (source,) = find_sources(make(tmp_path / "clip.mp4", frames=80))
    decoded, written, lead = [], [], []
    frames = iter_frames(source.path)
    monkeypatch.setattr(sources, "iter_frames", lambda path, **_: (decoded.append(1) or frame for frame in frames))
    output = open_output(tmp_path, source.name, settings("safetensors"), {"source": {}, "settings": {}})
    write = output.write

    def slow(*arguments):
        time.sleep(0.004)
        write(*arguments)
        written.append(1)
        lead.append(len(decoded) - len(written))

    monkeypatch.setattr(output, "write", slow)
    output.begin(overwrite=False)
    extract_one(source, output, settings("safetensors"), batch=2, stop=threading.Event(), advance=lambda: None)
    assert len(written) == 79
    # batches of two: two of them wait to be written and two to be computed, and each stage holds one
    assert max(lead) <= 2 * (2 + 2 + 3)


def test_progress_tells_share_speed_and_failures(monkeypatch, capsys):
    """On a terminal a bar; where there is none, a line now and then, with what is left."""
    for show, words in ((True, ["25%", "1 of 4 videos, ", " flows/s, 1 failed"]), (None, ["25.0%: 1 of 4", "left"])):
        monkeypatch.setattr(run, "_LINE_EVERY", 0.0)
        report = run._Report(4, show)
        report.failed = 1
        report.update(0.5, 0, 20)
        # a header that promised too few frames does not turn the bar back
        report.update(0.25, 0, 20)
        report.update(1.0, 1, 30)
        report.close()
        shown = capsys.readouterr().err
        for word in words:
            assert word in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "method must be one of .*tvl1.*, got 'magic'"),
        (["--preset", "best"], "preset must be one of ultrafast, .* for method 'dis', got 'best'"),
        (["--stride", "0"], "stride must be at least 1, got 0"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--workers", "-1"], "workers must be at least 1, got -1"),
        (["--bound", "0"], "bound must be a positive number, got 0"),
        (["--fps", "nan"], "fps must be a positive number, got nan"),
        (["--short-side", "0"], "short_side must be from 1 to"),
        (["--size", "0", "5"], "size must be a height and a width"),
        (["--size", "9", "5", "--short-side", "5"], "size must be left out"),
        (["--dtype", "float16"], "dtype must be float32 for format 'flo'"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, options, message):
    clip = make(tmp_path / "clip.mp4", frames=2)
    preset = [] if "--preset" in options or "--method" in options else ["--preset", "fast"]
    assert main(["flow", str(clip), str(tmp_path / "out"), *options, *preset]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vidgen flow: ")
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_bad_places_are_named(tmp_path, capsys):
    clip = make(tmp_path / "in" / "clip.mp4")
    (tmp_path / "in" / "cover.png").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").write_bytes(b"")
    cases = [
        ((tmp_path / "none.mp4", tmp_path / "out"), "there is no file or folder"),
        ((tmp_path / "nothing", tmp_path / "out"), "IN must hold videos"),
        ((tmp_path / "in" / "cover.png", tmp_path / "out"), "is one picture"),
        ((tmp_path / "in", tmp_path / "out.mp4"), "OUT must be a folder where IN is one"),
        ((clip, tmp_path / "file"), "OUT must be a folder for format 'flo'"),
        ((tmp_path / "in", tmp_path / "in"), "OUT must not be IN"),
        ((clip, clip), "OUT must not be IN"),
        ((clip, tmp_path / "in", "--format", "mp4"), "would be replaced by its own flow"),
    ]
    content = clip.read_bytes()
    for arguments, message in cases:
        assert call(*arguments) == 2
        assert message in capsys.readouterr().err
    make(tmp_path / "in" / "clip.mkv")
    assert call(tmp_path / "in", tmp_path / "out") == 2
    assert "rename one" in capsys.readouterr().err
    assert clip.read_bytes() == content
    assert not (tmp_path / "out").exists()


def test_output_inside_the_input_is_no_input(tmp_path):
    make(tmp_path / "clip.mp4")
    for _ in range(2):
        assert call(tmp_path, tmp_path / "flows", "--format", "mp4") == 0
    assert [path.name for path in (tmp_path / "flows").iterdir()] == ["clip.mp4"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path / "elsewhere" / "a.mp4")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert [source.name.as_posix() for source in find_sources(tmp_path / "in")] == ["link/a"]


def test_help_names_methods_formats_and_presets(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["flow", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("IN OUT", "{None,flo,kitti,images,safetensors,mp4}", "tvl1 (accurate, fast", "Exit status"):
        assert words in shown


def test_frames_of_two_sizes_are_refused_unless_resized(tmp_path, capsys):
    import av

    for number, side in enumerate((48, 48, 64)):
        path = tmp_path / "in" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w", format="image2") as container:
            stream = container.add_stream("png", rate=25)
            stream.height, stream.width, stream.pix_fmt = side, 64, "rgb24"
            picture = torch.zeros(side, 64, 3, dtype=torch.uint8).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    assert call(tmp_path / "in", tmp_path / "out") == 1
    assert "frames must have one size: 64 x 48, then 64 x 64 at frame 2" in capsys.readouterr().err
    assert call(tmp_path / "in", tmp_path / "sized", "--size", "48", "64") == 0
