"""Autotuning is opt-in, measures a shape once, and survives a spoilt cache."""

import json

import pytest

pytest.importorskip("triton", reason="triton is not installed")

import torch

from vidgen.kernels import autotune
from vidgen.kernels.tiles import Tile, convolve_candidates, convolve_tile, split_pixels

SHIPPED = Tile(128, 128, 64, 8, 3)
FAST = Tile(64, 64, 64, 4, 3)
TOO_BIG = Tile(128, 256, 64, 8, 4)


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A GPU on which FAST takes 1 ms, TOO_BIG does not fit and everything else takes 2 ms; returns what was tried."""
    from triton.runtime.errors import OutOfResources

    tried = []

    def launch(tile):
        tried.append(tile)
        if tile == TOO_BIG:
            raise OutOfResources(300000, 232448, "shared memory")

    def milliseconds(run):
        run()
        return 1.0 if tried[-1] == FAST else 2.0

    monkeypatch.setenv("VIDGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(autotune, "_milliseconds", milliseconds)
    monkeypatch.setattr(autotune, "_chosen", None)
    return tried, lambda: autotune.choose(("shape", 1), SHIPPED, [TOO_BIG, FAST], launch, Tile._make)


def test_it_is_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv("VIDGEN_AUTOTUNE", raising=False)
    assert not autotune.enabled()
    monkeypatch.setenv("VIDGEN_AUTOTUNE", "1")
    assert autotune.enabled()


def test_the_fastest_that_fits_is_chosen_once_and_kept_across_processes(card, monkeypatch):
    tried, choose = card
    assert choose() == FAST
    assert tried == [SHIPPED, TOO_BIG, FAST]
    assert choose() == FAST
    monkeypatch.setattr(autotune, "_chosen", None)  # as a new process starts
    assert choose() == FAST
    assert len(tried) == 3
    assert isinstance(choose(), Tile)


def test_a_spoilt_cache_only_costs_measuring_again(card):
    tried, choose = card
    autotune.cache_file().parent.mkdir()
    autotune.cache_file().write_text("{")
    assert choose() == FAST
    assert len(tried) == 3
    assert list(json.loads(autotune.cache_file().read_text()).values()) == [list(FAST)]


def test_nothing_is_timed_inside_a_graph_capture(card, monkeypatch):
    tried, choose = card
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose() == SHIPPED
    assert not tried
    assert choose() == FAST


def test_candidates_are_tiles_that_triton_accepts():
    tile = convolve_tile(128, 128, 1024, 2, "ieee", (9, 0))
    for candidate in [tile, *convolve_candidates(tile)]:
        assert all(size >= 16 and size & (size - 1) == 0 for size in candidate[:3])
        # a warp has 32 lanes, and fewer sums than lanes would leave some idle
        assert candidate.m * candidate.n >= 32 * candidate.warps


@pytest.mark.parametrize("pixels", [1, 63, 64, 4096, 65536, 10**6 + 1])
@pytest.mark.parametrize("tiles", [1, 7, 512, 5000])
def test_runs_of_pixels_cover_every_pixel_once(pixels, tiles):
    run, splits = split_pixels(pixels, tiles, 64)
    assert run % 64 == 0
    assert (splits - 1) * run < pixels <= splits * run
