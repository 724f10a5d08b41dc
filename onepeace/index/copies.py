"""Whether two pictures, sounds or videos are copies of one another, by how they look and sound.

`LOOKS` has the functions that reduce a file to a few thousand numbers, and that compare pairs of these. The thresholds
were chosen on copies made from 1,000 pictures and sounds, and on the most similar pairs among 10,000 different ones.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError

SIDE = 32
"""Side of a thumbnail in pixels."""
CELL = 4
"""Side in pixels of the squares that a thumbnail is divided into."""
FAR = 40.0
"""Root mean square difference of the means over squares from which pictures are taken to be different."""
STEPS = 10
"""Gauss-Newton steps that align one picture with the other."""
MOVED = SIDE / 16
"""Limit in pixels of the shift of the centre, and of the shift of the edge by scaling, in the alignment."""
CONTRAST = 1.25
"""Limit of the factor by which the contrast of a copy differs."""
MAX_DIFFERENCE = 0.25
"""Root mean square difference below which pictures are copies, in standard deviations: two different printed pages
differ by more."""
ROUNDING = 0.5
"""Levels added to the difference, so that nearly empty pages are not copies of each other."""
DIFFERENT = 25.5
"""Limit in levels (0 to 255) for the root mean square difference of the square that differs most. If a single square
differs, something in it was drawn or moved."""
LOCAL = 3.1
"""Limit for the ratio of that difference to the difference of the whole picture."""

RATE = 8000
"""Samples per second of a spectrogram."""
WINDOW = 512
HOP = 128
"""Window and hop of a spectrogram in samples."""
BANDS = 32
LOWEST = 100.0
HIGHEST = 3700.0
"""Range of the bands in Hz; halving the rate preserves it."""
FRAMES = 512
"""Maximum number of frames of a sound; window and hop are doubled until it has no more than this."""
SECONDS = 600.0
"""Maximum length of a sound; only its beginning is compared."""
DECIBEL = 4.0
"""Steps per decibel."""
DEPTH = 63.0
"""Decibels below the loudest cell that are kept."""
HEARD = 40.0
"""Decibels below the loudest cell that are compared; encoder noise is lower."""
LONGER = 0.9
"""Minimum ratio of the lengths of two copies, and of their overlap to the longer one."""
CORRELATED = 0.55
"""Minimum correlation of the changes over time and pitch."""
DEVIATION = 2.5
"""Maximum mean difference in decibels without the gain."""
SHORT = 500
SMALL = 2.0
"""Number of audible cells below which SMALL replaces DEVIATION."""
FEW = 60
"""Number of audible cells below which sounds are never copies."""

MOMENTS = (0.2, 0.4, 0.6, 0.8)
"""Fractions of a video's length at which frames are compared."""
AGREED = 3
"""Minimum number of these frames that are copies."""


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
    bands = _powers_of_bands(samples)
    loudest = bands.max()
    if not loudest > 0:
        raise UserError("silence")
    quietest = loudest * 10 ** (-DEPTH / 10)
    below = 10 * np.log10(loudest / np.maximum(bands, quietest))
    return np.round(below * DECIBEL).astype(np.uint8)


def _powers_of_bands(samples: np.ndarray) -> np.ndarray:
    """(frames, BANDS) float: power of a sound by time and pitch."""
    scale = 1
    while len(samples) > FRAMES * HOP * scale:
        scale *= 2
    window = WINDOW * scale
    hop = HOP * scale
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    weights = np.hanning(window).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * weights)) ** 2
    starts = _starts_of_bands(window)
    return np.add.reduceat(power[:, : starts[-1]], starts[:-1], axis=1)


def _starts_of_bands(window: int) -> np.ndarray:
    """(BANDS + 1,) int: first bin of each band of a Fourier transform, and the end; a band has one bin at least."""
    edges = np.unique(np.geomspace(LOWEST, HIGHEST, BANDS + 1) * window / RATE)
    earliest = np.arange(BANDS + 1) + round(edges[0])
    return np.maximum(np.round(edges).astype(int), earliest)


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
    thumbnails = []
    for part in MOMENTS:
        frame = frame_at(value, part * seconds)
        thumbnails.append(_small(frame.image))
    return np.stack(thumbnails)


