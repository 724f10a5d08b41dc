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
from onepeace.config.limits import Count, Probability, Range, Share
from onepeace.errors import UserError

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
BICUBIC = 3
"""PIL.Image.Resampling.BICUBIC, without importing PIL."""

Magnitude = Annotated[int, Range("from 0 to 30", lambda x: 0 <= x <= 30)]
"""Strength of RandAugment's operations."""
Another = Callable[[], tuple[Any, str]]
"""Draws another training item of the modality: its decoded media (from ``load``) and its caption."""


class Augment:
    """The three steps from an encoded item to the model's input; this base class changes nothing."""

    def load(self, item: Any, processor: Any) -> Any:
        """The item, decoded."""
        return processor.decode(item)

    def vary(self, item: Any, text: str, processor: Any, rng: np.random.Generator, another: Another) -> tuple[Any, str]:
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
            raise UserError(f"crop_scale {list(self.crop_scale)} should be two shares above 0, as [0.5, 1.0]")

    @property
    def moves_pixels(self) -> bool:
        """Whether boxes and masks would no longer fit the augmented picture."""
        return self.flip or self.rand_augment is not None or self.crop_scale != (1.0, 1.0)

    def load(self, item: Any, processor: Any) -> Any:
        """The picture as the processor opens it: upright RGB, in its own size."""
        return processor.load(item)

    def vary(
        self, item: Any, text: str, processor: Any, rng: np.random.Generator, another: Another
    ) -> tuple[Picture, str]:
        """A random crop in the model's size, randomly changed and mirrored, and the colour factors for `collate`."""
        (width, height), box = item.size, (0.0, 0.0, *item.size)
        if self.crop_scale != (1.0, 1.0):
            area = width * height * rng.uniform(self.crop_scale[0], self.crop_scale[1])
            ratio = math.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
            w, h = min(math.sqrt(area * ratio), width), min(math.sqrt(area / ratio), height)
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            box = (left, top, left + w, top + h)
        picture = item.resize((processor.width, processor.height), BICUBIC, box=box)
        if self.rand_augment is not None:
            from torchvision.transforms import v2

            # torchvision uses torch's generator, which is seeded from the item's and restored afterwards.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**31)))
                picture = v2.RandAugment(*self.rand_augment)(picture)
        if self.blur and rng.random() < self.blur:
            from PIL import ImageFilter

            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
        pixels = np.asarray(picture)
        if self.flip and rng.random() < 0.5 and not SPATIAL.search(text):
            pixels = pixels[:, ::-1]
        return Picture(pixels, rng.uniform(1 - self.color, 1 + self.color, 3)), text

    def collate(self, samples: list[Picture], processor: Any) -> dict[str, Tensor]:
        """Colour and normalisation of the whole batch in one affine map per picture: {"pixels": (B, 3, H, W)}."""
        stacked = torch.from_numpy(np.stack([sample.pixels for sample in samples]))
        x = stacked.permute(0, 3, 1, 2).contiguous().float().flatten(2)  # (B, 3, H * W), 0..255
        mean, std = processor.mean.view(3, 1), processor.std.view(3, 1)
        luma = torch.tensor(LUMA)
        factors = torch.from_numpy(np.stack([sample.factors for sample in samples])).float()
        brightness, contrast, saturation = factors[:, :, None, None].unbind(1)
        grey = (x.mean(2) @ luma)[:, None, None] / 255
        # Saturation, contrast, brightness and normalisation are linear in the pixel: one matrix, one offset.
        mix = brightness * contrast * (saturation * torch.eye(3) + (1 - saturation) * luma)
        offset = (brightness * (1 - contrast) * grey - mean) / std
        x = torch.baddbmm(offset, mix / (255 * std), x)
        # Three times as fast as clamp_ with tensor bounds.
        torch.minimum(torch.maximum(x, (0 - mean) / std, out=x), (1 - mean) / std, out=x)
        return {"pixels": x.unflatten(2, stacked.shape[1:3])}


