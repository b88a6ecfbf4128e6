"""The demonstration's claims: its baselines are what they say, its judge can tell digits from noise."""

import math

import numpy
import pytest
import torch

from vidgen.data import DIGITS_LEVELS, digits
from vidgen.report.digits_baselines import causal_features, histogram_bits, logistic_regression_bits
from vidgen.report.digits_judge import mix_pixels, train_judge, verdict
from vidgen.report.pixelcnn_digits import run


@pytest.fixture(scope="module")
def parts():
    return {split: digits(split) for split in ("train", "validation", "test")}


def test_histogram_model_knows_a_source_of_independent_pixels():
    generator = numpy.random.default_rng(0)
    p = generator.dirichlet(numpy.ones(4), size=(1, 3, 3))
    images = (generator.random((6000, 1, 3, 3, 1)) > p.cumsum(axis=-1)).sum(axis=-1)
    entropy = -(p * numpy.log2(p)).sum(axis=-1).mean()
    assert histogram_bits(images[:4000], images[4000:5000], images[5000:], 4) == pytest.approx(entropy, abs=0.03)


def test_features_see_the_causal_window_and_nothing_else():
    generator = numpy.random.default_rng(0)
    image = generator.integers(0, 17, (1, 1, 8, 8))
    before = causal_features(image, 17).reshape(64, -1)
    assert before.shape[1] == 24 * 4 + 64
    for row, column in ((0, 0), (3, 4), (7, 7), (5, 0)):
        changed = image.copy()
        changed[0, 0, row, column] = 16 - changed[0, 0, row, column] + (changed[0, 0, row, column] == 8)
        differs = (causal_features(changed, 17).reshape(64, -1) != before).any(axis=1).reshape(8, 8)
        for i in range(8):
            for j in range(8):
                inside = 0 <= i - row <= 3 and abs(j - column) <= 3
                assert differs[i, j] == (inside and (i, j) > (row, column))


def test_logistic_regression_learns_what_a_neighbour_tells():
    """Images whose pixels repeat their left neighbour: all that is left to guess is the first column."""
    generator = numpy.random.default_rng(0)
    images = generator.integers(0, 3, (400, 1, 6, 1)).repeat(4, axis=3)
    bits = logistic_regression_bits(images[:300], images[300:350], images[350:], 3)
    assert math.log2(3) / 4 - 0.01 < bits < math.log2(3) / 4 + 0.1
    assert histogram_bits(images[:300], images[300:350], images[350:], 3) > 1.5


def test_judge_tells_digits_from_mixed_pixels(parts):
    judge = train_judge(parts["train"], parts["validation"], DIGITS_LEVELS, epochs=8)
    images, labels = parts["test"]
    right = judge.probabilities(images, DIGITS_LEVELS).argmax(dim=1) == labels
    real, mixed = (verdict(judge, x, DIGITS_LEVELS) for x in (images, mix_pixels(images, seed=9)))
    assert right.double().mean() > 0.95
    assert real.classes_found == 10
    assert real.confidence == pytest.approx(float(right.double().mean()), abs=0.1)
    # a judge that is sure of noise would make the demonstration's bars worthless
    assert mixed.confidence < 0.4
    assert mixed.classes_found <= 3


def test_mixing_keeps_every_pixels_histogram(parts):
    images = parts["test"][0]
    mixed = mix_pixels(images, seed=0)
    assert torch.equal(mixed.sort(dim=0).values, images.sort(dim=0).values)
    assert not torch.equal(mixed, images)
    assert torch.equal(mix_pixels(images, seed=0), mixed)


def test_quick_demonstration_gives_what_the_page_needs(tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    result = run(tmp_path, quick=True, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [point["step"] for point in result["curve"]] == list(range(1, 21))
    assert result["curve"][-1]["validation_bits_per_dim"] < result["curve"][0]["validation_bits_per_dim"]
    assert result["bits_per_dim"]["histogram"] == pytest.approx(2.4344, abs=1e-3)
    assert result["samples"].shape == (256, 1, 8, 8)
    assert result["samples"].dtype == numpy.uint8
    assert numpy.array_equal(result["real"], digits("test")[0][:64].numpy())
    assert 0 < result["confidence"]["samples"] <= 1
    again = run(tmp_path, quick=True, progress=False)
    assert numpy.array_equal(again["samples"], result["samples"])
    assert again["bits_per_dim"] == result["bits_per_dim"]