def _small(image: Any) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def same_pictures(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the pictures of n pairs are copies, (n,) bool; one may be scaled, re-encoded, brighter, or slightly
    cropped.

    One picture is aligned with the other by shifts and scales along both axes, found by Gauss-Newton steps (Lucas and
    Kanade 1981); after that, no square may differ much.
    """
    left = np.array(first, np.float32)
    right = np.array(second, np.float32)
    means = _squares(left - right).mean(axis=(2, 4))
    is_copy = _rms(means, (1, 2, 3)) < FAR
    if is_copy.any():
        near_left = left[is_copy]
        near_right = right[is_copy]
        is_copy[is_copy] = _lies_over(near_left, near_right) | _lies_over(near_right, near_left)
    return is_copy


def _lies_over(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether each picture ``right`` (n, SIDE, SIDE, 3) equals ``left`` or a part of it, (n,) bool."""
    moved, inside = _laid_over(left, _as_bright(left, right))
    error = (left - moved) * inside
    cells = _rms(_squares(error), (2, 4, 5))
    most = cells.max(axis=(1, 2))
    whole = _rms(error, (1, 2, 3))
    is_like = whole + ROUNDING < MAX_DIFFERENCE * left.std(axis=(1, 2, 3))
    return is_like & (most < DIFFERENT) & (most < LOCAL * (1 + whole))


def _as_bright(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pictures ``right`` (n, SIDE, SIDE, 3) with the brightness and, within `CONTRAST`, the contrast of ``left``."""
    axes = (1, 2, 3)
    deviation = np.maximum(right.std(axis=axes, keepdims=True), ROUNDING)
    contrast = (left.std(axis=axes, keepdims=True) / deviation).clip(1 / CONTRAST, CONTRAST)
    centred = right - right.mean(axis=axes, keepdims=True)
    return centred * contrast + left.mean(axis=axes, keepdims=True)


def _squares(pixels: np.ndarray) -> np.ndarray:
    """Reshape (n, SIDE, SIDE, 3) to (n, rows, CELL, columns, CELL, 3)."""
    return pixels.reshape(len(pixels), SIDE // CELL, CELL, SIDE // CELL, CELL, 3)


def _rms(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt((values**2).mean(axis=axes))


def _laid_over(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Align pictures ``right`` (n, SIDE, SIDE, 3) with ``left``; returns them and their masks (n, SIDE, SIDE, 1)."""
    shifts = np.zeros((len(left), 2, 2), np.float32)
    for _ in range(STEPS):
        moved, inside = _moved(right, shifts)
        shifts = (shifts + _correction(left, moved, inside)).clip(-MOVED, MOVED)
    return _moved(right, shifts)


def _across() -> np.ndarray:
    """(SIDE,) float32: place of each pixel, from -1 at one edge to 1 at the other."""
    middle = (SIDE - 1) / 2
    return ((np.arange(SIDE) - middle) / middle).astype(np.float32)


def _moved(pictures: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, SIDE, SIDE, 3) that are shifted and scaled by linear interpolation, and their masks (n, SIDE, SIDE,
    1): 1 where a pixel is of the picture.

    Args:
        shifts: (n, 2, 2), along x and y: the shift, and the shift of the edge by scaling, in pixels.
    """
    pixels = np.arange(SIDE)
    sources = pixels + shifts[:, :, :1] + shifts[:, :, 1:] * _across()  # (n, 2, SIDE)
    distances = np.abs(sources.clip(0, SIDE - 1)[..., None] - pixels)
    weights = np.maximum(0, 1 - distances).astype(np.float32)  # (n, 2, SIDE, SIDE)
    rows = pictures.reshape(len(pictures), SIDE, -1)
    along_y = (weights[:, 1] @ rows).reshape(pictures.shape)
    moved = weights[:, :1] @ along_y
    is_in = (sources > -0.01) & (sources < SIDE - 0.99)
    inside = is_in[:, 1, :, None] & is_in[:, 0, None, :]
    return moved, inside[..., None].astype(np.float32)


def _correction(left: np.ndarray, moved: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Gauss-Newton step (n, 2, 2) of the shifts that bring ``moved`` nearer to ``left``."""
    across = _across()
    along_y, along_x = np.gradient(moved, axis=(1, 2))
    slopes = np.stack([along_x, along_x * across[:, None], along_y, along_y * across[:, None, None]], axis=-1)
    jacobian = (slopes * inside[..., None]).reshape(len(left), -1, 4)
    error = ((left - moved) * inside).reshape(len(left), -1, 1)
    damping = np.eye(4, dtype=np.float32)
    system = jacobian.mT @ jacobian + damping
    return np.linalg.solve(system, jacobian.mT @ error).reshape(-1, 2, 2)


def same_sounds(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the sounds of n pairs are copies, (n,) bool; one may be quieter, re-encoded, or 10 % shorter at its ends.

    At the best alignment in time, the changes over time and pitch are compared, as in music fingerprinting (Haitsma and
    Kalker 2002), and so are the levels.
    """
    is_copy = np.zeros(len(first), np.bool_)
    for number, (left, right) in enumerate(zip(first, second, strict=True)):
        is_copy[number] = _is_same_sound(left, right)
    return is_copy


def _is_same_sound(first: np.ndarray, second: np.ndarray) -> bool:
    left = -first.astype(np.float32) / DECIBEL
    right = -second.astype(np.float32) / DECIBEL
    if len(left) > 1.5 * len(right):
        left = _halved(left)
    elif len(right) > 1.5 * len(left):
        right = _halved(right)
    longest = max(len(left), len(right))
    least = LONGER * longest
    if min(len(left), len(right)) < least:
        return False
    left_changes = _changes(left, left > -HEARD)
    right_changes = _changes(right, right > -HEARD)
    lag = _lag(left_changes, right_changes, most=round((1 - LONGER) * longest))
    left = left[max(0, lag) :]
    right = right[max(0, -lag) :]
    count = min(len(left), len(right))
    return count >= least and _is_alike(left[:count], right[:count])


def _is_alike(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether levels (frames, BANDS) of the same frames in decibels are those of one sound, perhaps quieter."""
    is_heard = (left > -HEARD) | (right > -HEARD)
    num_heard = is_heard.sum()
    if num_heard < FEW:
        return False
    difference = (left - right)[is_heard]
    deviation = np.abs(difference - np.median(difference)).mean()
    if deviation >= (DEVIATION if num_heard >= SHORT else SMALL):
        return False
    left_changes = _changes(left, is_heard)
    right_changes = _changes(right, is_heard)
    scale = np.sqrt((left_changes**2).sum() * (right_changes**2).sum())
    return bool((left_changes * right_changes).sum() > CORRELATED * scale)


def _halved(levels: np.ndarray) -> np.ndarray:
    """Mean power of every two frames, in decibels: a slightly longer sound may have frames of twice the length."""
    even = levels[: len(levels) // 2 * 2]
    power = 10 ** (even / 10)
    mean_power = power.reshape(-1, 2, BANDS).mean(axis=1)
    return 10 * np.log10(mean_power)


def _changes(levels: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Band-to-band differences of the change over time, (frames - 2, BANDS - 1); 0 where nothing is audible."""
    is_heard = heard[2:] | heard[:-2]
    differences = np.diff(levels[2:] - levels[:-2], axis=1)
    return differences * (is_heard[:, 1:] | is_heard[:, :-1])


def _lag(left: np.ndarray, right: np.ndarray, most: int) -> int:
    """Frames from the beginning of ``left`` to that of ``right``, where their correlation is largest."""
    size = 1 << (len(left) + len(right)).bit_length()
    spectra = np.fft.rfft(left, size, axis=0) * np.fft.rfft(right, size, axis=0).conj()
    correlations = np.fft.irfft(spectra.sum(axis=1), size)
    lags = np.arange(-most, most + 1)
    return int(lags[np.argmax(correlations[lags])])


def same_videos(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the videos of n pairs are copies, (n,) bool; one may be scaled or re-encoded, but not cut."""
    num_agreed = np.zeros(len(first), np.int64)
    for moment in range(len(MOMENTS)):
        first_pictures = [frames[moment] for frames in first]
        second_pictures = [frames[moment] for frames in second]
        num_agreed += same_pictures(first_pictures, second_pictures)
    return num_agreed >= AGREED


Look = Callable[[Path], np.ndarray]
Same = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]
LOOKS: dict[str, tuple[Look, Same]] = {
    "image": (picture, same_pictures), "audio": (sound, same_sounds), "video": (video, same_videos),
}  # fmt: skip
"""Functions by kind of file: the look of a file, or `UserError` if it has none, and the comparison of pairs."""
