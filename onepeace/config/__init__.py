"""Configuration: frozen dataclasses, and the one function ``build`` that fills them from plain values. No torch here.

``ModelConfig`` holds the sizes and parts of OnePeace; ``Config``, the ``config.yaml`` of a model folder, holds the
model's configuration and the processors' settings. Recipes (onepeace/train/recipe.py) are built in the same way.
"""

from onepeace.config.model import SIZES, Base, Config, MaskedDecoderConfig, ModelConfig
from onepeace.config.reader import Options, build
from onepeace.config.yaml_files import apply_override, merge, read_yaml, to_plain, to_yaml, write_config

__all__ = [
    "SIZES",
    "Base",
    "Config",
    "MaskedDecoderConfig",
    "ModelConfig",
    "Options",
    "apply_override",
    "build",
    "merge",
    "read_yaml",
    "to_plain",
    "to_yaml",
    "write_config",
]
