"""Flow files come back as they went, hostile ones are refused, and pictures show the standard's colours."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidgen import flow_io
from vidgen.flow_io.pictures import color_wheel
from vidgen.flow_io.png import read_png, write_png

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
sizes = {"h": st.integers(1, 20), "w": st.integers(1, 20), "seed": st.integers(0, 999)}


def some_flow(h: int, w: int, seed: int = 0, reach: float = 30.0) -> torch.Tensor:
    return torch.randn(2, h, w, generator=torch.Generator().manual_seed(seed)) * reach


@in_one_folder
@given(**sizes)
def test_flo_keeps_every_bit(tmp_path, h, w, seed):
    """NaN and the format's mark of the unknown included."""
    flow = some_flow(h, w, seed)
    flow[0, 0, 0], flow[1, -1, -1] = torch.nan, 1e10
    flow_io.write_flo(tmp_path / "a.flo", flow.double())
    back = flow_io.read_flo(tmp_path / "a.flo")
    assert torch.equal(back.view(torch.int32), flow.view(torch.int32))


def test_flo_is_the_standards_bytes(tmp_path):
    flow = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    flow_io.write_flo(tmp_path / "a.flo", flow)
    assert (tmp_path / "a.flo").read_bytes() == b"PIEH" + struct.pack("<iiffff", 2, 1, 1, 3, 2, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.flo"], "no temporary file stays"


@in_one_folder
@given(**sizes)
def test_kitti_keeps_its_grid(tmp_path, h, w, seed):
    """A multiple of 1/64 comes back exactly; others are off by half of that; the valid mask is exact."""
    flow = some_flow(h, w, seed, 100.0).clamp(-512, 511.98)
    valid = torch.rand(h, w, generator=torch.Generator().manual_seed(seed)) < 0.7
    flow_io.write_kitti(tmp_path / "a.png", flow, valid)
    back, valid_back = flow_io.read_kitti(tmp_path / "a.png")
    assert torch.equal(valid_back, valid)
    assert (back - flow)[:, valid].abs().max().item() <= 1 / 128 if valid.any() else True
    assert (back[:, ~valid] == 0).all()
    flow_io.write_kitti(tmp_path / "a.png", back, valid)
    assert torch.equal(flow_io.read_kitti(tmp_path / "a.png")[0], back)


def test_kitti_takes_what_is_not_finite_as_invalid(tmp_path):
    flow = torch.zeros(2, 3, 4)
    flow[0, 1, 2] = torch.inf
    flow_io.write_kitti(tmp_path / "a.png", flow)
    valid = flow_io.read_kitti(tmp_path / "a.png")[1]
    assert torch.equal(valid, flow.isfinite().all(0))
    for beyond in (torch.nan, 512.0, -513.0):
        flow[0, 1, 2] = beyond
        with pytest.raises(ValueError, match=r"from -512 to 511.98 pixels where it is valid"):
            flow_io.write_kitti(tmp_path / "a.png", flow, torch.ones(3, 4, dtype=torch.bool))
    assert torch.equal(flow_io.read_kitti(tmp_path / "a.png")[1], valid), "a refused flow replaces no file"


def test_kitti_file_of_another_writer(tmp_path):
    """OpenCV's PNG uses filters that ours does not; its channels are blue, green, red."""
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 65536, (37, 53, 3), np.uint16).cumsum(1, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    assert np.array_equal(read_png(tmp_path / "a.png"), image)
    write_png(tmp_path / "b.png", image)
    assert np.array_equal(cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)[..., ::-1], image)


@in_one_folder
@given(bound=st.sampled_from([1.0, 20.0, 33.3]), **sizes)
def test_bounded_is_right_to_half_a_level(tmp_path, bound, h, w, seed):
    flow = some_flow(h, w, seed)
    paths = tmp_path / "u.png", tmp_path / "v.png"
    flow_io.write_bounded(*paths, flow, bound)
    back = flow_io.read_bounded(*paths, bound)
    assert (back - flow.clamp(-bound, bound)).abs().max() <= bound / 255 * (1 + 1e-5)
    again = flow_io.encode_bounded(back, bound)
    assert all(torch.equal(a, b) for a, b in zip(again, flow_io.encode_bounded(flow, bound), strict=True))


def test_bounded_levels():
    flow = torch.tensor([-25.0, -20.0, 0.0, 20.0, torch.inf]).view(1, 1, 5).expand(2, 1, 5)
    assert flow_io.encode_bounded(flow)[0].tolist() == [[0, 0, 128, 255, 255]]


def test_numpy_there_and_back():
    flow = some_flow(4, 6)
    array = flow_io.flow_to_numpy(flow)
    assert array.shape == (4, 6, 2)
    assert array[1, 2, 0] == flow[0, 1, 2]
    assert torch.equal(flow_io.flow_from_numpy(array[::-1]), flow.flip(1))


