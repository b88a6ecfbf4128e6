"""Files in, frames out: the right ones, the right way up, at the right times, and one sentence where that cannot be."""

import struct
import sys

import numpy
import pytest
import torch

from vidgen.data import (
    VideoWriter,
    clip_indices_by_time,
    expected_frames,
    iter_frames,
    read_clip,
    read_timestamps,
    write_clip,
)


def noise(frames=12, height=24, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)


def smooth(frames=20, height=48, width=64):
    """A soft coloured pattern that moves: something that a codec keeps."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin((x + 2 * t) / 15 + c) * torch.cos((y - t) / 18 + c) for c in range(3)]
    return (127.5 + 100 * torch.stack(waves, dim=-1)).to(torch.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("size", [(24, 32), (23, 31)])
def test_lossless_files_give_every_bit_back(tmp_path, suffix, size):
    frames = noise(12, *size)
    write_clip(tmp_path / f"clip{suffix}", frames, 25, lossless=True)
    clip = read_clip(tmp_path / f"clip{suffix}")
    assert torch.equal(clip.frames, frames)
    assert clip.timestamps.dtype == torch.float64
    tolerance = 5e-4 if suffix == ".mkv" else 1e-9  # Matroska counts in milliseconds
    assert torch.allclose(clip.timestamps, torch.arange(12).double() / 25, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_lossy_files_are_near(tmp_path, size):
    frames = smooth(20, *size)
    write_clip(tmp_path / "clip.mp4", frames, 30000 / 1001)
    clip = read_clip(tmp_path / "clip.mp4")
    difference = (clip.frames.double() - frames.double()).abs()
    # red and blue in each other's place would be off by 60
    assert float(difference.mean()) < 3
    assert float(difference.max()) < 32
    assert torch.allclose(clip.timestamps, torch.arange(20).double() * 1001 / 30000, rtol=0, atol=1e-5)


def test_any_frames_in_any_order(tmp_path):
    """Longer than x264's 250 frames between key frames, with B-frames, so that seeking is put to the test."""
    frames = noise(530, 16, 16)
    write_clip(tmp_path / "clip.mp4", frames, 30, lossless=True)
    for indices in ([0], [529], [300, 2, 2, 511, 250, 249, 251], list(range(240, 260))):
        clip = read_clip(tmp_path / "clip.mp4", indices)
        assert torch.equal(clip.frames, frames[indices])
        assert torch.allclose(clip.timestamps, torch.tensor(indices).double() / 30)
    write_clip(tmp_path / "b.mp4", smooth(300, 32, 32), 30, crf=10)
    everything = read_clip(tmp_path / "b.mp4").frames
    some = torch.tensor([299, 250, 251, 1, 77])
    assert torch.equal(read_clip(tmp_path / "b.mp4", some).frames, everything[some])


def test_no_more_is_decoded_than_needed(tmp_path, monkeypatch):
    from vidgen.data import video_files

    write_clip(tmp_path / "clip.mp4", noise(530, 16, 16), 30, lossless=True)
    kept = []
    upright = video_files._upright
    monkeypatch.setattr(video_files, "_upright", lambda frame: kept.append(frame.pts) or upright(frame))
    read_timestamps(tmp_path / "clip.mp4")
    assert kept == []
    read_clip(tmp_path / "clip.mp4", [500, 3, 500])
    assert len(kept) == 2


def test_variable_frame_rate_is_read_by_time(tmp_path):
    # the frame at 1 s stays for 2 s
    seconds = [0.0, 0.25, 0.5, 0.75, 1.0, 3.0, 3.5]
    frames = noise(7)
    for suffix in (".mp4", ".mkv"):
        path = tmp_path / f"clip{suffix}"
        write_clip(path, frames, timestamps=seconds, lossless=True)
        timestamps = read_timestamps(path)
        assert torch.allclose(timestamps, torch.tensor(seconds, dtype=torch.float64), rtol=0, atol=1e-9)
        indices = clip_indices_by_time(timestamps, length=8, fps=2)[0]
        assert torch.equal(read_clip(path, indices).frames, frames[[0, 2, 4, 4, 4, 4, 5, 6]])


@pytest.mark.parametrize(
    ("matrix", "quarters"),
    # clockwise by 90°, as a phone held upright writes it; 180°; anticlockwise by 90°
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
)
def test_rotation_is_carried_out(tmp_path, matrix, quarters):
    frames = noise(3)
    write_clip(tmp_path / "clip.mp4", frames, 10, lossless=True)
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    # the track header (ISO/IEC 14496-12, 8.3.2), version 0: its matrix (a b u c d v x y w) is 40 bytes after its flags
    where = content.index(b"tkhd") + 4 + 40
    one = [value * 0x10000 for value in matrix]
    content[where : where + 36] = struct.pack(">9i", one[0], one[1], 0, one[2], one[3], 0, 0, 0, 0x40000000)
    (tmp_path / "turned.mp4").write_bytes(content)
    expected = numpy.rot90(frames.numpy(), quarters, axes=(1, 2))
    assert numpy.array_equal(read_clip(tmp_path / "turned.mp4").frames.numpy(), expected)


def test_damaged_files_are_named(tmp_path):
    good = tmp_path / "good.mp4"
    write_clip(good, smooth(), 25)
    content = good.read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is not a video " * 50)
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    for name, message in (("empty", "empty.mp4 is empty"), ("text", "text.mp4 is damaged"), ("cut", "cut.mp4 is dama")):
        for read in (read_clip, read_timestamps):
            with pytest.raises(ValueError, match=message):
                read(tmp_path / f"{name}.mp4")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_clip(tmp_path / "none.mp4")


