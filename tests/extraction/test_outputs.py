"""What is written is what the op computes, in every form, at the times and the right way up that the video has."""

import json

import av
import numpy
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from vidgen import flow_io
from vidgen.data import iter_frames, read_clip, read_timestamps, write_clip
from vidgen.extraction import extract_flow
from vidgen.ops import optical_flow

from .clips import FAST, flow_of, make, panned, settings, turn


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make(tmp_path_factory.mktemp("in") / "clip.mp4")


def run(clip, out, **options):
    summary = extract_flow(clip, out, settings(**options), show=False)
    assert summary.failed == []
    return summary


def test_flo_has_the_ops_bits(clip, tmp_path):
    summary = run(clip, tmp_path / "out")
    assert (summary.done, summary.flows) == (1, 5)
    for number, flow in enumerate(flow_of(clip)):
        assert torch.equal(flow_io.read_flo(tmp_path / "out" / "clip" / f"flow_{number:06d}.flo"), flow)
    record = json.loads((tmp_path / "out" / "clip" / "flow.json").read_bytes())
    assert record["settings"] == {"format": "flo", "method": "tvl1", "preset": "fast"}
    assert record["source"] == {"name": "clip.mp4", "bytes": clip.stat().st_size}
    assert numpy.allclose(record["timestamps"], numpy.arange(6) / 25, rtol=0, atol=1e-9)
    assert len(list((tmp_path / "out" / "clip").iterdir())) == 6


def test_kitti_is_within_its_grid(clip, tmp_path):
    run(clip, tmp_path / "out", format="kitti")
    for number, flow in enumerate(flow_of(clip)):
        back, valid = flow_io.read_kitti(tmp_path / "out" / "clip" / f"flow_{number:06d}.png")
        assert valid.all()
        assert float((back - flow).abs().max()) <= 1 / 128


