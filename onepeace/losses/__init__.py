"""Losses: one per file, pure functions of tensors, means over items."""

from .box import box
from .classification import classification, multilabel
from .contrastive import contrastive
from .denoising import denoising, masked_tokens
from .distillation import distillation
from .hinge import hinge
from .sigmoid import sigmoid
from .tiled_infonce import tiled_infonce

__all__ = [
    "box",
    "classification",
    "contrastive",
    "denoising",
    "distillation",
    "hinge",
    "masked_tokens",
    "multilabel",
    "sigmoid",
    "tiled_infonce",
]
