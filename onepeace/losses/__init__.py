"""Losses: one per file, pure functions of tensors, means over items."""

from onepeace.generative.losses import TokenLosses, real_targets, smoothed_cross_entropy, token_losses

from .box import box
from .classification import classification, multilabel
from .contrastive import contrastive
from .denoising import denoising, masked_tokens
from .distillation import distillation
from .hinge import hinge
from .soft_targets import soft_targets
from .tiled_infonce import tiled_infonce

__all__ = [
    "TokenLosses",
    "box",
    "classification",
    "contrastive",
    "denoising",
    "distillation",
    "hinge",
    "masked_tokens",
    "multilabel",
    "real_targets",
    "smoothed_cross_entropy",
    "soft_targets",
    "tiled_infonce",
    "token_losses",
]
