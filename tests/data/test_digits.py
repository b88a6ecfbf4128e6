"""The digits' split is a promise: figures from different years must be about the same images."""

import hashlib

import numpy
import pytest
import torch
from sklearn.datasets import load_digits

from vidgen.data import DIGITS_LEVELS, digits

SPLITS = ("train", "validation", "test")


def test_split_follows_the_documented_rule():
    bunch = load_digits()
    seen = dict.fromkeys(range(10), 0)
    expected = {split: [] for split in SPLITS}
    for image, label in zip(bunch.images, bunch.target, strict=True):
        k = seen[int(label)]
        seen[int(label)] += 1
        expected["test" if k % 5 == 4 else "validation" if k % 10 == 3 else "train"].append((image, label))
    for split in SPLITS:
        images, labels = digits(split)
        assert numpy.array_equal(images[:, 0].numpy(), numpy.stack([image for image, _ in expected[split]]))
        assert labels.tolist() == [label for _, label in expected[split]]


def test_split_never_moves():
    fingerprint = hashlib.sha256()
    for split in SPLITS:
        images, labels = digits(split)
        fingerprint.update(images.numpy().tobytes() + labels.numpy().tobytes())
    assert fingerprint.hexdigest() == "b6951fc0dc16a471689d6dc8d49c5d2c0df454af1db50efaa05aef3069d3a5e8"


def test_parts_are_disjoint_whole_and_stratified():
    parts = {split: digits(split) for split in SPLITS}
    assert sum(len(images) for images, _ in parts.values()) == 1797
    for images, labels in parts.values():
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert int(images.max()) == DIGITS_LEVELS - 1
        share = labels.bincount(minlength=10) / len(labels)
        assert float((share - 0.1).abs().max()) < 0.005


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="split: expected one of train, validation, test, got 'dev'"):
        digits("dev")
