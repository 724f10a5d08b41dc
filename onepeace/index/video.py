"""A video as an item of the embedder: pictures with their times and windows of its sound, a few in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from onepeace.embed.items import CompositeItem, Part
from onepeace.errors import UserError, need, reason_at
from onepeace.files.source import describe
from onepeace.files.video import STEP, frames
from onepeace.index.items import Span

if TYPE_CHECKING:
    from torch import Tensor

    from onepeace.embed.encode import Windows

EVERY = 5.0
"""Seconds between two pictures of an unchanging scene."""
STRETCH = 3.0
"""Factor by which key frames may be farther apart before frames between them are decoded: encoders with a key frame
every 10 s add others where scenes change."""
CHANGE = 0.25
"""Share of the colours that differ in a new scene; pictures that are similar nevertheless are left out later."""
ALIKE = 0.98
"""Minimum cosine of successive pictures of which only the first is stored."""
MOST = 1000
"""Maximum number of frames embedded per video; in longer videos they are farther apart."""
AHEAD = 16
"""Pictures, and windows of the sound, decoded ahead."""

Pieces = Iterable[tuple[float, float, "Tensor"]]


class Video(CompositeItem):
    """Pictures at scene changes and every 5 seconds within a scene, and the windows of the sound.

    Args:
        value: a path, or the content of a file.
        modalities: image and audio, or the one of them that the model supports.
        duration: seconds, if known. A video of more than `MOST` seconds has a picture at most every duration / `MOST`.

    When all parts have been consumed, `troubles` has the errors of the pictures and the sound; the item fails only if
    neither can be read.
    """

    copied = ("troubles", "num_pictures")

    def __init__(
        self,
        value: str | PathLike[str] | bytes,
        modalities: Sequence[str],
        duration: float | None = None,
    ) -> None:
        self.value = value
        self.name = describe(value)
        self.modalities = modalities
        self.duration = duration
        self.troubles: list[str] = []
        self.num_pictures = 0

    def parts(self, pieces: Callable[[str, object], Pieces]) -> list[Part]:
        need("av", "media")
        pieces_by_modality = {"image": self._pictures(pieces), "audio": pieces("audio", self.value)}
        parts = []
        for modality in self.modalities:
            readable = self._as_far_as_readable(pieces_by_modality[modality])
            first_pieces = list(islice(readable, AHEAD))
            if first_pieces:
                parts.append(Part(modality, chain(first_pieces, readable)))
        if not parts:
            raise UserError("; ".join(self.troubles))
        return parts

    def _pictures(
        self,
        pieces: Callable[[str, object], Pieces],
    ) -> Iterator[tuple[float, float, "Tensor"]]:
        step = max(STEP, (self.duration or 0.0) / MOST)
        for frame in frames(self.value, every=max(EVERY, step), change=CHANGE, step=step, stretch=STRETCH):
            if self.num_pictures == MOST:
                raise UserError(f"only its first {MOST} pictures are in the index, up to second {frame.time:.0f}")
            for _, _, sample in pieces("image", frame.image):
                self.num_pictures += 1
                yield frame.time, frame.time, sample

    def _as_far_as_readable(self, pieces: Pieces) -> Iterator[tuple[float, float, "Tensor"]]:
        try:
            yield from pieces
        except UserError as error:
            reason = reason_at(self.name, error)
            if reason not in self.troubles:  # a file that cannot be opened fails twice
                self.troubles.append(reason)

    def vectors(self, windows: "Windows", is_silent: bool) -> tuple[list[Span], np.ndarray]:
        """Spans and vectors to store: those of the pictures that differ from the one before, and those of the windows
        of the sound, unless it is silent and there are pictures."""
        vectors = np.asarray(windows.vectors)
        rows = self._different_pictures(vectors)
        spans = self._spans_of_pictures([windows.starts[row] for row in rows], windows)
        if not (is_silent and rows):
            for row in range(self.num_pictures, len(vectors)):
                spans.append(Span("audio", windows.starts[row], windows.ends[row]))
                rows.append(row)
        return spans, vectors[rows]

    def _different_pictures(self, vectors: np.ndarray) -> list[int]:
        """Rows of the first of successive similar pictures."""
        rows: list[int] = []
        for row in range(self.num_pictures):
            if not rows or vectors[rows[-1]] @ vectors[row] < ALIKE:
                rows.append(row)
        return rows

    def _spans_of_pictures(self, starts: Sequence[float], windows: "Windows") -> list[Span]:
        """Spans of the pictures that are stored: each lasts until the next one, the last one until the end."""
        if not starts:
            return []
        last_picture = windows.starts[self.num_pictures - 1]
        ends = [*starts[1:], max(self.duration or 0.0, last_picture)]
        spans = []
        for start, end in zip(starts, ends, strict=True):
            spans.append(Span("image", start, end))
        return spans
