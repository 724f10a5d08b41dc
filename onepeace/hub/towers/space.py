"""Towers as one module: their spaces side by side, each vector with zeros in the blocks of the others."""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onepeace.device import choose_dtype, count_parameters, digest_of
from onepeace.errors import UserError
from onepeace.hub.towers.config import TowerConfig, TowersConfig
from onepeace.hub.towers.libraries import Tower, open_tower
from onepeace.model import INITIAL_SCALE
from onepeace.model.interface import Inputs
from onepeace.processors.audio import AudioProcessor
from onepeace.processors.image import ImageProcessor
from onepeace.processors.processor import Processor
from onepeace.processors.text import TextReader
from onepeace.processors.tokenizer import SURROGATES

if TYPE_CHECKING:
    from PIL import Image


class Towers(nn.Module):
    """Maps each modality to unit vectors in the sum of the towers' spaces (`onepeace.model.Embeds`).

    A text has a unit vector in each of n blocks, divided by sqrt(n). Its cosine with a picture is therefore that of
    the picture's tower divided by sqrt(n), for every picture alike, and its cosine with a text is the mean over the
    towers.

    Args:
        config: the towers and their sizes.
        towers: those that read something, by their number in `config`.
    """

    def __init__(self, config: TowersConfig, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.towers = nn.ModuleDict(towers)

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    def logit_scale_of(self, modality: str) -> float:
        """Scale from the cosines between texts and items of a modality to the logits of its tower; CLIP's initial
        value if that has none."""
        scales = [tower.logit_scale or INITIAL_SCALE for tower, _ in self._readers(modality)]
        if modality == "text":
            return sum(scales) / len(scales)
        num_texts = sum("text" in tower.modalities for tower in self.config.towers)
        return scales[0] * num_texts**0.5

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """(B, E) float32 unit vectors of each given modality."""
        vectors = {}
        for modality, batch in inputs.items():
            (values,) = batch.values()
            vectors[modality] = self.embed(modality, texts_of(values) if modality == "text" else values)
        return vectors

    def embed(self, modality: str, items: list[str] | Tensor) -> Tensor:
        """(B, E) float32 unit vectors of texts, or of what the processor of another modality makes, stacked."""
        device = next(self.parameters()).device
        vectors = torch.zeros(len(items), self.embed_dim, device=device)
        for tower, block in self._readers(modality):
            vectors[:, block] = F.normalize(tower.embed(modality, items).float(), dim=1)
        return F.normalize(vectors, dim=1)

    def _readers(self, modality: str) -> Iterator[tuple[Tower, slice]]:
        """The towers that read a modality, and their blocks."""
        blocks = self.config.blocks()
        for number, tower in self.towers.items():
            if modality in self.config.towers[int(number)].modalities:
                yield cast(Tower, tower), blocks[int(number)]


def describe_tower(name: str, tower: Tower) -> TowerConfig:
    """Configuration of a tower that has just been loaded."""
    with torch.inference_mode():
        embed_dim = tower.embed("text", ["a"]).shape[1]
    return TowerConfig(
        name=name,
        modalities=tower.modalities,
        embed_dim=embed_dim,
        num_parameters=count_parameters(tower),
        digest=digest_of(tower),
    )


def load_towers(
    config: TowersConfig, folder: Path, device: torch.device, dtype: str | torch.dtype
) -> tuple[Towers, dict[str, Processor]]:
    """Load the towers of a model folder, in evaluation mode, and their processors.

    Raises:
        UserError: a tower cannot be loaded, or its weights are no longer those of the folder.
    """
    towers = {}
    processors: dict[str, Processor] = {}
    for number, described in enumerate(config.towers):
        if not described.modalities:
            continue
        tower = open_tower(described.name)
        if digest_of(tower) != described.digest:
            raise UserError(
                f"its weights have changed since its folder was made; to use the new ones delete "
                f"{folder}, and build the indexes made with the old ones again",
                where=described.name,
            )
        towers[str(number)] = tower
        processors |= processors_of(tower, described.modalities)
    module = Towers(config, towers)
    module.to(device=device, dtype=choose_dtype(dtype, device, config.num_parameters))
    module.eval()
    if "text" in processors:
        with torch.inference_mode():
            module.embed("text", ["a"])  # sets how the tokenizers pad, which two threads must not do at once
    return module, {key: processors[key] for key in config.projections}


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
