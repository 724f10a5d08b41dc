"""Augmentation of training items. All random numbers come from the generator passed in, one per item (steps.py).

Colour and normalisation are applied to the whole batch in ``collate``, which is faster than item by item.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onepeace.config import build
from onepeace.config.reader import Count, Probability, Range, Share
from onepeace.errors import UserError
from onepeace.processors.image import Box

SPATIAL = re.compile(r"\b(left|right|leftmost|rightmost|lefthand|righthand|(counter)?clockwise)\b", re.IGNORECASE)
"""Words that would be wrong for a mirrored picture."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601, as PIL's "L")."""
RATIOS = (3 / 4, 4 / 3)
"""Range of a crop's width / height, as in torchvision's RandomResizedCrop."""
MIX_DB = 5.0
"""Largest difference in loudness of two mixed clips."""
NOISE_DB = (10.0, 40.0)
"""Range of the signal-to-noise ratio."""
SILENCE = 1e-3
"""Share of a clip's peak (-60 dB) below which its end counts as silent."""

Magnitude = Annotated[int, Range("from 0 to 30", lambda x: 0 <= x <= 30)]
"""Strength of RandAugment's operations."""
Decibels = Annotated[float, Range("from 0 to 100", lambda x: 0 <= x <= 100)]
Another = Callable[[], tuple[Any, str]]
"""Draws another training item of the modality: its decoded media (from ``load``) and its caption."""


class Augment:
    """The three steps from an encoded item to the model's input; this base class changes nothing."""

    @property
    def moves_pixels(self) -> bool:
        """Whether boxes and masks would no longer fit the augmented picture."""
        return False

    def load(self, item: Any, processor: Any) -> Any:
        """The item, decoded."""
        return processor.decode(item)

    def vary(
        self,
        item: Any,
        text: str,
        processor: Any,
        rng: np.random.Generator,
        another: Another,
    ) -> tuple[Any, str]:
        """The augmented item, and its caption."""
        return item, text

    def collate(self, samples: list[Any], processor: Any) -> dict[str, Tensor]:
        """The model's input of a batch."""
        return processor.collate(samples)


class Picture(NamedTuple):
    """A cropped picture on its way into a batch."""

    pixels: np.ndarray
    """(H, W, 3) uint8."""
    factors: np.ndarray
    """(3,): factors of brightness, contrast and saturation."""


