"""Converts pictures of any format to (3, H, W) float32, normalised.

Opening (`load`) and scaling (`finish`) are separate steps, so that training can crop and flip in between. What part of
a picture the model sees, `ImageProcessor.area` alone says: augmentation, heat maps, targets and exports ask it.
"""

import io
import math
import threading
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from onepeace.errors import UserError, one_line
from onepeace.files import source
from onepeace.files.picture import looks_like_picture, open_picture, orientation
from onepeace.processors.endings import ENDINGS
from onepeace.processors.processor import Processor

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


class Resize(NamedTuple):
    """A way from the sides of a picture to those of the model's input."""

    rule: str
    """In words, for programs that do it themselves."""
    crop_mode: str
    """Its name in timm's configurations."""


RESIZE = {
    "squash": Resize("scaled to size [height, width], each side on its own", "squash"),
    "crop": Resize("the largest central part of the ratio of size [height, width], scaled to it", "center"),
    "pad": Resize("scaled to fit into size [height, width], with equal black margins", "border"),
}
UPRIGHT_BY_ORIENTATION = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""Operation that undoes each EXIF orientation (name in PIL.Image.Transpose)."""
CHANNELS = (1, 3, 4)
"""Numbers of channels: grey, colours, colours and transparency."""
_LOCKS = [threading.Lock() for _ in range(61)]
"""Locks for opened pictures, which two threads cannot read at once. A picture's lock is chosen by its address, which is
a multiple of 16 or so; the number is prime, so that pictures rarely share one."""


class ImageProcessor(Processor):
    """Converts paths, http(s) URLs, bytes, PIL images, uint8 arrays (H, W, 3) and tensors (3, H, W) to the pixels
    that a model reads. The formats of files are those of files/picture.py.

    Args:
        size: side, or [height, width].
        mean, std: of each channel, for pixels from 0 to 1.
        resize: "squash" scales both sides independently, as the released models expect; "crop" keeps the aspect ratio
            and cuts out the middle; "pad" keeps it too, and adds black margins (open_clip's "longest"). All use
            Pillow's antialiased bicubic filter.
        draft: let the JPEG decoder shrink pictures to at least twice the target size, which is two to four times
            faster; pixels differ by about one grey level from the full decode.
    """

    key: ClassVar[str] = "image"
    suffixes: ClassVar[frozenset[str]] = ENDINGS["image"]
    cast_inputs: ClassVar[frozenset[str]] = frozenset({"pixels"})

    def __init__(
        self,
        *,
        size: int | Sequence[int] = 256,
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        resize: str = "squash",
        draft: bool = True,
    ) -> None:
        if resize not in RESIZE:
            raise UserError(f"processors.{self.key}.resize is {resize!r}; known: {', '.join(map(repr, RESIZE))}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(
                f"processors.{self.key}.mean and std need three numbers each, std above 0; got {mean}, {std}"
            )
        self.height, self.width = self._sides(size)
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)
        self.resize = resize
        self.draft = draft

    def _sides(self, size: int | Sequence[int]) -> list[int]:
        """Height and width; UserError if they are not positive integers."""
        sides = [size, size] if isinstance(size, int) else list(size)
        are_valid = all(isinstance(side, int) and side > 0 for side in sides)
        if len(sides) != 2 or not are_valid:
            raise UserError(f"processors.{self.key}.size is {size}; it must be one positive number or [height, width]")
        return sides

    @property
    def settings(self) -> dict[str, Any]:
        """See `Processor.settings`. `size` is normalised to [height, width], `mean` and `std` to lists."""
        return {
            **super().settings,
            "size": [self.height, self.width],
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    @classmethod
    def matches(cls, item: object) -> bool:
        if isinstance(item, (bytes, bytearray, memoryview)):
            return looks_like_picture(io.BytesIO(item))
        if isinstance(item, Tensor):
            return item.ndim == 3 and item.shape[0] in CHANNELS
        if isinstance(item, np.ndarray):
            is_grey = item.ndim == 2
            has_channels = item.ndim == 3 and item.shape[-1] in CHANNELS
            return item.dtype == np.uint8 and (is_grey or has_channels)
        return _is_pil(item)

    def decode(self, item: object) -> Tensor:
        """(3, height, width) float32 of one picture; `UserError` names it if it cannot be read."""
        return self.finish(self.load(item))

    def load(self, item: object, kept: float = 1.0) -> "Image.Image":
        """One picture as an upright RGB image of its own size (a large JPEG may be smaller, see `draft`).

        Args:
            kept: share of its sides that is cut out afterwards; this part has at least twice the model's size.
        """
        name = source.describe(item)
        if isinstance(item, Tensor):
            return _from_tensor(item, name)
        if isinstance(item, np.ndarray):
            return _from_array(item, name)
        if _is_pil(item):
            with _LOCKS[id(item) % len(_LOCKS)]:
                return self._to_rgb(item, name)
        data = source.read_bytes(item)
        if not data:
            raise UserError("the file is empty (0 bytes)", where=name)
        with open_picture(io.BytesIO(data), name, source.suffix(item)) as image:
            if self.draft and image.format in ("JPEG", "MPO"):
                # A square, since the orientation is not known yet; Pillow never goes below the requested size.
                side = math.ceil(2 * max(self.height, self.width) / kept)
                image.draft(None, (side, side))
            return self._to_rgb(image, name)

    def size_in_pixels(self, item: object) -> tuple[int, int]:
        """Width and height of one picture, upright; only the header of a file is read."""
        name = source.describe(item)
        if _is_pil(item) or isinstance(item, (Tensor, np.ndarray)):
            return self.load(item).size
        data = io.BytesIO(source.read_bytes(item))
        with open_picture(data, name, source.suffix(item)) as image:
            width, height = image.size
            if orientation(image) >= 5:  # it lies on its side
                return height, width
            return width, height

    def area(self, width: int, height: int, centering: float = 0.5) -> Box:
        """The part of a picture of this size that becomes the model's input; it may reach beyond the picture.

        Args:
            centering: position of the part, from 0 (left or top) to 1 (right or bottom).
        """
        seen_width: float = width
        seen_height: float = height
        if self.resize != "squash":
            choose = min if self.resize == "crop" else max
            ratio = self.width / self.height
            seen_width = choose(width, ratio * height)
            seen_height = choose(height, width / ratio)
        left = (width - seen_width) * centering
        top = (height - seen_height) * centering
        return left, top, left + seen_width, top + seen_height

    @property
    def shows_whole_pictures(self) -> bool:
        """Whether the input is a picture of any shape, so that places relative to one are places on the other."""
        return all(self.area(*size) == (0, 0, *size) for size in ((1, 1000), (1000, 1)))

    def resized(self, image: "Image.Image", area: Box) -> "Image.Image":
        """A part of an RGB image in the model's size, black beyond the edges of the image."""
        from PIL import Image

        left, top, right, bottom = area
        inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if inside == area:
            return image.resize((self.width, self.height), Image.Resampling.BICUBIC, box=area)
        across = self.width / (right - left)
        down = self.height / (bottom - top)
        x, width = _whole_pixels((inside[0] - left) * across, (inside[2] - left) * across)
        y, height = _whole_pixels((inside[1] - top) * down, (inside[3] - top) * down)
        canvas = Image.new("RGB", (self.width, self.height))
        canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC, box=inside), (x, y))
        return canvas

    def enlarged(self, scale: int) -> "Self":
        """This processor for an input of `scale` times the size."""
        larger = copy(self)
        larger.height *= scale
        larger.width *= scale
        return larger

    def finish(self, image: "Image.Image", centering: float = 0.5) -> Tensor:
        """(3, height, width) float32 of an RGB image: scaled, then (x / 255 - mean) / std per channel.

        Args:
            centering: see `area`.
        """
        image = self.resized(image, self.area(*image.size, centering))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)

    def example(self, share: float, generator: torch.Generator) -> Tensor:
        return torch.randn(3, self.height, self.width, generator=generator)

    @property
    def rules(self) -> str:
        return (
            f"Upright RGB, on white where it is transparent; {RESIZE[self.resize].rule}, by Pillow's bicubic filter. "
            "Then (x / 255 - mean) / std, channels first."
        )

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """{"pixels": (B, 3, H, W)}."""
        return {"pixels": torch.stack(samples)}

    def size(self, sample: Tensor) -> int:
        """0: all decoded pictures are of one size."""
        return 0

    def _to_rgb(self, image: "Image.Image", name: str) -> "Image.Image":
        """The picture upright, with 8 bits, on white where it is transparent; also checks that it is complete."""
        from PIL import Image

        try:
            image.load()
            transpose = UPRIGHT_BY_ORIENTATION.get(orientation(image))
            if image.mode.startswith("I") or image.mode == "F":
                image = Image.fromarray(_to_eight_bits(np.asarray(image), name))
            elif image.has_transparency_data:
                image = _on_white(image.convert("RGBA"))
            image = image.convert("RGB")
            if transpose is not None:
                image = image.transpose(Image.Transpose[transpose])
            return image
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise many types for damaged files
            raise UserError(f"the picture cannot be decoded ({one_line(error)})", where=name) from error


