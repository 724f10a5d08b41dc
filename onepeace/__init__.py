"""ONE-PEACE: pictures, sounds and words in one vector space.

    import onepeace
    model = onepeace.load("tiny")
    model.encode_text(["a dog barking"])

Importing the package does not import torch: the names below are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from onepeace.errors import UserError

if TYPE_CHECKING:
    from onepeace.config import ModelConfig
    from onepeace.embed.embedder import Embedder, load
    from onepeace.generative.generator import Generator, load_generator
    from onepeace.model import OnePeace

__version__ = "0.1.0"
__all__ = ["Embedder", "Generator", "ModelConfig", "OnePeace", "UserError", "__version__", "load", "load_generator"]

_MODULE_BY_NAME = {
    "load": "onepeace.embed.embedder",
    "Embedder": "onepeace.embed.embedder",
    "load_generator": "onepeace.generative.generator",
    "Generator": "onepeace.generative.generator",
    "OnePeace": "onepeace.model",
    "ModelConfig": "onepeace.config",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_BY_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
