"""The demonstration of motion: what the page says of it is what happened."""

import numpy
import pytest
import torch

from vidgen.data import MOTIONS, moving_digits
from vidgen.models import load_checkpoint
from vidgen.report.demonstration import fresh_folder
from vidgen.report.moving_digits import QUICK, chance_interval, run


def test_chance_is_the_exact_binomial_interval():
    from math import comb

    for n, classes in ((40, 4), (1000, 4), (100, 10)):
        interval = chance_interval(n, classes)
        p = 1 / classes
        probability = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        low, high = interval["low"], interval["high"]
        assert sum(probability[low : high + 1]) >= 0.95
        # central: as little as can be is cut off on either side
        assert sum(probability[:low]) <= 0.025 < sum(probability[: low + 1])
        assert sum(probability[high + 1 :]) <= 0.025 < sum(probability[high:])


def test_quick_demonstration_gives_what_the_page_needs(tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    result = run(tmp_path, quick=True, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    test = moving_digits("test", n=result["test_clips"], frames=QUICK.frames, height=QUICK.size, width=QUICK.size)
    for name in ("c3d", "single-frame"):
        assert [point["step"] for point in result["curve"][name]] == [1, 2, 3, 4]
        model = load_checkpoint(tmp_path / f"motion-{name}" / "best.safetensors")
        with torch.no_grad():
            answers = model(test.video.float() / 255).argmax(1)
        assert result["right"][name] == int((answers == test.motion).sum())
        shown = [int((test.motion == label).nonzero()[k, 0]) for label in range(4) for k in range(3)]
        assert result["predicted"][name] == answers[shown].tolist()
    assert result["motion"] == [label for label in range(4) for _ in range(3)]
    assert numpy.array_equal(result["clips"], test.video[shown, 0].numpy())
    # the film strips: one clip's frames in four orders
    sets = [sorted(frame.tobytes() for frame in clip) for clip in result["orders"]]
    assert len(sets) == len(MOTIONS)
    assert all(one == sets[0] for one in sets)
    assert len({clip.tobytes() for clip in result["orders"]}) == 4
    again = run(tmp_path, quick=True, progress=False)
    for name in ("curve", "right", "predicted"):
        assert again[name] == result[name]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "motion-c3d").mkdir()
    (tmp_path / "motion-c3d" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds no run of this demonstration"):
        fresh_folder(tmp_path, "motion-c3d")
    assert (tmp_path / "motion-c3d" / "thesis.tex").exists()
