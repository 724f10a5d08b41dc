"""The only code of model/ that knows a raw modality. A new one is a class here and an entry below."""

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
