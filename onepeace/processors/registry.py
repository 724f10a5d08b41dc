"""Registry of the processors, and detection of an item's modality."""

import os
from collections.abc import Collection, Mapping

from onepeace.errors import UserError
from onepeace.extensions import HINT
from onepeace.files.source import describe, local_path, suffix
from onepeace.processors.audio import AudioProcessor
from onepeace.processors.image import ImageProcessor
from onepeace.processors.processor import Processor
from onepeace.processors.text import TextProcessor
from onepeace.processors.video import VideoProcessor

HEAD = 1 << 16
"""Bytes of a file that tell its modality."""
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
    modality = modality_of(item, guessed())
    if modality not in modalities:
        # Those that are not guessed unless a model reads nothing else.
        others = {key: entry for key, entry in PROCESSORS.items() if key in modalities and not entry.guessed}
        modality = modality_of(item, others) or modality
    if modality is None:
        raise UserError(
            f"cannot tell whether this is {' or '.join(guessed())}; say so by calling the function of that modality",
            where=describe(item),
        )
    if modality not in modalities:
        raise UserError(f"looks like {modality}; this model reads {', '.join(modalities)} only", where=describe(item))
    return modality


def modality_of(item: object, processors: Mapping[str, type[Processor] | Processor]) -> str | None:
    """The first modality whose endings a path or address has, or else whose processor takes the value, or the first
    bytes of the file, for its own. The ending decides before the bytes: a text may begin with "ID3"."""
    if isinstance(item, str | os.PathLike):
        ending = suffix(item)
        for modality, processor in processors.items():
            # A string with the ending of a text is that text, unless it is an address.
            if ending in processor.suffixes and (modality != "text" or isinstance(item, os.PathLike)):
                return modality
    content = _first_bytes(item) if isinstance(item, os.PathLike) else item
    for modality, processor in processors.items():
        if processor.matches(content):
            return modality
    return None


def sniff(path: os.PathLike[str]) -> str | None:
    """The modality of a file by its first bytes, regardless of its ending; None if unknown."""
    return modality_of(_first_bytes(path), guessed())


def _first_bytes(path: os.PathLike[str]) -> bytes:
    """The beginning of a file; empty if it cannot be read."""
    try:
        with open(local_path(path), "rb") as file:
            return file.read(HEAD)
    except (OSError, UserError):
        return b""
