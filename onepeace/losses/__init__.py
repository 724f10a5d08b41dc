"""Losses: one per file, pure functions of tensors, means over items."""

from .box import box
from .classification import classification, multilabel
from .contrastive import contrastive
from .denoising import denoising, hidden_tokens
from .distillation import distillation
from .hinge import hinge
from .matching import matching

__all__ = [
    "box",
    "classification",
    "contrastive",
    "denoising",
    "distillation",
    "hidden_tokens",
    "hinge",
    "matching",
    "multilabel",
]
