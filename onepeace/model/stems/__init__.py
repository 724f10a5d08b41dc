"""Stems: the part of an adapter that turns raw input into a feature map, whatever is masked later."""

from collections.abc import Callable
from functools import partial

from torch import nn

from .aisfx import AisfxStem
from .language import LanguageStem
from .lite import SCALES, LiteStem
from .mel import MelStem
from .patches import ConvStem, HMLPStem
from .pretrained import PretrainedStem
from .timm import TimmStem
from .transformers import TransformersStem, network_options
from .wave import SAMPLE_RATE, WaveStem

IMAGE_STEMS: dict[str, Callable[..., nn.Module]] = {
    "hmlp": HMLPStem,
    "conv": ConvStem,
    **{name: partial(LiteStem, name=name) for name in SCALES},
    "timm": TimmStem,
}
"""``(dim, patch_size)``, and the network's name for timm; (B, 3, H, W) -> (B, rows, columns, dim)."""
AUDIO_STEMS = {"wave": WaveStem, "mel": MelStem, "aisfx": AisfxStem, "transformers": TransformersStem}
"""``(dim, **options)``; (B, N) samples -> (B, T, dim), with ``hop``, ``receptive_field`` and ``token_lengths``."""
TEXT_STEMS = {"transformers": LanguageStem}
"""``(dim, **options)``; (B, L) ids and their padding -> (B, L, dim)."""

__all__ = ["AUDIO_STEMS", "IMAGE_STEMS", "SAMPLE_RATE", "TEXT_STEMS", "PretrainedStem", "network_options"]
