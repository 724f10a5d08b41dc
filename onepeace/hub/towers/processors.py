"""Processors of towers: files are opened as everywhere in the package, and prepared by the tower's own library."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from onepeace.hub.towers.libraries import Tower
from onepeace.processors.audio import AudioProcessor
from onepeace.processors.image import ImageProcessor
from onepeace.processors.pieces import SURROGATES
from onepeace.processors.processor import Processor
from onepeace.processors.text import TextReader

if TYPE_CHECKING:
    from PIL import Image

MAX_CHARS = 1 << 16
"""Characters of a text that the libraries see; they cut it to some hundred or thousand tokens themselves."""
CHARS_PER_TOKEN = 3
END = -1
"""Fills up the shorter texts of a batch."""


class TowerTexts(TextReader):
    """Converts strings and text files to their characters as numbers, (L,) int64: each tower has its own tokenizer."""

    def decode(self, item: object) -> Tensor:
        text = SURROGATES.sub("\ufffd", self.load(item))[:MAX_CHARS]
        return torch.tensor([ord(character) for character in text], dtype=torch.int64)

    def num_tokens(self, item: object) -> int:
        """Number of tokens, estimated: those of English have about four characters, and of few texts below three."""
        return math.ceil(len(self.load(item)) / CHARS_PER_TOKEN)

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """{"characters": (B, L) int64}, `END` after the end of a text."""
        return {"characters": torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=END)}


def texts_of(characters: Tensor) -> list[str]:
    """The texts of a batch of `TowerTexts`."""
    return ["".join(chr(code) for code in row if code != END) for row in characters.tolist()]


class TowerPictures(ImageProcessor):
    """Opens pictures upright, in RGB and in their own size, and prepares them by the library's own transform."""

    def __init__(self, tower: Tower) -> None:
        super().__init__(draft=False)  # a JPEG decoded in part is not what the library would see
        self.tower = tower

    def finish(self, image: "Image.Image", centering: float = 0.5) -> Tensor:
        return self.tower.read_picture(image)


class TowerSounds(AudioProcessor):
    """Opens sounds at the tower's rate, as they are, and prepares them by the library's own feature extractor."""

    cast_inputs: ClassVar[frozenset[str]] = frozenset({"features"})

    def __init__(self, tower: Tower) -> None:
        super().__init__(sample_rate=tower.sample_rate, max_seconds=tower.max_seconds)
        self.tower = tower

    def finish(self, samples: Tensor) -> Tensor:
        return self.tower.read_sound(samples)

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """{"features": (B, ...)}."""
        return {"features": torch.stack(samples)}

    def size(self, sample: Tensor) -> int:
        return 0


def processors_of(tower: Tower, modalities: Collection[str]) -> dict[str, Processor]:
    """The processors of these modalities of a tower."""
    processors: dict[str, Processor] = {}
    if "text" in modalities:
        processors["text"] = TowerTexts()
    if "image" in modalities:
        processors["image"] = TowerPictures(tower)
    if "audio" in modalities:
        processors["audio"] = TowerSounds(tower)
    return processors
