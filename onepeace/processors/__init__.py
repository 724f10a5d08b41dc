"""Processors convert files and values to checked tensors, one processor per modality.

Importing the package does not import torch, which `tokenizer` and `pieces` do not need; the names below do so on use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onepeace.processors.audio import AudioProcessor
    from onepeace.processors.image import ImageProcessor
    from onepeace.processors.processor import Processor
    from onepeace.processors.registry import PROCESSORS, guess, guessed, sniff
    from onepeace.processors.text import TextProcessor, TextReader
    from onepeace.processors.video import VideoProcessor

VERSION = "1"
"""Version of the processors' output; incremented when a change alters vectors, so that an index notices."""

__all__ = [
    "PROCESSORS",
    "VERSION",
    "AudioProcessor",
    "ImageProcessor",
    "Processor",
    "TextProcessor",
    "TextReader",
    "VideoProcessor",
    "guess",
    "guessed",
    "sniff",
]

_MODULE_BY_NAME = {
    "PROCESSORS": "registry",
    "guess": "registry",
    "guessed": "registry",
    "sniff": "registry",
    "AudioProcessor": "audio",
    "ImageProcessor": "image",
    "Processor": "processor",
    "TextProcessor": "text",
    "TextReader": "text",
    "VideoProcessor": "video",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_BY_NAME[name]}"), name)
    globals()[name] = value
    return value
