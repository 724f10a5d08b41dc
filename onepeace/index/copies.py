"""Whether two pictures, sounds or videos are copies of one another, by how they look and sound.

`LOOKS` has the functions that reduce a file to a few thousand numbers, and that compare pairs of these. The thresholds
were chosen on copies made from 1,000 pictures and sounds, and on the most similar pairs among 10,000 different ones.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError

SIDE, CELL = 32, 4
"""Side of a thumbnail, and of the squares it is divided into, in pixels."""
FAR = 40.0
"""Root mean square difference of the means over squares from which on pictures are taken to be different."""
STEPS = 10
"""Gauss-Newton steps that align one picture with the other."""
MOVED = SIDE / 16
"""Limit in pixels of the shift of the centre, and of the shift of the edge by scaling, in the alignment."""
MAX_DIFFERENCE, ROUNDING = 0.25, 0.5
"""Root mean square difference below which pictures are copies, in standard deviations (two different printed pages
differ by more), and levels added to the difference, so that nearly empty pages are not copies of each other."""
DIFFERENT, LOCAL = 25.5, 3.1
"""Limits for the square that differs most: its root mean square difference in levels (0 to 255), and the ratio to that
of the whole picture. If a single square differs, something in it was drawn or moved."""

RATE, WINDOW, HOP, BANDS, LOWEST, HIGHEST = 8000, 512, 128, 32, 100.0, 3700.0
"""Spectrogram: rate in Hz, window and hop in samples, number of bands, range in Hz (halving the rate preserves it)."""
FRAMES = 512
"""Maximum number of frames of a sound; window and hop are doubled until it has no more than this."""
SECONDS = 600.0
"""Maximum length of a sound; only its beginning is compared."""
DECIBEL, DEPTH, HEARD = 4.0, 63.0, 40.0
"""Steps per decibel; decibels below the loudest cell that are kept, and that are compared (encoder noise is lower)."""
LONGER = 0.9
"""Minimum ratio of the lengths of two copies, and of their overlap to the longer one."""
CORRELATED, DEVIATION = 0.55, 2.5
"""Minimum correlation of the changes over time and pitch; maximum mean difference in decibels without the gain."""
SHORT, FEW, SMALL = 500, 60, 2.0
"""Number of audible cells below which SMALL replaces DEVIATION, and number below which sounds are never copies."""

MOMENTS, AGREED = (0.2, 0.4, 0.6, 0.8), 3
"""Fractions of a video's length at which frames are compared, and minimum number of frames that are copies."""


def picture(value: Path) -> np.ndarray:
    """Thumbnail of a picture, (SIDE, SIDE, 3) uint8.

    Raises:
        UserError: the picture cannot be read.
    """
    from onepeace.processors import ImageProcessor

    return _small(ImageProcessor(size=2 * SIDE).load(value))


def sound(value: Path) -> np.ndarray:
    """Spectrogram of a sound, (frames, BANDS) uint8: decibels below the loudest cell, in steps of 1 / DECIBEL.

    Raises:
        UserError: the sound cannot be read, or is silent.
    """
    from onepeace.processors import AudioProcessor

    samples = AudioProcessor(sample_rate=RATE).load(value, seconds=SECONDS).numpy()
    scale = 1
    while len(samples) > FRAMES * HOP * scale:
        scale *= 2
    window, hop = WINDOW * scale, HOP * scale
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    cut = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    power = np.abs(np.fft.rfft(cut * np.hanning(window).astype(np.float32))) ** 2
    edges = np.unique(np.geomspace(LOWEST, HIGHEST, BANDS + 1) * window / RATE)
    starts = np.maximum(np.round(edges).astype(int), np.arange(BANDS + 1) + round(edges[0]))
    bands = np.add.reduceat(power[:, : starts[-1]], starts[:-1], axis=1)
    if not bands.max() > 0:
        raise UserError("silence")
    below = 10 * np.log10(bands.max() / np.maximum(bands, bands.max() * 10 ** (-DEPTH / 10)))
    return np.round(below * DECIBEL).astype(np.uint8)


def video(value: Path) -> np.ndarray:
    """Thumbnails of frames of a video, (MOMENTS, SIDE, SIDE, 3) uint8.

    Raises:
        UserError: the video cannot be read, or does not declare its length.
    """
    from onepeace.files.container import declared_duration, open_container
    from onepeace.files.video import frame_at

    with open_container(value, "video") as container:
        seconds = declared_duration(container)
    if seconds is None:
        raise UserError("no length")
    return np.stack([_small(frame_at(value, part * seconds).image) for part in MOMENTS])


