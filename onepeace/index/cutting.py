"""How a file is cut into the parts that its vectors stand for: windows of a sound, pictures and windows of a video."""

from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.index.classify import modalities_of
from onepeace.index.items import Item, Span
from onepeace.index.video import Video

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.embed.stream import Windows

WINDOW = 10.0
HOP = 5.0
"""Window and hop in seconds; a sound that is longer than the window gets one vector per window."""


def window_options(embedder: "Embedder") -> dict[str, Any]:
    """Options of `Embedder.stream` that cut long sounds into windows that the model can read."""
    longest = WINDOW
    processor = embedder.processors.get("audio")
    if processor is not None and processor.max_seconds is not None:
        longest = processor.max_seconds
    return {"long": "windows", "window": min(WINDOW, longest), "hop": min(HOP, longest)}


def as_video(item: Item, value: Any, modalities: tuple[str, ...]) -> Video | None:
    """The input of the embedder for a video, and None for another file.

    Args:
        modalities: those of the model.
    """
    if item.modality != "video":
        return None
    return Video(value, modalities_of(item, modalities), item.duration)


def spans_and_vectors(
    windows: "Windows", item: Item, video: Video | None, *, is_silent: bool
) -> tuple[list[Span], np.ndarray]:
    """The parts of a file that its vectors stand for, and these vectors (n, E).

    Args:
        windows: the result of the embedder.
        video: the input, if the file is a video.
        is_silent: whether its sound is digital silence.
    """
    if video is not None:
        return video.vectors(windows, is_silent)
    vectors = np.asarray(windows.vectors)
    if len(vectors) == 1:
        return [Span(item.modality)], vectors
    spans = []
    for start, end in zip(windows.starts, windows.ends, strict=True):
        spans.append(Span(item.modality, start, end))
    return spans, vectors
