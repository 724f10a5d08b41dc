"""Options that every term of an objective has, and the parts of a recipe that they are checked against."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from onepeace.config import Config
from onepeace.config.limits import Range
from onepeace.config.reader import nearest
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.masking import MaskRates
from onepeace.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TermOptions:
    """Options of an entry of a recipe's ``objective``, to which terms add their own."""

    term: str
    """Key of TERMS."""
    name: str = ""
    """Name in the log and in messages; default: from the modalities or sources, as "denoising/image+text"."""
    on: tuple[str, ...] = ()
    """Modalities; empty = all of the batch."""
    sources: tuple[str, ...] = ()
    """Names of the sources to learn from; empty = all that have the modalities."""
    weight: Annotated[float, Range("a finite number", math.isfinite)] = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            subject = "+".join(self.on or self.sources)
            object.__setattr__(self, "name", f"{self.term}/{subject}" if subject else self.term)
        if "." in self.name:
            raise UserError(f"name {self.name!r} contains a dot; use another character")

    @property
    def where(self) -> str:
        """Path in the recipe, for messages."""
        return f"objective.{self.name}"

    def reads(self, source: str, present: Sequence[str]) -> bool:
        """Whether the term is computed for batches of a source with this name and these modalities."""
        if self.sources and source not in self.sources:
            return False
        return set(self.on) <= set(present)

    def one_modality(self) -> str:
        """The only modality of ``on``; UserError if it lists none or several."""
        if len(self.on) != 1:
            raise UserError(f"{self.where}.on is {list(self.on)}; give one modality, such as on: [image]")
        return self.on[0]


@dataclass(frozen=True)
class TermContext:
    """What a term's options are checked against."""

    config: Config
    """Configuration of the model and its processors."""
    data: DataConfig
    sources: Sequence[SourceConfig]
    """Sources of ``data`` that feed the term, at least one."""
    mask: Mapping[str, MaskRates]
    """Rates of the masked passes by modality."""
    start_folder: Path | None
    """Folder of the model that training starts from; None = random weights."""


def sources_of(options: TermOptions, data: DataConfig) -> list[SourceConfig]:
    """Sources that a term learns from.

    Raises:
        UserError: there is no such source, or the term names one that does not exist.
    """
    modalities = data.modalities
    for name in options.sources:
        if name not in modalities:
            raise UserError(f"{options.where}.sources: no source is named {name!r}; {nearest(name, modalities)}")
    present = dict.fromkeys(key for keys in modalities.values() for key in keys)
    for key in options.on:
        if key not in present:
            raise UserError(f"{options.where}.on: no source has {key!r}; {nearest(key, present)}")
    sources = [source for source in data.train if options.reads(source.name, source.modalities)]
    if not sources:
        raise UserError(f"no source of data.train can feed {options.where}; there are {', '.join(modalities)}")
    return sources