def _small(image: Any) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def same_pictures(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the pictures of n pairs are copies, (n,) bool; one may be scaled, re-encoded, or slightly cropped.

    One picture is aligned with the other by shifts and scales along both axes, found by Gauss-Newton steps (Lucas and
    Kanade 1981); after that, no square may differ much.
    """
    one, two = np.array(first, np.float32), np.array(second, np.float32)
    near = _rms(_squares(one - two).mean(axis=(2, 4)), (1, 2, 3)) < FAR
    if near.any():
        near[near] = _lies_over(one[near], two[near]) | _lies_over(two[near], one[near])
    return near


def _lies_over(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Whether each picture ``two`` (n, SIDE, SIDE, 3) equals ``one`` or a part of it, (n,) bool."""
    moved, inside = _laid_over(one, two)
    error = (one - moved) * inside
    cells = _rms(_squares(error), (2, 4, 5))
    most = cells.max(axis=(1, 2))
    whole = _rms(error, (1, 2, 3))
    is_like = whole + ROUNDING < MAX_DIFFERENCE * one.std(axis=(1, 2, 3))
    return is_like & (most < DIFFERENT) & (most < LOCAL * (1 + whole))


def _squares(pixels: np.ndarray) -> np.ndarray:
    """Reshape (n, SIDE, SIDE, 3) to (n, rows, CELL, columns, CELL, 3)."""
    return pixels.reshape(len(pixels), SIDE // CELL, CELL, SIDE // CELL, CELL, 3)


def _rms(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt((values**2).mean(axis=axes))


def _laid_over(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Align pictures ``two`` (n, SIDE, SIDE, 3) with ``one``; returns them and their masks (n, SIDE, SIDE, 1)."""
    middle = (SIDE - 1) / 2
    across = ((np.arange(SIDE) - middle) / middle).astype(np.float32)
    places = np.zeros((len(one), 2, 2), np.float32)
    """Shift, and shift of the edge by scaling, both in pixels, along x and y."""
    for step in range(STEPS + 1):
        at = np.arange(SIDE) + places[:, :, :1] + places[:, :, 1:] * across  # (n, 2, SIDE)
        weights = np.maximum(0, 1 - np.abs(at.clip(0, SIDE - 1)[..., None] - np.arange(SIDE))).astype(np.float32)
        rows = (weights[:, 1] @ two.reshape(len(two), SIDE, -1)).reshape(two.shape)
        moved = weights[:, :1] @ rows  # (n, SIDE, SIDE, 3): along x
        is_in = (at > -0.01) & (at < SIDE - 0.99)
        inside = (is_in[:, 1, :, None] & is_in[:, 0, None, :])[..., None].astype(np.float32)
        if step == STEPS:
            break
        down, right = np.gradient(moved, axis=(1, 2))
        slopes = [right, right * across[:, None], down, down * across[:, None, None]]
        slopes_of = (np.stack(slopes, -1) * inside[..., None]).reshape(len(one), -1, 4)
        error = ((one - moved) * inside).reshape(len(one), -1, 1)
        system = slopes_of.mT @ slopes_of + np.eye(4, dtype=np.float32)
        places += np.linalg.solve(system, slopes_of.mT @ error).reshape(-1, 2, 2)
        places = places.clip(-MOVED, MOVED)
    return moved, inside


def same_sounds(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the sounds of n pairs are copies, (n,) bool; one may be quieter, re-encoded, or 10 % shorter at its ends.

    At the best alignment in time, the changes over time and pitch are compared, as in music fingerprinting (Haitsma and
    Kalker 2002), and so are the levels.
    """
    return np.array([_is_same_sound(one, two) for one, two in zip(first, second, strict=True)], np.bool_)


def _is_same_sound(first: np.ndarray, second: np.ndarray) -> bool:
    one, two = (-x.astype(np.float32) / DECIBEL for x in (first, second))
    if len(one) > 1.5 * len(two):
        one = _halved(one)
    elif len(two) > 1.5 * len(one):
        two = _halved(two)
    longest = max(len(one), len(two))
    if min(len(one), len(two)) < max(LONGER * longest, 3):
        return False
    lag = _lag(_changes(one, one > -HEARD), _changes(two, two > -HEARD), round((1 - LONGER) * longest))
    one, two = one[max(0, lag) :], two[max(0, -lag) :]
    count = min(len(one), len(two))
    one, two = one[:count], two[:count]
    heard = (one > -HEARD) | (two > -HEARD)
    if count < max(LONGER * longest, 3) or heard.sum() < FEW:
        return False
    difference = (one - two)[heard]
    changes, others = _changes(one, heard), _changes(two, heard)
    scale = np.sqrt((changes**2).sum() * (others**2).sum())
    most = DEVIATION if heard.sum() >= SHORT else SMALL
    is_near = np.abs(difference - np.median(difference)).mean() < most
    return bool(is_near and (changes * others).sum() > CORRELATED * scale)


def _halved(levels: np.ndarray) -> np.ndarray:
    """Mean power of every two frames, in decibels: a slightly longer sound may have frames of twice the length."""
    return 10 * np.log10((10 ** (levels[: len(levels) // 2 * 2] / 10)).reshape(-1, 2, BANDS).mean(axis=1))


def _changes(levels: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Band-to-band differences of the change over time, (frames - 2, BANDS - 1); 0 where nothing is audible."""
    is_heard = heard[2:] | heard[:-2]
    return np.diff(levels[2:] - levels[:-2], axis=1) * (is_heard[:, 1:] | is_heard[:, :-1])


def _lag(one: np.ndarray, two: np.ndarray, most: int) -> int:
    """Frames from the beginning of ``one`` to that of ``two``, where their correlation is largest."""
    size = 1 << (len(one) + len(two)).bit_length()
    spectra = np.fft.rfft(one, size, axis=0) * np.fft.rfft(two, size, axis=0).conj()
    found = np.fft.irfft(spectra.sum(axis=1), size)
    lags = np.arange(-most, most + 1)
    return int(lags[np.argmax(found[lags])])


def same_videos(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the videos of n pairs are copies, (n,) bool; one may be scaled or re-encoded, but not cut."""
    moments = [same_pictures([x[i] for x in first], [x[i] for x in second]) for i in range(len(MOMENTS))]
    return np.sum(moments, axis=0) >= AGREED


Look = Callable[[Path], np.ndarray]
Same = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]
LOOKS: dict[str, tuple[Look, Same]] = {
    "image": (picture, same_pictures), "audio": (sound, same_sounds), "video": (video, same_videos),
}  # fmt: skip
"""Functions by kind of file: the look of a file, or `UserError` if it has none, and the comparison of pairs."""
