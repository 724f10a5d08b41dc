"""A video as an item of the embedder: pictures with their times and windows of its sound, a few in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from onepeace.embed.parts import CompositeItem, Part
from onepeace.errors import UserError, need
from onepeace.files.source import describe
from onepeace.files.video import STEP, frames
from onepeace.index.items import Span
from onepeace.index.search import ALIKE

if TYPE_CHECKING:
    from torch import Tensor

    from onepeace.embed.stream import Windows

EVERY, STRETCH = 5.0, 3.0
"""Seconds between two pictures of an unchanging scene, and the factor by which key frames may be farther apart before
frames between them are decoded: encoders with a key frame every 10 s add others where scenes change."""
CHANGE = 0.25
"""Share of the colours that differ in a new scene; pictures that are similar nevertheless are left out later."""
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
        self, value: str | PathLike[str] | bytes, modalities: Sequence[str], duration: float | None = None
    ) -> None:
        self.value, self.name = value, describe(value)
        self.modalities, self.duration = modalities, duration
        self.troubles: list[str] = []
        self.num_pictures = 0

    def parts(self, pieces: Callable[[str, object], Pieces]) -> list[Part]:
        need("av", "media")
        found = {"image": self._pictures(pieces), "audio": pieces("audio", self.value)}
        parts = []
        for modality in self.modalities:
            own = self._as_far_as_readable(found[modality])
            if begun := list(islice(own, AHEAD)):
                parts.append(Part(modality, chain(begun, own)))
        if not parts:
            raise UserError("; ".join(self.troubles))
        return parts

    def _pictures(self, pieces: Callable[[str, object], Pieces]) -> Iterator[tuple[float, float, "Tensor"]]:
        step = max(STEP, (self.duration or 0.0) / MOST)
        for frame in frames(self.value, every=max(EVERY, step), change=CHANGE, step=step, stretch=STRETCH):
            if self.num_pictures == MOST:
                raise UserError(f"only its first {MOST} pictures are in the index, up to second {frame.time:.0f}")
            for _, _, sample in pieces("image", frame.image):
                self.num_pictures += 1
                yield frame.time, frame.time, sample

    def _as_far_as_readable(self, found: Pieces) -> Iterator[tuple[float, float, "Tensor"]]:
        try:
            yield from found
        except UserError as error:
            reason = str(error).removeprefix(f"{self.name}: ")
            if reason not in self.troubles:  # a file that cannot be opened fails twice
                self.troubles.append(reason)

    def vectors(self, windows: "Windows", is_silent: bool) -> tuple[list[Span], np.ndarray]:
        """Spans and vectors to store: the first of successive similar pictures, which lasts until the next one stored,
        and the windows of the sound, unless it is silent and there are pictures.
        """
        vectors = np.asarray(windows.vectors)
        kept: list[int] = []
        for i in range(self.num_pictures):
            if not kept or vectors[kept[-1]] @ vectors[i] < ALIKE:
                kept.append(i)
        starts = [windows.starts[i] for i in kept]
        ends = [*starts[1:], max(self.duration or 0.0, windows.starts[self.num_pictures - 1])] if kept else []
        spans = [Span("image", *times) for times in zip(starts, ends, strict=True)]
        if not (is_silent and kept):
            sound = range(self.num_pictures, len(vectors))
            spans += [Span("audio", windows.starts[i], windows.ends[i]) for i in sound]
            kept += sound
        return spans, vectors[kept]
