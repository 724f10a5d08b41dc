"""Stems: the part of an adapter that maps raw input to a feature map, independent of the mask."""

from collections.abc import Callable
from functools import partial

from torch import nn

from .aisfx import AisfxStem
from .lite import SCALES, LiteStem
from .mel import MelStem
from .patches import ConvStem, HMLPStem
from .pretrained import PretrainedStem
from .soundnet import JoinedStem, SoundNetStem
from .timm import TimmStem
from .transformers import LanguageStem, TransformersStem, network_options
from .wave import SAMPLE_RATE, WaveStem

IMAGE_STEMS: dict[str, Callable[..., nn.Module]] = {
    "hmlp": HMLPStem,
    "conv": ConvStem,
    **{name: partial(LiteStem, name=name) for name in SCALES},
    "timm": TimmStem,
}
"""Image stems by name. Arguments: dim, patch_size; for timm also name; channels if not 3. (B, 3, H, W) -> (B, rows,
columns, dim)."""
AUDIO_STEMS = {
    "wave": WaveStem,
    "mel": MelStem,
    "aisfx": AisfxStem,
    "soundnet": SoundNetStem,
    "joined": JoinedStem,
    "transformers": TransformersStem,
}
"""Audio stems by name. Arguments: dim, options. (B, N) -> (B, T, dim). Each has hop, receptive_field, token_lengths."""
TEXT_STEMS = {"transformers": LanguageStem}
"""Text stems by name. Arguments: dim, options. (B, L) ids and the padding mask -> (B, L, dim)."""

__all__ = ["AUDIO_STEMS", "IMAGE_STEMS", "SAMPLE_RATE", "TEXT_STEMS", "PretrainedStem", "network_options"]
