"""Adapters, the only modality-specific code of model/. To add a modality, add a class and an entry below."""

from .audio import AudioAdapter
from .base import Adapter
from .image import ImageAdapter
from .text import TextAdapter
from .video import VideoAdapter

ADAPTERS: dict[str, type[Adapter]] = {
    "text": TextAdapter,
    "image": ImageAdapter,
    "audio": AudioAdapter,
    "video": VideoAdapter,
}

__all__ = ["ADAPTERS", "Adapter"]
