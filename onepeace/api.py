"""The names users import: `load` and `Embedder`, with the types of their results. See embed/embedder.py."""

from onepeace.embed.assembly import Failure
from onepeace.embed.embedder import Embedder, Tokens, Windows, load

__all__ = ["Embedder", "Failure", "Tokens", "Windows", "load"]
