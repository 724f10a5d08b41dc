"""The model: torch and its configuration only. Read model.py first."""

from .adapters import ADAPTERS, Adapter
from .encoder import Features
from .model import OnePeace
from .sequence import Span, Stem, TokenSequence

__all__ = ["ADAPTERS", "Adapter", "Features", "OnePeace", "Span", "Stem", "TokenSequence"]