@dataclass(frozen=True)
class ImageAugment(Augment):
    """Random crop, flip and colour jitter; for fine-tuning also torchvision's RandAugment and Gaussian blur."""

    crop_scale: tuple[Probability, Probability] = (0.9, 1.0)
    """Least and largest share of the area that is kept; [1, 1] keeps the whole picture."""
    flip: bool = False
    """Mirror half of the pictures, unless the caption speaks of left or right."""
    color: Share = 0.0
    """Brightness, contrast and saturation change by at most this share."""
    rand_augment: tuple[Count, Magnitude] | None = None
    """[operations, magnitude from 0 to 30] of RandAugment (arXiv 1909.13719), e.g. [2, 9]; null = none."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur, its radius drawn from 0.1 to 2 pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise UserError(f"crop_scale {list(self.crop_scale)} should be two shares above 0, such as [0.5, 1.0]")

    @property
    def moves_pixels(self) -> bool:
        return self.flip or self.rand_augment is not None or self.crops

    def load(self, item: Any, processor: Any) -> Any:
        """The encoded picture: `vary` decodes it, as detailed as the crop that it draws needs."""
        return item

    def vary(
        self,
        item: Any,
        text: str,
        processor: Any,
        rng: np.random.Generator,
        another: Another,
    ) -> tuple[Any, str]:
        """A random crop in the model's size, randomly changed and mirrored, and the colour factors for `collate`."""
        if not self.crops:
            picture = processor.load(item)
            return self._varied(picture, processor.area(*picture.size), text, processor, rng), text
        width, height = processor.size_in_pixels(item)
        left, top, right, bottom = self._random_box(processor.area(width, height), width, height, rng)
        picture = processor.load(item, kept=min((right - left) / width, (bottom - top) / height))
        across = picture.width / width  # a large JPEG is decoded smaller than its header says
        down = picture.height / height
        box = (left * across, top * down, right * across, bottom * down)
        return self._varied(picture, box, text, processor, rng), text

    @property
    def crops(self) -> bool:
        """Whether a part of the picture is drawn, and not just what the model sees without training."""
        return self.crop_scale != (1.0, 1.0)

    def _varied(self, picture: Any, box: Box, text: str, processor: Any, rng: np.random.Generator) -> Picture:
        """A part of a decoded picture in the model's size, randomly changed and mirrored."""
        picture = processor.resized(picture, box)
        if self.rand_augment is not None:
            picture = self._rand_augment(picture, rng)
        if self.blur and rng.random() < self.blur:
            from PIL import ImageFilter

            radius = rng.uniform(0.1, 2.0)
            picture = picture.filter(ImageFilter.GaussianBlur(radius))
        pixels = np.asarray(picture)
        if self.flip and rng.random() < 0.5 and not SPATIAL.search(text):
            pixels = pixels[:, ::-1]
        factors = rng.uniform(1 - self.color, 1 + self.color, 3)
        return Picture(pixels, factors)

    def _random_box(self, seen: Box, width: int, height: int, rng: np.random.Generator) -> Box:
        """A crop of random area and shape from a picture and from the margins that the model sees around it."""
        first_left = min(0.0, seen[0])
        first_top = min(0.0, seen[1])
        whole_width = max(width, seen[2]) - first_left
        whole_height = max(height, seen[3]) - first_top
        area = whole_width * whole_height * rng.uniform(*self.crop_scale)
        log_ratio = rng.uniform(*np.log(RATIOS))
        ratio = math.exp(log_ratio)
        crop_width = min(math.sqrt(area * ratio), whole_width)
        crop_height = min(math.sqrt(area / ratio), whole_height)
        left = first_left + rng.uniform(0, whole_width - crop_width)
        top = first_top + rng.uniform(0, whole_height - crop_height)
        return left, top, left + crop_width, top + crop_height

    def _rand_augment(self, picture: Any, rng: np.random.Generator) -> Any:
        from torchvision.transforms import v2

        assert self.rand_augment is not None  # noqa: S101
        operations, magnitude = self.rand_augment
        # torchvision uses torch's generator, which is seeded from the item's and restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            return v2.RandAugment(operations, magnitude)(picture)

    def collate(self, samples: list[Picture], processor: Any) -> dict[str, Tensor]:
        """Colour and normalisation of the whole batch in one affine map per picture: {"pixels": (B, 3, H, W)}."""
        stacked = torch.from_numpy(np.stack([sample.pixels for sample in samples]))
        factors = torch.from_numpy(np.stack([sample.factors for sample in samples])).float()
        brightness, contrast, saturation = factors[:, :, None, None].unbind(1)  # (B, 1, 1) each
        mean = processor.mean.view(3, 1)
        std = processor.std.view(3, 1)
        luma = torch.tensor(LUMA)
        channels_first = stacked.permute(0, 3, 1, 2).contiguous()
        x = channels_first.float().flatten(2)  # (B, 3, H * W), 0..255
        mean_grey = (x.mean(2) @ luma)[:, None, None] / 255
        # Saturation, contrast, brightness and normalisation are linear in the pixel: one matrix, one offset.
        desaturate = saturation * torch.eye(3) + (1 - saturation) * luma
        matrix = brightness * contrast * desaturate / (255 * std)
        offset = (brightness * (1 - contrast) * mean_grey - mean) / std
        x = torch.baddbmm(offset, matrix, x)
        black = (0 - mean) / std
        white = (1 - mean) / std
        # Three times as fast as clamp_ with tensor bounds.
        torch.maximum(x, black, out=x)
        torch.minimum(x, white, out=x)
        return {"pixels": x.unflatten(2, stacked.shape[1:3])}


