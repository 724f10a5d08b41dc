"""Towers as one module: their spaces side by side, each vector with zeros in the blocks of the others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onepeace.device import choose_dtype
from onepeace.errors import UserError
from onepeace.hub.digest import digest
from onepeace.hub.towers.config import TowerConfig, TowersConfig
from onepeace.hub.towers.libraries import Tower, open_tower
from onepeace.hub.towers.processors import processors_of, texts_of
from onepeace.model import INITIAL_SCALE
from onepeace.model.interface import Inputs
from onepeace.processors.processor import Processor


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
        return {modality: self._embed(modality, batch) for modality, batch in inputs.items()}

    def _embed(self, modality: str, batch: dict[str, Tensor]) -> Tensor:
        (values,) = batch.values()
        vectors = torch.zeros(len(values), self.embed_dim, device=values.device)
        for tower, block in self._readers(modality):
            vectors[:, block] = F.normalize(_vectors_of(tower, modality, values).float(), dim=1)
        return F.normalize(vectors, dim=1)

    def _readers(self, modality: str) -> Iterator[tuple[Tower, slice]]:
        """The towers that read a modality, and their blocks."""
        blocks = self.config.blocks()
        for number, tower in self.towers.items():
            if modality in self.config.towers[int(number)].modalities:
                yield cast(Tower, tower), blocks[int(number)]


def _vectors_of(tower: Tower, modality: str, values: Tensor) -> Tensor:
    """(B, E) vectors of a tower."""
    if modality == "text":
        return tower.embed_texts(texts_of(values))
    if modality == "image":
        return tower.embed_pictures(values)
    return tower.embed_sounds(values)


def describe(name: str, tower: Tower) -> TowerConfig:
    """Configuration of a tower that has just been loaded."""
    with torch.inference_mode():
        embed_dim = tower.embed_texts(["a"]).shape[1]
    return TowerConfig(
        name=name,
        modalities=tower.modalities,
        embed_dim=embed_dim,
        num_parameters=sum(parameter.numel() for parameter in tower.parameters()),
        digest=digest(tower, {}),
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
        if digest(tower, {}) != described.digest:
            raise UserError(
                f"{described.name}: its weights have changed since its folder was made; to use the new ones delete "
                f"{folder}, and build the indexes made with the old ones again"
            )
        if "text" in described.modalities:
            tower.embed_texts(["a"])  # sets how the tokenizer pads, which two threads must not do at once
        towers[str(number)] = tower
        processors |= processors_of(tower, described.modalities)
    module = Towers(config, towers)
    module.to(device=device, dtype=choose_dtype(dtype, device, config.num_parameters))
    return module.eval(), {key: processors[key] for key in config.projections}
