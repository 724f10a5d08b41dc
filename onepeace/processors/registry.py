"""Registry of the processors, and detection of an item's modality."""

import os
from collections.abc import Collection, Mapping

from onepeace.errors import UserError
from onepeace.extensions import HINT
from onepeace.files.source import describe, suffix
from onepeace.processors.audio import AudioProcessor
from onepeace.processors.image import ImageProcessor
from onepeace.processors.processor import Processor
from onepeace.processors.text import TextProcessor
from onepeace.processors.video import VideoProcessor

# The order is the order of guessing: any string can be a text, so text comes last.
PROCESSORS: dict[str, type[Processor]] = {
    "image": ImageProcessor,
    "audio": AudioProcessor,
    "video": VideoProcessor,
    "text": TextProcessor,
}


def processor_class(key: str) -> type[Processor]:
    """The processor of a modality; UserError if there is none."""
    if key not in PROCESSORS:
        raise UserError(f"no processor of {key!r}; known: {', '.join(PROCESSORS)}; {HINT}")
    return PROCESSORS[key]


def guessed() -> dict[str, type[Processor]]:
    """The processors whose modality may be guessed for files and values."""
    return {key: processor for key, processor in PROCESSORS.items() if processor.guessed}


def guess(item: object, modalities: Collection[str]) -> str:
    """The modality of a path or value, one of `modalities`, by type, file ending or first bytes.

    A string is a picture or sound if it has such a file ending, else a text. `UserError` for a URL without a known
    ending, a value that matches no modality, and a modality that is not in `modalities`. A video counts as its sound,
    unless the model reads frames and no sound.
    """
    modality = _by_ending(item) or _first_match(item, guessed())
    if modality not in modalities:
        modality = _first_match(item, _not_guessed(modalities)) or modality
    if modality is None:
        raise UserError(
            f"cannot tell whether this is {' or '.join(guessed())}; say so by calling the function of that modality",
            where=describe(item),
        )
    if modality not in modalities:
        raise UserError(f"looks like {modality}; this model reads {', '.join(modalities)} only", where=describe(item))
    return modality


def _by_ending(item: object) -> str | None:
    """The modality of a path by its ending, which decides before its bytes do: a text may begin with "ID3"."""
    if not isinstance(item, os.PathLike):
        return None
    ending = suffix(item)
    for modality, processor in guessed().items():
        if ending in processor.suffixes:
            return modality
    return None


def _not_guessed(modalities: Collection[str]) -> dict[str, type[Processor]]:
    """Those of these modalities that are not guessed unless a model reads nothing else."""
    return {key: processor for key, processor in PROCESSORS.items() if key in modalities and not processor.guessed}


def _first_match(item: object, processors: Mapping[str, type[Processor]]) -> str | None:
    """The first modality whose processor takes an item for its own."""
    for modality, processor in processors.items():
        if processor.matches(item):
            return modality
    return None


def sniff(path: os.PathLike[str]) -> str | None:
    """The modality of a file by its first bytes, regardless of its ending; None if unknown."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return None
    return _first_match(head, guessed())
