"""The names users import: `load` and `Embedder`, with the types of their results. See embed/embedder.py."""

from onepeace.embed.assembly import Embedded, Failure, Windows
from onepeace.embed.embedder import Embedder, Tokens, load
from onepeace.embed.explain import Explanation

__all__ = ["Embedded", "Embedder", "Explanation", "Failure", "Tokens", "Windows", "load"]