def _whole_pixels(start: float, stop: float) -> tuple[int, int]:
    """First pixel and number of pixels, at least one, that are nearest to an interval, in its middle."""
    count = max(1, round(stop - start))
    return math.floor((start + stop - count) / 2 + 1e-6), count


def _on_white(image: "Image.Image") -> "Image.Image":
    """A picture with transparency in front of white."""
    from PIL import Image

    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image)


def _is_pil(item: object) -> "TypeGuard[Image.Image]":
    from PIL import Image

    return isinstance(item, Image.Image)


def _to_eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """(H, W) uint8 from 16-bit or 32-bit grey, or floats.

    The full range is 0..65535, or 0..1 for floats; if values are outside of it, that of the picture is used.
    """
    low = float(values.min())
    high = float(values.max())
    if not np.isfinite([low, high]).all():
        raise UserError("the picture holds NaN or infinite values", where=name)
    white = 1.0 if values.dtype.kind == "f" else 65535.0
    values = values.astype(np.float64)
    if low < 0 or high > white:
        values = values - low
        white = high - low or 1.0
    return np.round(values * (255 / white)).astype(np.uint8)


def _from_array(array: np.ndarray, name: str) -> "Image.Image":
    from PIL import Image

    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    is_grey = array.ndim == 2
    has_colours = array.ndim == 3 and array.shape[-1] in (3, 4)
    if array.dtype != np.uint8 or not (is_grey or has_colours):
        raise UserError("a picture as an array is uint8 and (H, W, 3), (H, W, 4) or (H, W)", where=name)
    if array.size == 0:
        raise UserError("no pixels", where=name)
    image = Image.fromarray(np.ascontiguousarray(array))
    if image.mode == "RGBA":
        image = _on_white(image)
    return image.convert("RGB")


def _from_tensor(tensor: Tensor, name: str) -> "Image.Image":
    if tensor.ndim != 3 or tensor.shape[0] not in CHANNELS:
        raise UserError("a picture as a tensor is (3, H, W), uint8 or floats between 0 and 1", where=name)
    tensor = tensor.detach().cpu()
    if tensor.numel() == 0:
        raise UserError("no pixels", where=name)
    if tensor.is_floating_point():
        low = tensor.min().item()
        high = tensor.max().item()
        if not (low >= 0 and high <= 1):  # written so that NaN is refused too
            raise UserError(f"floats must lie between 0 and 1, these reach from {low:.4g} to {high:.4g}", where=name)
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise UserError("a picture as a tensor is uint8 or floats between 0 and 1", where=name)
    return _from_array(tensor.permute(1, 2, 0).numpy(), name)