def test_a_file_whose_pictures_are_garbage_is_refused(tmp_path):
    write_clip(tmp_path / "clip.mp4", smooth(), 25)
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    begin = content.index(b"mdat") + 4
    length = struct.unpack(">I", content[begin - 8 : begin - 4])[0] - 8
    content[begin : begin + length] = bytes(length)
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"clip\.mp4 is damaged"):
        read_clip(tmp_path / "clip.mp4")


def test_a_file_without_pictures_is_named(tmp_path):
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    with pytest.raises(ValueError, match=r"sound\.wav has no video stream"):
        read_clip(tmp_path / "sound.wav")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    write_clip(path, noise(2), 25, lossless=True)
    before = path.read_bytes()

    def broken(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr("vidgen.data.video_files.numpy.ascontiguousarray", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        write_clip(path, noise(3), 25)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"frames": noise().float()}, TypeError, "frames: expected uint8, got float32"),
        ({"frames": noise()[..., :1]}, ValueError, "frames: expected shape"),
        ({"frames": noise()[:0]}, ValueError, "at least one frame"),
        ({"fps": 0}, ValueError, "fps: expected a number"),
        ({"fps": None}, ValueError, "fps: expected either fps or timestamps"),
        ({"timestamps": [0.0] * 12}, ValueError, "fps: expected either"),
        ({"fps": None, "timestamps": [0.0] * 12}, ValueError, "timestamps: expected 12 rising times"),
        ({"crf": 52}, ValueError, "crf: expected 0 to 51, got 52"),
        ({"path": "clip.gif"}, ValueError, "path: expected a name that ends in .mp4, .mov, .mkv, got 'clip.gif'"),
        ({"path": "nowhere/clip.mp4"}, FileNotFoundError, "path: there is no folder"),
    ],
)
def test_bad_arguments_of_writing_are_named(tmp_path, change, error, message):
    arguments = {"path": "clip.mp4", "frames": noise(), "fps": 25} | change
    with pytest.raises(error, match=message):
        write_clip(tmp_path / arguments.pop("path"), arguments.pop("frames"), arguments.pop("fps"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_bad_indices_are_named(tmp_path):
    write_clip(tmp_path / "clip.mp4", noise(2), 25)
    with pytest.raises(ValueError, match=r"indices: expected 0 to 1, the frames of .*, got 2"):
        read_clip(tmp_path / "clip.mp4", [0, 2])
    with pytest.raises(ValueError, match="indices: expected at least one frame"):
        read_clip(tmp_path / "clip.mp4", [])


def test_a_missing_pyav_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"av is not installed, and this needs it: pip install 'vidgen\[vi"):
        read_clip(tmp_path / "clip.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_one_by_one_are_those_of_a_clip(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_clip(path, noise(12, 23, 31), timestamps=[0.1 * k * k + 0.3 for k in range(12)], lossless=True)
    clip = read_clip(path)
    frames = list(iter_frames(path))
    assert numpy.array_equal(numpy.stack([frame.picture() for frame in frames]), clip.frames.numpy())
    assert [frame.seconds for frame in frames] == pytest.approx(clip.timestamps.tolist(), abs=1e-9)
    assert {frame.size for frame in frames} == {(23, 31)}
    # Matroska has a length alone, from which the number is guessed by the average rate
    assert expected_frames(path) == 12 or suffix == ".mkv"


def test_a_writer_keeps_times_rising_and_a_failed_block_leaves_no_whole_file(tmp_path):
    frames = smooth(6).numpy()
    with VideoWriter(tmp_path / "clip.mp4", (48, 64), lossless=True, metadata={"comment": "näher"}) as writer:
        for picture, seconds in zip(frames, [0.0, 0.5, 0.5, 0.4, 1.0, 2.0], strict=True):
            writer.write(picture, seconds)
    clip = read_clip(tmp_path / "clip.mp4")
    assert numpy.array_equal(clip.frames.numpy(), frames)
    assert clip.timestamps.tolist() == pytest.approx([0, 0.5, 0.5 + 1 / 90000, 0.5 + 2 / 90000, 1, 2], abs=1e-9)

    def broken():
        with VideoWriter(tmp_path / "half.mp4", (48, 64)) as writer:
            writer.write(frames[0], 0.0)
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        broken()


def test_a_cut_file_is_told_when_its_end_is_reached(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, noise(12), 25, lossless=True)
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    middle = begin + (struct.unpack(">I", content[begin - 8 : begin - 4])[0] - 8) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    frames = iter_frames(path)
    assert next(frames).seconds == 0
    with pytest.raises(ValueError, match=r"clip\.mp4 is damaged|of .*clip\.mp4 is damaged"):
        list(frames)


def test_a_file_with_its_index_in_front_is_told_to_be_cut_off(tmp_path):
    """As downloads are that broke off: the header is whole, and nothing but the missing data tells."""
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in smooth(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert len(list(iter_frames(path))) == expected_frames(path) == 30
    path.write_bytes(content[: 2 * len(content) // 3])
    with pytest.raises(ValueError, match=r"clip\.mp4 is damaged, or cut off, after \d"):
        list(iter_frames(path))
