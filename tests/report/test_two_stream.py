"""The two-stream demonstration: what the page says of it is what happened."""

import torch

from vidgen.data import MOTIONS
from vidgen.flow_io import flow_to_rgb
from vidgen.models import load_checkpoint
from vidgen.report.moving_digits import chance_interval
from vidgen.report.two_stream import QUICK, run
from vidgen.train.two_stream import classes_of, stream_probabilities, two_stream_clips


def test_quick_demonstration_gives_what_the_page_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("vidgen.train.two_stream.TEST_CLIPS", 60)
    monkeypatch.setattr("vidgen.train.two_stream.VALIDATION_CLIPS", 16)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    result = run(tmp_path, quick=True, progress=False)
    assert torch.equal(torch.get_rng_state(), state)

    test = two_stream_clips(QUICK.frames, QUICK.size, 1, 0)["test"]
    model = load_checkpoint(tmp_path / "two-stream" / "best.safetensors")
    assert model.length == QUICK.length
    spatial, temporal = stream_probabilities(model, test.video)
    truth = classes_of(test)
    assert result["test_clips"] == 60
    for name, scores in (("spatial", spatial), ("temporal", temporal), ("average", spatial + temporal)):
        assert result["right"][name] == int((scores.argmax(1) == truth).sum())
    digit = spatial.view(-1, 10, len(MOTIONS)).sum(2).argmax(1)
    assert result["right"]["spatial digit"] == int((digit == test.digit).sum())
    assert result["chance"]["joint"] == chance_interval(60, 40)
    assert [point["step"] for point in result["curve"]] == [1, 2]

    found = model.displacement_fields(test.video)[:, 0, : QUICK.length]
    true, ink = test.flow[:, : QUICK.length], test.ink[:, : QUICK.length]
    error = (found - true).norm(dim=2)
    assert abs(result["flow_error"]["ink"] - float(error[ink].mean())) < 1e-4
    assert abs(result["flow_error"]["zero"] - float(true.norm(dim=2).mean())) < 1e-4
    strip = result["strip"]
    longest = float(true[0].norm(dim=1).max())
    assert strip["frames"] == test.video[0, 0, : QUICK.length].tolist()
    assert strip["exact"][1] == flow_to_rgb(true[0, 1], longest).tolist()
    assert strip["found"][1] == flow_to_rgb(found[0, 1], longest).tolist()
    assert (strip["digit"], strip["motion"]) == (int(test.digit[0]), MOTIONS[int(test.motion[0])])
    digit, motion = divmod(int((spatial + temporal)[0].argmax()), len(MOTIONS))
    assert strip["said"]["average"] == f"{digit}, {MOTIONS[motion]}"
