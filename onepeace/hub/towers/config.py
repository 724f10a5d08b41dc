"""Names and configuration of models of other libraries, which stand side by side as towers of one space.

Each tower has a block of the dimensions of the space: a picture or sound fills the block of the tower that reads it,
and a text fills the blocks of all towers that read texts. So a text is comparable with everything, and a picture with a
sound only if one tower reads both. No torch here.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from onepeace.config import Options
from onepeace.config.reader import Count
from onepeace.errors import UserError

LIBRARIES = ("open_clip", "clap", "transformers", "sentence-transformers")
EXAMPLES = (
    "open_clip:ViT-B-16-SigLIP2/webli, transformers:google/siglip2-base-patch16-224, clap:laion/clap-htsat-unfused"
)
LOCAL = "local-dir:"
"""Prefix of a folder in open_clip's own names."""
ORDER = ("text", "image", "audio")


@dataclass(frozen=True)
class TowerConfig:
    """One model of another library, as it was when its folder was made."""

    name: str
    """Name with its library, such as "open_clip:ViT-B-16/openai"."""
    modalities: tuple[str, ...]
    """The modalities in use, perhaps not all that it reads; without any, its block of dimensions is zero."""
    embed_dim: Count
    num_parameters: Count
    digest: str
    """Digest of its weights."""


@dataclass(frozen=True)
class TowersConfig:
    """The section `model:` in config.yaml; the weights stay where the libraries keep them."""

    towers: tuple[TowerConfig, ...]

    @property
    def embed_dim(self) -> int:
        return sum(tower.embed_dim for tower in self.towers)

    @property
    def num_parameters(self) -> int:
        return sum(tower.num_parameters for tower in self.towers)

    @property
    def projections(self) -> tuple[str, ...]:
        """The modalities, which all have vectors."""
        return tuple(key for key in ORDER if any(key in tower.modalities for tower in self.towers))

    @property
    def adapters(self) -> dict[str, Options]:
        """The modalities; their options are in the libraries' own files."""
        return {key: {} for key in self.projections}

    @property
    def heads(self) -> dict[str, Options]:
        return {}

    def blocks(self) -> list[slice]:
        """The dimensions of each tower."""
        slices = []
        start = 0
        for tower in self.towers:
            slices.append(slice(start, start + tower.embed_dim))
            start += tower.embed_dim
        return slices


def check_combination(config: TowersConfig) -> None:
    """Raise UserError if two towers read pictures, or two read sounds."""
    for modality in ("image", "audio"):
        readers = [tower.name for tower in config.towers if modality in tower.modalities]
        if len(readers) > 1:
            raise UserError(f"{' and '.join(readers)} both read {modality}; leave one of them out")


def keep_modalities(config: TowersConfig, modalities: Collection[str]) -> TowersConfig:
    """Keep these modalities; the space stays the same."""
    towers = []
    for tower in config.towers:
        kept = tuple(key for key in tower.modalities if key in modalities)
        towers.append(replace(tower, modalities=kept))
    return TowersConfig(tuple(towers))


def names_towers(name: str) -> bool:
    """Whether a name is that of a model of another library, or of several joined by " + "."""
    return any(part.partition(":")[0] in LIBRARIES for part in _parts(name) if ":" in part)


def tower_names(name: str) -> list[str]:
    """The names of the towers in a name such as "open_clip:ViT-B-16/openai + clap:laion/clap-htsat-unfused".

    Folders are made absolute, so that the names hold from any working folder.

    Raises:
        UserError: one of them is of no known library.
    """
    names = []
    for part in _parts(name):
        library, _, rest = part.partition(":")
        if library not in LIBRARIES or not rest:
            raise UserError(f"models that can be combined are {EXAMPLES} and sentence-transformers:NAME", where=part)
        names.append(f"{library}:{_with_whole_path(library, rest)}")
    return names


def public_name(name: str) -> str:
    """The name of a model without the folders that it lies in."""
    parts = []
    for part in _parts(name):
        library, _, rest = part.rpartition(":")
        parts.append(f"{library}:{os.path.basename(rest)}" if os.path.isabs(rest) else part)
    return " + ".join(parts)


def _parts(name: str) -> list[str]:
    return re.split(r"\s+\+\s+", name.strip())


def _with_whole_path(library: str, name: str) -> str:
    """The name of a model without its library; if it is a folder, with the folder's absolute path."""
    prefix = LOCAL if library == "open_clip" else ""
    folder = Path(name.removeprefix(prefix)).expanduser()
    if name.startswith(prefix) and folder.is_dir():
        return prefix + os.path.abspath(folder)
    return name
