"""Configuration: frozen dataclasses, and the one reader that fills them from YAML. No torch here.

``ModelConfig`` holds the sizes and parts of OnePeace; ``Config``, the ``config.yaml`` of a model folder, holds the
model's configuration and the processors' settings. Recipes (onepeace/train/recipe.py) are read by the same ``build``.
"""

from onepeace.config.model import Base, Config, MaskedDecoderConfig, ModelConfig
from onepeace.config.reader import Options, apply_override, build, merge, read_yaml, to_plain, to_yaml, write_config
from onepeace.config.sizes import SIZES

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
