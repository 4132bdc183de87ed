"""Animated pictures as a GIF file. Not here: what they show."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dqn_jax.config import InputError

_LAST_MILLISECONDS = 1_000
"""How long the last picture stays before the first comes again."""
_SAMPLE = 64
"""Pictures that the colours are taken from."""
_FULL, _EMPTY = (120, 120, 120), (230, 230, 230)
"""Colours of the bar."""


def write_gif(path: Path, pictures: Sequence[np.ndarray], per_second: int) -> None:
    """Writes pictures [H, W, 3] uint8, one after the other, above a bar of how many there have been.

    With the bar no two are equal; of equal ones the file would have the first alone.

    Raises:
      InputError: if the file cannot be written.
    """
    pictures = _above_bars(pictures)
    sample = np.concatenate(pictures[:: -(-len(pictures) // _SAMPLE)])
    # One table of colours for all: each picture's own would be most of the file.
    colours = Image.fromarray(sample).quantize(256, dither=Image.Dither.NONE)
    first, *others = (Image.fromarray(picture).quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures)
    # Durations are hundredths of a second.
    step = round(100 / per_second) * 10
    durations = [step] * len(others) + [_LAST_MILLISECONDS]
    try:
        first.save(path, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    except OSError as error:
        raise InputError(f"gif is {path}, which cannot be written ({error.strerror}): name another file") from None


def _above_bars(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Puts a bar below each picture, with at least a pixel more than the one before."""
    count, width = len(pictures), pictures[0].shape[1]
    height = max(2, -(-count // width))
    pixels = np.arange(height * width).reshape(width, height).T
    ends = np.arange(1, count + 1) * height * width // count
    return [
        np.concatenate([picture, np.where(pixels[..., None] < end, _FULL, _EMPTY).astype(np.uint8)])
        for picture, end in zip(pictures, ends, strict=True)
    ]
