"""Adapters, the only modality-specific code of model/. To add a modality, add a class and an entry below."""

from dataclasses import fields
from typing import Any

from onepeace.config.reader import read_arguments

from .audio import AudioAdapter
from .base import Adapter, AdapterOptions
from .image import ImageAdapter
from .text import TextAdapter
from .video import VideoAdapter

ADAPTERS: dict[str, type[Adapter]] = {
    "text": TextAdapter,
    "image": ImageAdapter,
    "audio": AudioAdapter,
    "video": VideoAdapter,
}

SHARED = {field.name for field in fields(AdapterOptions)}


def make_adapter(key: str, options: dict[str, Any], dim: int, num_heads: int, num_tables: int) -> Adapter:
    """Create the adapter of a modality; ``options`` are fields of `AdapterOptions` or arguments of its class.

    Raises:
        UserError: an option is unknown, of another type or out of its range.
    """
    where = f"model.adapters.{key}"
    shared = {name: value for name, value in options.items() if name in SHARED}
    class_options = {name: value for name, value in options.items() if name not in SHARED}
    shared = read_arguments(AdapterOptions, shared, "", where)
    class_options = read_arguments(ADAPTERS[key], class_options, "", where)
    return ADAPTERS[key](AdapterOptions(key, dim, num_heads, num_tables, **shared), **class_options)


__all__ = ["ADAPTERS", "Adapter", "AdapterOptions", "make_adapter"]
