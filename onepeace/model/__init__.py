"""The model; depends only on torch and its configuration."""

from onepeace.layers.features import Features

from .adapters import ADAPTERS, Adapter, AdapterOptions
from .interface import INITIAL_SCALE, Embeds, Encoder, Trained
from .model import OnePeace
from .sequence import StemOutput, TokenSequence, TokenSpan

__all__ = [
    "ADAPTERS",
    "INITIAL_SCALE",
    "Adapter",
    "AdapterOptions",
    "Embeds",
    "Encoder",
    "Features",
    "OnePeace",
    "StemOutput",
    "TokenSequence",
    "TokenSpan",
    "Trained",
]
