"""Configuration: frozen dataclasses, and the one reader that fills them from YAML. No torch here.

``ModelConfig`` says what OnePeace is built of, ``Config`` adds the processors' settings: together they are the
``config.yaml`` of a model folder. Recipes (onepeace/train/recipe.py) are read by the same ``build``.
"""

from pathlib import Path

from onepeace.config.model import ClassifierConfig, Config, MaskedDecoderConfig, ModelConfig
from onepeace.config.reader import Options, apply_override, build, merge, read_yaml, to_plain, write_config
from onepeace.config.sizes import SIZES
from onepeace.errors import UserError

__all__ = [
    "SIZES",
    "ClassifierConfig",
    "Config",
    "MaskedDecoderConfig",
    "ModelConfig",
    "Options",
    "apply_override",
    "build",
    "merge",
    "read_config",
    "read_yaml",
    "to_plain",
    "write_config",
]


def read_config(path: Path | str) -> Config:
    """Read a model folder's config.yaml."""
    content = read_yaml(path)
    if content.get("format", 1) != 1:
        raise UserError(f"{path}: format {content['format']} is newer than this onepeace reads (1); upgrade onepeace")
    return build(Config, content, str(path))
