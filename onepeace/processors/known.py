"""Registry of the processors, and detection of an item's modality."""

import os
from collections.abc import Collection

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


def guess(item: object, known: Collection[str]) -> str:
    """The modality of a path or value, one of `known`, by type, file ending or first bytes.

    A string is a picture or sound if it has such a file ending, else a text. `UserError` for a URL without a known
    ending, a value that matches no modality, and a modality that is not in `known`. A video counts as its sound,
    unless the model reads frames and no sound.
    """
    # The ending of a file decides before its bytes do: a text may begin with "ID3".
    ending = suffix(item) if isinstance(item, os.PathLike) else None
    kinds = guessed()
    key = next((key for key, cls in kinds.items() if ending in cls.suffixes), None)
    key = key or next((key for key, cls in kinds.items() if cls.matches(item)), None)
    if key not in known:
        others = (other for other in known if other in PROCESSORS and other not in kinds)
        key = next((other for other in others if PROCESSORS[other].matches(item)), key)
    if key is None:
        raise UserError(
            f"{describe(item)}: cannot tell whether this is {' or '.join(kinds)}; "
            "say so by calling the function of that modality"
        )
    if key not in known:
        raise UserError(f"{describe(item)}: looks like {key}; this model reads {', '.join(known)} only")
    return key


def sniff(path: os.PathLike[str]) -> str | None:
    """The modality of a file by its first bytes, regardless of its ending; None if unknown."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return None
    return next((key for key, processor in guessed().items() if processor.matches(head)), None)
