"""Noise is an address book: the numbers must be Philox's own, and depend on their address alone."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidgen.sampling import image_noise, philox4x32, uniforms

WORD = st.integers(0, 2**32 - 1)


# kat_vectors of Random123 1.14, philox4x32 with 10 rounds
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    assert tuple(int(word) for word in philox4x32(counter, key[0] | key[1] << 32)) == expected


def _philox_by_the_book(counter, seed):
    """Big integers, one block at a time, as the paper writes it."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed % 2**32, seed >> 32
    for _ in range(10):
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=5), st.integers(0, 2**64 - 1))
def test_vectorised_form_is_the_books(counters, seed):
    columns = tuple(numpy.array(column) for column in zip(*counters, strict=True))
    expected = [_philox_by_the_book(counter, seed) for counter in counters]
    assert philox4x32(columns, seed).tolist() == expected


def test_uniforms_never_reach_the_ends():
    ends = uniforms(numpy.array([[0, 0, 2**32 - 1, 2**32 - 1]], dtype=numpy.uint32))
    assert ends.tolist() == [[2.0**-53, 1 - 2.0**-53]]


@given(WORD, WORD)
def test_uniforms_are_exact(high, low):
    (value,) = uniforms(numpy.array([high, low], dtype=numpy.uint32)).tolist()
    assert int(value * 2**53) == 2 * (high << 20 | low >> 12) + 1


def test_noise_is_a_function_of_the_address():
    noise = image_noise(7, range(5), (3, 4, 6))
    assert numpy.array_equal(image_noise(7, range(3, 5), (3, 4, 6)), noise[3:])
    assert numpy.array_equal(image_noise(7, range(5), (2, 3, 5)), noise[:, :2, :3, :5])
    assert noise[2, 1, 3, 4].tolist() == uniforms(philox4x32((2, 3, 4, 1), 7)).tolist()
    assert not (image_noise(8, range(5), (3, 4, 6)) == noise).any()


def test_noise_is_uniform():
    noise = image_noise(3, range(40), (3, 16, 16)).ravel()
    counts = numpy.histogram(noise, bins=64, range=(0, 1))[0]
    expected = len(noise) / 64
    statistic = ((counts - expected) ** 2 / expected).sum()
    # 63 degrees of freedom; the seed is fixed, so this is a fixed number
    assert 30 < statistic < 104


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**64, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_seed_is_named(seed, error):
    with pytest.raises(error, match="seed: expected"):
        philox4x32((0, 0, 0, 0), seed)
