"""Modality of a file by its ending, without importing the processors, unless they are imported already."""

import sys

from onepeace.processors.endings import ENDINGS


def modality_by_ending() -> dict[str, str]:
    """Modality by file ending (lower case, with the dot), including registered modalities."""
    endings = ENDINGS
    if "onepeace.processors.registry" in sys.modules:  # nothing is registered before it is loaded
        from onepeace.processors.registry import guessed

        endings = {key: processor.suffixes for key, processor in guessed().items()}
    modalities: dict[str, str] = {}
    for modality, suffixes in endings.items():
        modalities.update(dict.fromkeys(suffixes, modality))
    return modalities
