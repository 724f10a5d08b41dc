"""The model: torch and its configuration only."""

from onepeace.layers.features import Features

from .adapters import ADAPTERS, Adapter
from .backbone import Backbone, Pyramid
from .model import OnePeace
from .sequence import Span, Stem, TokenSequence

__all__ = ["ADAPTERS", "Adapter", "Backbone", "Features", "OnePeace", "Pyramid", "Span", "Stem", "TokenSequence"]