@dataclass(frozen=True)
class VideoAugment(ImageAugment):
    """A clip at a random position in its video, with the same image augmentation for all frames."""

    def load(self, item: Any, processor: Any) -> Any:
        """The encoded video: `vary` decodes the clip that it draws."""
        return item

    def vary(  # type: ignore[override]
        self, item: Any, text: str, processor: Any, rng: np.random.Generator, another: Another
    ) -> tuple[tuple[Picture, ...], str]:
        """The frames of a random clip, each varied like a picture by `ImageAugment`."""
        vary, frames = super().vary, processor.load_clip(item, place=rng.random())
        seed = int(rng.integers(2**63))  # every frame sees the same random numbers
        return tuple(vary(frame, text, processor, np.random.default_rng(seed), another)[0] for frame in frames), text

    def collate(self, samples: list[tuple[Picture, ...]], processor: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """{"pixels": (B, T, 3, H, W)}."""
        frames = super().collate([frame for clip in samples for frame in clip], processor)["pixels"]
        return {"pixels": frames.unflatten(0, (len(samples), -1))}


@dataclass(frozen=True)
class AudioAugment(Augment):
    """Circular time shift, mixing with another clip, noise, gain and trimming."""

    shift: bool = False
    """Roll the clip by a random time."""
    gain_db: float = 0.0
    """Largest random gain, up or down, of the normalised clip."""
    noise: Probability = 0.0
    """Probability of white noise, 10 to 40 dB below the clip."""
    mix: Probability = 0.0
    """Probability that a second clip is mixed in; the caption becomes "A and B"."""
    trim: Probability = 0.0
    """Probability that silence at the clip's end is cut off: some data sets pad all clips to one length."""

    def load(self, item: Any, processor: Any) -> Tensor:
        """(N,) float16 mono at the model's sampling rate, not normalised; float16 halves the memory of the cache."""
        return processor.load(item).half()

    def vary(
        self, item: Tensor, text: str, processor: Any, rng: np.random.Generator, another: Another
    ) -> tuple[Tensor, str]:
        """The augmented clip, normalised and cut to the model's limit as `decode` does, and its caption."""
        samples = self._heard(item, rng)
        if rng.random() < self.mix:
            other, other_text = another()
            other = self._heard(other, rng)
            other = other.repeat(math.ceil(len(samples) / len(other)))[: len(samples)]
            level = 10 ** (rng.uniform(-MIX_DB, MIX_DB) / 20)
            samples = samples + other * (level * _loudness(samples) / max(_loudness(other), 1e-6))
            text = join_captions(text, other_text)
        if rng.random() < self.noise:
            level = 10 ** (-rng.uniform(*NOISE_DB) / 20) * _loudness(samples)
            samples = samples + level * torch.from_numpy(rng.standard_normal(len(samples), dtype=np.float32))
        if processor.max_seconds is not None:
            samples = samples[: round(processor.max_seconds * processor.sample_rate)]
        gain = 10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20)
        return processor.finish(samples) * gain, text

    def _heard(self, item: Tensor, rng: np.random.Generator) -> Tensor:
        """The clip, perhaps trimmed and shifted."""
        samples = item.float()
        if self.trim and rng.random() < self.trim:
            heard = (samples.abs() > SILENCE * samples.abs().max()).nonzero()
            samples = samples[: int(heard[-1]) + 1] if len(heard) else samples
        return samples.roll(int(rng.integers(len(samples)))) if self.shift else samples


def join_captions(one: str, other: str) -> str:
    """The caption of two sounds at the same time."""
    return " and ".join(part for part in (one.rstrip(" ."), other.rstrip(" .")) if part)


def _loudness(samples: Tensor) -> float:
    return samples.square().mean().sqrt().item()


AUGMENTS: dict[str, type[Augment]] = {"image": ImageAugment, "audio": AudioAugment, "video": VideoAugment}
"""Classes of the options of ``data.augment`` by modality; `onepeace.config.build` makes an instance."""


def make_augments(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Augment]:
    """The augmentations of a recipe's ``data.augment``, by modality."""
    if unknown := [modality for modality in options if modality not in AUGMENTS]:
        raise UserError(f"data.augment has no {unknown[0]!r}; there are {', '.join(AUGMENTS)}")
    return {m: build(AUGMENTS[m], given, f"data.augment.{m}") for m, given in options.items()}
