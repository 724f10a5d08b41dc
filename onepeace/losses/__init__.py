"""Losses: one per file, pure functions of tensors, means over items."""

from .box import box
from .classification import classification, multilabel
from .contrastive import contrastive
from .denoising import denoising
from .distillation import distillation
from .hinge import hinge

__all__ = ["box", "classification", "contrastive", "denoising", "distillation", "hinge", "multilabel"]
