"""Stems: the part of an adapter that maps raw input to a feature map, independent of the mask."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from onepeace.config.reader import nearest, read_arguments
from onepeace.errors import UserError

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
AUDIO_STEMS: dict[str, type[nn.Module]] = {
    "wave": WaveStem,
    "mel": MelStem,
    "aisfx": AisfxStem,
    "soundnet": SoundNetStem,
    "joined": JoinedStem,
    "transformers": TransformersStem,
}
"""Audio stems by name. Arguments: dim, options. (B, N) -> (B, T, dim). Each has hop, receptive_field, token_lengths."""
TEXT_STEMS: dict[str, type[nn.Module]] = {"transformers": LanguageStem}
"""Text stems by name. Arguments: dim, options. (B, L) ids and the padding mask -> (B, L, dim)."""


def make_stem(stems: Mapping[str, type[nn.Module]], name: str, dim: int, options: Mapping[str, Any], key: str) -> Any:
    """Create the audio or text stem of a modality; `UserError` for an unknown one, and for a wrong option."""
    where = f"model.adapters.{key}"
    if name not in stems:
        raise UserError(f"{where}.stem: {name!r} is not known; {nearest(name, stems)}")
    return stems[name](dim, **read_arguments(stems[name], options, "", where))


__all__ = ["AUDIO_STEMS", "IMAGE_STEMS", "SAMPLE_RATE", "TEXT_STEMS", "PretrainedStem", "make_stem", "network_options"]