@dataclass(frozen=True)
class VideoAugment(ImageAugment):
    """A clip at a random position in its video, with the same image augmentation for all frames."""

    def vary(
        self,
        item: Any,
        text: str,
        processor: Any,
        rng: np.random.Generator,
        another: Another,
    ) -> tuple[tuple[Picture, ...], str]:
        """The frames of a random clip, each varied like a picture by `ImageAugment`."""
        frames = processor.load_clip(item, place=rng.random())
        seed = int(rng.integers(2**63))
        pictures: list[Picture] = []
        for frame in frames:
            frame_rng = np.random.default_rng(seed)  # every frame sees the same random numbers
            box = processor.area(*frame.size)
            if self.crops:
                box = self._random_box(box, frame.width, frame.height, frame_rng)
            pictures.append(self._varied(frame, box, text, processor, frame_rng))
        return tuple(pictures), text

    def collate(self, samples: list[tuple[Picture, ...]], processor: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """{"pixels": (B, T, 3, H, W)}."""
        frames = [frame for clip in samples for frame in clip]
        pixels = super().collate(frames, processor)["pixels"]
        return {"pixels": pixels.unflatten(0, (len(samples), -1))}


@dataclass(frozen=True)
class AudioAugment(Augment):
    """Circular time shift, mixing with another clip, noise, gain and trimming."""

    shift: bool = False
    """Roll the clip by a random time."""
    gain_db: Decibels = 0.0
    """Largest random gain, up or down, of the normalised clip."""
    noise: Probability = 0.0
    """Probability of white noise, 10 to 40 dB below the clip."""
    mix: Probability = 0.0
    """Probability that a second clip is mixed in; the caption becomes "A and B"."""
    trim: Probability = 0.0
    """Probability that silence at the clip's end is cut off: some data sets pad all clips to one length."""

    def load(self, item: Any, processor: Any) -> Tensor:
        """(N,) mono at the model's sampling rate, not normalised."""
        return processor.load(item)

    def vary(
        self,
        item: Tensor,
        text: str,
        processor: Any,
        rng: np.random.Generator,
        another: Another,
    ) -> tuple[Tensor, str]:
        """The augmented clip, normalised and cut to the model's limit as `decode` does, and its caption."""
        samples = self._trim_and_shift(item, rng)
        if rng.random() < self.mix:
            partner, partner_text = another()
            partner = self._trim_and_shift(partner, rng)
            samples = _mixed(samples, partner, rng)
            text = join_captions(text, partner_text)
        if rng.random() < self.noise:
            samples = _noisy(samples, rng)
        if processor.max_seconds is not None:
            samples = samples[: round(processor.max_seconds * processor.sample_rate)]
        gain = _amplitude(rng.uniform(-self.gain_db, self.gain_db))
        return processor.finish(samples) * gain, text

    def _trim_and_shift(self, samples: Tensor, rng: np.random.Generator) -> Tensor:
        """The clip, perhaps trimmed and shifted."""
        if self.trim and rng.random() < self.trim:
            loudness = samples.abs()
            audible = (loudness > SILENCE * loudness.max()).nonzero()
            if len(audible):
                samples = samples[: int(audible[-1]) + 1]
        if self.shift:
            samples = samples.roll(int(rng.integers(len(samples))))
        return samples


def join_captions(first: str, second: str) -> str:
    """The caption of two sounds at the same time."""
    parts = (first.rstrip(" ."), second.rstrip(" ."))
    return " and ".join(part for part in parts if part)


def _mixed(samples: Tensor, partner: Tensor, rng: np.random.Generator) -> Tensor:
    """A clip with another one, repeated to its length, at a similar loudness."""
    repeats = math.ceil(len(samples) / len(partner))
    partner = partner.repeat(repeats)[: len(samples)]
    level = _amplitude(rng.uniform(-MIX_DB, MIX_DB))
    gain = level * _loudness(samples) / max(_loudness(partner), 1e-6)
    return samples + partner * gain


def _noisy(samples: Tensor, rng: np.random.Generator) -> Tensor:
    """A clip with white noise."""
    level = _amplitude(-rng.uniform(*NOISE_DB)) * _loudness(samples)
    noise = rng.standard_normal(len(samples), dtype=np.float32)
    return samples + level * torch.from_numpy(noise)


def _amplitude(decibels: float) -> float:
    return 10 ** (decibels / 20)


def _loudness(samples: Tensor) -> float:
    return samples.square().mean().sqrt().item()


AUGMENTS: dict[str, type[Augment]] = {
    "image": ImageAugment,
    "audio": AudioAugment,
    "video": VideoAugment,
}
"""Classes of the options of ``data.augment`` by modality; `onepeace.config.build` makes an instance."""


def make_augments(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Augment]:
    """The augmentations of a recipe's ``data.augment``, by modality."""
    augments: dict[str, Augment] = {}
    for modality, fields in options.items():
        if modality not in AUGMENTS:
            raise UserError(f"data.augment has no {modality!r}; there are {', '.join(AUGMENTS)}")
        augments[modality] = build(AUGMENTS[modality], fields, f"data.augment.{modality}")
    return augments
