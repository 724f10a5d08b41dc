"""Converts videos to clips: (T, 3, H, W) float32, frames at equal distances, each processed like a picture."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from onepeace.errors import UserError
from onepeace.files import source, video
from onepeace.processors.audio import SIGNATURE
from onepeace.processors.image import ImageProcessor

if TYPE_CHECKING:
    from PIL import Image


class VideoProcessor(ImageProcessor):
    """Converts paths, http(s) URLs and bytes of videos to the frames of a clip.

    frames: number of frames. stride: distance between them, in frames of the video; from a video too short for that, as
    many are taken at equal distances. size, mean, std, resize: as for pictures. The clip is the middle of the video.
    clips, crops: a task head averages its outputs over this many clips, from start to end, and this many crops of each,
    from left to right or top to bottom; 3 and 3 are usual for Kinetics, and take nine times as long.

    A file is never guessed to be a clip: otherwise a video counts as its sound and, in an index, as its pictures.
    """

    key: ClassVar[str] = "video"
    suffixes: ClassVar[frozenset[str]] = video.VIDEO_SUFFIXES
    guessed: ClassVar[bool] = False

    def __init__(
        self,
        *,
        frames: int = 16,
        stride: int = 8,
        size: int | Sequence[int] = 256,
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        resize: str = "crop",
        clips: int = 1,
        crops: int = 1,
    ) -> None:
        super().__init__(size=size, mean=mean, std=std, resize=resize)
        if min(frames, stride) < 1:
            raise UserError(f"processors.video.frames {frames} and stride {stride} must be above 0")
        if min(clips, crops) < 1 or (crops > 1 and resize != "crop"):
            raise UserError(
                f"processors.video.clips {clips} and crops {crops} must be above 0, and several crops need resize: "
                f"crop; it is {resize}"
            )
        self.frames = frames
        self.stride = stride
        self.clips = clips
        self.crops = crops
        self.num_views = clips * crops

    @classmethod
    def matches(cls, item: object) -> bool:
        return isinstance(item, bytes) and SIGNATURE.match(item) is not None

    def decode(self, item: object) -> Tensor:
        """(T, 3, height, width) float32 of the clip in the middle."""
        return torch.stack([self.finish(image) for image in self.load_clip(item)])

    def example(self, share: float, generator: torch.Generator) -> Tensor:
        return torch.randn(self.frames, 3, self.height, self.width, generator=generator)

    def views(self, item: object) -> list[Tensor]:
        """All crops of all clips, (T, 3, height, width) each."""
        views = []
        for clip_place in _places(self.clips):
            images = self.load_clip(item, clip_place)
            for crop_place in _places(self.crops):
                views.append(torch.stack([self.finish(image, crop_place) for image in images]))
        return views

    def load_clip(self, item: object, place: float = 0.5) -> "list[Image.Image]":
        """The frames of a clip, upright, in the size of the video; `place` as in `onepeace.files.video.clip`.

        Raises:
            UserError: PyAV is missing, or the video cannot be read.
        """
        if isinstance(item, str) and source.scheme(item):
            item = source.NamedBytes(source.read_bytes(item), source.describe(item))
        if not isinstance(item, str | os.PathLike | bytes):
            raise UserError("a video is a path, an address or the bytes of a file", where=source.describe(item))
        return [frame.image for frame in video.clip(item, self.frames, self.stride, place)]


def _places(count: int) -> list[float]:
    """`count` places at equal distances from 0 to 1; 0.5 if there is only one."""
    if count == 1:
        return [0.5]
    return [i / (count - 1) for i in range(count)]
