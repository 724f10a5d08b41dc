"""Files and values to checked tensors, one decoder per modality; no model here. Start with decoder.py, then text.py."""

from collections.abc import Mapping

from onepeace.errors import UserError
from onepeace.media.audio import AudioDecoder
from onepeace.media.decoder import Decoder
from onepeace.media.image import ImageDecoder
from onepeace.media.source import describe
from onepeace.media.text import TextDecoder

# The order is the order of guessing: any string can be a text, so text comes last.
DECODERS: dict[str, type[Decoder]] = {"image": ImageDecoder, "audio": AudioDecoder, "text": TextDecoder}

__all__ = ["DECODERS", "AudioDecoder", "Decoder", "ImageDecoder", "TextDecoder", "guess"]


def guess(item: object, decoders: Mapping[str, object]) -> str:
    """The modality of a path or value, one of the keys of `decoders`, by type, file ending or first bytes.

    A string is a picture or a sound when it has such a file ending, else a text; an address without a known ending
    and a value that fits nothing are a `UserError`, and so is a picture for a model that has no pictures.
    """
    key = next((key for key, cls in DECODERS.items() if cls.matches(item)), None)
    if key is None:
        raise UserError(
            f"{describe(item)}: cannot tell whether this is {' or '.join(DECODERS)}; "
            "say so by calling the function of that modality"
        )
    if key not in decoders:
        raise UserError(f"{describe(item)}: looks like {key}; this model reads {', '.join(decoders)} only")
    return key