def test_images_are_bounded_as_asked(clip, tmp_path):
    run(clip, tmp_path / "out", format="images", bound=1.5)
    for number, flow in enumerate(flow_of(clip)):
        u, v = flow_io.encode_bounded(flow, 1.5)
        names = [tmp_path / "out" / "clip" / f"flow_{axis}_{number:06d}.png" for axis in "xy"]
        assert torch.equal(flow_io.read_bounded(*names, 1.5), flow_io.decode_bounded(u, v, 1.5))
        assert (u == 255).any() or (u == 0).any(), "the bound must be put to the test"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_safetensors_is_read_by_its_library(clip, tmp_path, dtype):
    run(clip, tmp_path / "out", format="safetensors", dtype=dtype)
    tensors = load_file(tmp_path / "out" / "clip.safetensors")
    assert set(tensors) == {"flow", "timestamps"}
    assert numpy.array_equal(tensors["flow"], flow_of(clip).numpy().astype(dtype))
    assert numpy.allclose(tensors["timestamps"], numpy.arange(6) / 25, rtol=0, atol=1e-9)
    assert load_tensors(tmp_path / "out" / "clip.safetensors")["flow"].shape == (5, 2, 48, 64)


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_mp4_shows_the_wheel(tmp_path, size):
    clip = make(tmp_path / "clip.mp4", height=size[0], width=size[1])
    run(clip, tmp_path / "wheel.mp4", format="mp4", bound=4.0)
    shown = read_clip(tmp_path / "wheel.mp4").frames.double()
    wheel = torch.stack([flow_io.flow_to_rgb(flow, 4.0) for flow in flow_of(clip)]).double()
    assert shown.shape == wheel.shape
    assert float((shown - wheel).abs().mean()) < 5
    assert float((255 - shown).mean()) > 30, "white would be no motion"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_keeps_its_times(tmp_path, suffix):
    """No frame is repeated or dropped to make a rate even, and each has its own time, of the first also."""
    seconds = [0.5, 0.75, 1.0, 3.0, 3.25, 3.5]
    clip = tmp_path / f"clip{suffix}"
    write_clip(clip, panned(6), timestamps=seconds, lossless=True)
    run(clip, tmp_path, format="safetensors")
    tensors = load_file(tmp_path / "clip.safetensors")
    assert numpy.array_equal(tensors["flow"], flow_of(clip).numpy())
    assert numpy.allclose(tensors["timestamps"], seconds, rtol=0, atol=1e-9)
    run(clip, tmp_path / "wheel.mp4", format="mp4")
    assert numpy.allclose(read_timestamps(tmp_path / "wheel.mp4"), seconds[:-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation_is_carried_out(clip, tmp_path, matrix, quarters):
    """A phone's upright video has upright flow: to the right is to the right of who looks at it."""
    turn(clip, tmp_path / "turned.mp4", matrix)
    run(tmp_path / "turned.mp4", tmp_path, format="safetensors")
    frames = torch.rot90(read_clip(clip).frames, quarters, dims=(1, 2)).permute(0, 3, 1, 2)
    expected = optical_flow(frames[:-1], frames[1:], **FAST)
    assert numpy.array_equal(load_file(tmp_path / "turned.safetensors")["flow"], expected.numpy())
    run(tmp_path / "turned.mp4", tmp_path / "small", format="safetensors", size=(24, 40))
    frames = numpy.stack([frame.picture((24, 40)) for frame in iter_frames(tmp_path / "turned.mp4")])
    assert frames.shape == (6, 24, 40, 3)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"short_side": 24}, (24, 32)), ({"short_side": 37}, (37, 49)), ({"size": (30, 31)}, (30, 31))],
)
def test_resized_frames_have_flow_in_their_own_pixels(clip, tmp_path, options, size):
    run(clip, tmp_path, format="safetensors", **options)
    frames = torch.from_numpy(numpy.stack([frame.picture(size) for frame in iter_frames(clip)])).permute(0, 3, 1, 2)
    # what was resized is what the frame shows, and not another size of something else
    whole = read_clip(clip).frames.permute(0, 3, 1, 2).float()
    near = torch.nn.functional.interpolate(whole, size=size, mode="bilinear", antialias=True)
    assert float((frames.double() - near.double()).abs().mean()) < 4
    flow = optical_flow(frames[:-1], frames[1:], **FAST)
    assert numpy.array_equal(load_file(tmp_path / "clip.safetensors")["flow"], flow.numpy())


def test_every_other_frame(clip, tmp_path):
    run(clip, tmp_path / "out", stride=2)
    folder = tmp_path / "out" / "clip"
    assert {path.name for path in folder.glob("*.flo")} == {"flow_000000.flo", "flow_000002.flo"}
    for number, flow in zip((0, 2), flow_of(clip, stride=2), strict=True):
        assert torch.equal(flow_io.read_flo(folder / f"flow_{number:06d}.flo"), flow)
    assert numpy.allclose(json.loads((folder / "flow.json").read_bytes())["timestamps"], [0, 0.08, 0.16])


def test_folders_of_pictures_are_videos(tmp_path):
    """In the order of their numbers, also where these have no leading zeros."""
    frames = panned(12)
    for number, frame in enumerate(frames):
        path = tmp_path / "in" / "walk" / f"frame{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", format="image2") as container:
            stream = container.add_stream("png", rate=25)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
    (tmp_path / "in" / "walk" / "notes.txt").write_text("no picture")
    run(tmp_path / "in", tmp_path / "out", format="safetensors", fps=10)
    tensors = load_file(tmp_path / "out" / "walk.safetensors")
    pictures = frames.permute(0, 3, 1, 2)
    assert numpy.array_equal(tensors["flow"], optical_flow(pictures[:-1], pictures[1:], **FAST).numpy())
    assert numpy.allclose(tensors["timestamps"], numpy.arange(12) / 10)
    # the folder of frames itself
    run(tmp_path / "in" / "walk", tmp_path / "again", format="safetensors", fps=10)
    assert numpy.array_equal(load_file(tmp_path / "again" / "walk.safetensors")["flow"], tensors["flow"])
