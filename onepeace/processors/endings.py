"""File endings of the modalities, available without importing the processors, which import torch."""

import sys

from onepeace.files.picture import PICTURE_SUFFIXES, RAW_SUFFIXES
from onepeace.files.video import VIDEO_SUFFIXES

ENDINGS = {
    "image": PICTURE_SUFFIXES | RAW_SUFFIXES,
    "audio": VIDEO_SUFFIXES.union(
        ".wav .wave .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .caf .w64 .rf64 .au .snd .m4a .m4b .m4r .aac .mka "
        ".weba .wma .ac3 .amr .wv".split()
    ),
    "text": frozenset(".txt .text .md .markdown .rst .adoc .org .tex .log".split()),
}
"""Endings by built-in modality, in the order of guessing."""


def modality_by_ending() -> dict[str, str]:
    """Modality by file ending (lower case, with the dot), including registered modalities."""
    endings = ENDINGS
    registry = sys.modules.get("onepeace.processors.registry")
    if registry is not None:  # nothing is registered before it is loaded
        endings = {key: processor.suffixes for key, processor in registry.guessed().items()}
    modalities: dict[str, str] = {}
    for modality, suffixes in endings.items():
        modalities.update(dict.fromkeys(suffixes, modality))
    return modalities