def png(header: tuple[int, ...], data: bytes) -> bytes:
    """A PNG whose check sums are right, whatever it says."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


WHOLE = png((2, 1, 16, 2, 0, 0, 0), bytes(13))
HOSTILE: list[tuple[str, bytes, str]] = [
    ("a.flo", b"", "is not a Middlebury"),
    ("a.flo", b"PIEX" + bytes(16), "is not a Middlebury .flo file: it must start with b'PIEH'"),
    ("a.flo", b"PIEH" + bytes(3), "is truncated: a header has 12 bytes, got 7"),
    ("a.flo", b"PIEH" + struct.pack("<ii", 2**31 - 1, 2**31 - 1), "must be 1 to 32768 pixels high and wide"),
    ("a.flo", b"PIEH" + struct.pack("<ii", -4, 4), "must be 1 to 32768 pixels high and wide, got -4 x 4"),
    ("a.flo", b"PIEH" + struct.pack("<ii", 30000, 30000) + bytes(80), "must have 7200000012 bytes"),
    ("a.flo", b"PIEH" + struct.pack("<ii", 1, 1) + bytes(9), "must have 20 bytes for 1 x 1 pixels, got 21"),
    ("a.png", b"", "is not a PNG file"),
    ("a.png", b"GIF89a--------", "is not a PNG file"),
    ("a.png", WHOLE[:20], "is truncated"),
    ("a.png", WHOLE[:-12], "is truncated"),
    ("a.png", WHOLE[:50] + bytes([WHOLE[50] ^ 1]) + WHOLE[51:], "wrong check sum"),
    ("a.png", b"\x89PNG\r\n\x1a\n" + WHOLE[33:], "must start with one header"),
    ("a.png", png((30000, 30000, 16, 2, 0, 0, 0), bytes(13)), "must hold 5400030000 bytes"),
    ("a.png", png((2**31 - 1, 1, 16, 2, 0, 0, 0), bytes(13)), "must be 1 to 32768"),
    ("a.png", png((2, 1, 16, 2, 0, 0, 0), bytes(12)), "must hold 13 bytes for 2 x 1 pixels, got 12"),
    ("a.png", png((2, 1, 16, 2, 0, 0, 0), bytes(50_000_000)), "must hold 13 bytes for 2 x 1 pixels, got more"),
    ("a.png", png((2, 1, 8, 2, 0, 0, 0), bytes(7)), "must be 8-bit grey or 16-bit RGB, not interlaced, got 8 bits"),
    ("a.png", png((2, 1, 16, 6, 0, 0, 0), bytes(17)), "got 16 bits, colour type 6"),
    ("a.png", png((2, 1, 8, 0, 0, 0, 0), bytes(3)), "must have 3 channels of 16 bits, got 8-bit grey"),
]


@pytest.mark.parametrize(("name", "content", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_files_are_refused_without_their_memory(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    read: Any = flow_io.read_flo if name.endswith("flo") else flow_io.read_kitti
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@in_one_folder
@given(cut=st.integers(0, 10_000), seed=st.integers(0, 9))
def test_a_cut_png_is_never_an_image(tmp_path, cut, seed):
    flow_io.write_kitti(tmp_path / "a.png", some_flow(9, 7, seed))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: cut % len(content)])
    with pytest.raises(ValueError, match=r"a\.png is (truncated|not a PNG)"):
        flow_io.read_kitti(tmp_path / "a.png")


def test_wheel_is_middleburys():
    """Its 55 colours begin with red and pass the pure colours at the standard's places."""
    wheel = color_wheel()
    assert wheel.shape == (55, 3)
    pure = {0: (255, 0, 0), 15: (255, 255, 0), 21: (0, 255, 0), 25: (0, 255, 255), 36: (0, 0, 255), 49: (255, 0, 255)}
    assert {k: tuple(wheel[k].int().tolist()) for k in pure} == pure
    assert wheel[1].tolist() == [255, 17, 0]
    assert wheel[16].tolist() == [255 - 42, 255, 0]


def test_picture():
    """Right is red, standing still is white, the unknown is black, and what is too long is darker."""
    flow = torch.zeros(2, 1, 5)
    flow[0] = torch.tensor([0.0, 2.0, 1.0, torch.nan, 4.0])
    picture = flow_io.flow_to_rgb(flow, max_length=2.0)[0].tolist()
    assert picture[0] == [255, 255, 255]
    assert picture[1] == [255, 0, 0]
    assert picture[2] == [255, 127, 127]
    assert picture[3] == [0, 0, 0]
    assert picture[4] == [191, 0, 0]
    assert flow_io.flow_to_rgb(torch.zeros(2, 2, 2)).eq(255).all(), "nothing moves: no division by nothing"


def test_arrows():
    """An arrow starts at its pixel and ends where the flow points; frames and huge flows stay whole."""
    image = torch.zeros(40, 60, 3, dtype=torch.uint8)
    flow = torch.zeros(2, 40, 60)
    flow[0, 8, 8] = 10.0
    drawn = flow_io.draw_arrows(image, flow, step=16, color=(1, 2, 3))
    assert drawn[8, 8:19].eq(torch.tensor([1, 2, 3])).all()
    assert drawn[20:].eq(0).all()
    assert image.eq(0).all()
    flow[:, 24, 24], flow[:, 24, 40], flow[0, 8, 24] = 1e30, torch.nan, 0.4
    assert flow_io.draw_arrows(image, flow)[:24, 22:].eq(0).all()


def test_complaints(tmp_path):
    with pytest.raises(ValueError, match=r"flow must have shape \(2, H, W\) and some pixels, got \(3, 4, 4\)"):
        flow_io.write_flo(tmp_path / "a.flo", torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match=r"flow must be a floating-point tensor, got torch.int64"):
        flow_io.flow_to_rgb(torch.zeros(2, 4, 4).long())
    with pytest.raises(ValueError, match=r"array must be \(H, W, 2\) of floats"):
        flow_io.flow_from_numpy(np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="bound must be a positive number of pixels, got 0"):
        flow_io.encode_bounded(torch.zeros(2, 4, 4), 0)
    with pytest.raises(ValueError, match="no NaN"):
        flow_io.encode_bounded(torch.full((2, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="valid must be bool of shape"):
        flow_io.write_kitti(tmp_path / "a.png", torch.zeros(2, 4, 4), torch.ones(4, 4))
