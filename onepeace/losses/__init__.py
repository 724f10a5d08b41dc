"""Losses: one per file, pure functions of tensors."""

from .contrastive import contrastive
from .denoising import denoising
from .distillation import distillation

__all__ = ["contrastive", "denoising", "distillation"]
