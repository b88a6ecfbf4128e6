"""Motion classes of moving digits: the clips of a training run, and the two networks that are compared on them.

C3D sees how things move. The single-frame network does not, and on these clips nothing else helps: it is the control.
"""

from typing import Literal

from torch import nn

from vidgen.data import MOTIONS, MovingDigits, moving_digits
from vidgen.data.digits import Split
from vidgen.models import C3D, SingleFrame
from vidgen.sampling.philox import check_seed

VALIDATION_CLIPS, TEST_CLIPS = 256, 1000


def motion_clips(frames: int, size: int, clips: int, seed: int) -> dict[Split, MovingDigits]:
    """Clips of ``frames`` frames of size×size pixels: ``clips`` to train on, and held-out ones of unseen digits.

    The held-out ones are the same whatever ``seed`` is.

    Raises:
        TypeError, ValueError: ``seed`` is not an int from 0 on, or another argument is not as in
            ``vidgen.data.moving_digits``.
    """

    def part(split: Split, n: int, seed: int) -> MovingDigits:
        return moving_digits(split, n=n, frames=frames, height=size, width=size, seed=seed)

    check_seed(seed)
    # seeds 0 and 1 are kept for the held-out splits, so that no path of theirs is trained on
    return {
        "train": part("train", clips, seed + 2),
        "validation": part("validation", VALIDATION_CLIPS, 1),
        "test": part("test", TEST_CLIPS, 0),
    }


def motion_model(
    name: Literal["c3d", "single-frame"], *, frames: int, size: int, width: int, dropout: float
) -> nn.Module:
    """A network that tells the motion classes of such clips.

    Args:
        name: "c3d", or "single-frame".
        frames, size: of the clips.
        width: C3D's; the single-frame network's two layers have as many channels as C3D's first two convolutions.
        dropout: C3D's.
    """
    if name == "c3d":
        return C3D(len(MOTIONS), width=width, dropout=dropout, input_size=(frames, size, size), in_channels=1)
    return SingleFrame(len(MOTIONS), in_channels=1, widths=(width, 2 * width))
