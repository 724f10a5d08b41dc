"""What a client sends: pictures and sounds as data. Nothing that a client names, a path or an address, is opened."""

import base64
import binascii
import re

from onepeace.errors import UserError
from onepeace.files.source import scheme
from onepeace.serve.limits import Limits, Refused

DATA_URI = re.compile(r"data:[\w.+-]*(?:/[\w.+-]+)?(?:;[\w.+-]+=[\w.+\"-]*)*;base64,", re.IGNORECASE)


def data_of(text: str, name: str, limits: Limits) -> bytes:
    """The bytes of a picture or sound that came as base64, or as a data: URI.

    Args:
        name: of the field, for messages.

    Raises:
        Refused: an address, anything else that is no base64, nothing, or too much.
    """
    if match := DATA_URI.match(text):
        text = text[match.end() :]
    elif scheme(text):
        raise Refused(400, f"{name}: an address is never fetched; send the data itself, as base64 or data:...;base64,")
    if len(text) > limits.upload * 4 // 3 + 4:
        raise too_large(name, len(text) * 3 // 4, limits)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: letters outside ASCII
        raise Refused(400, f"{name}: not base64; send the data itself, a path or an address is not opened") from None
    if not data:
        raise Refused(400, f"{name}: 0 bytes")
    if len(data) > limits.upload:
        raise too_large(name, len(data), limits)
    return data


def checked_text(text: str, name: str, limits: Limits) -> str:
    """A text as it is; Refused if it is longer than anyone could mean."""
    if len(text) > limits.characters:
        raise Refused(413, f"{name}: {len(text)} characters are above the limit of {limits.characters}")
    return text


def too_large(name: str, size: int, limits: Limits) -> UserError:
    return Refused(413, f"{name}: {size} bytes are above the limit of {limits.upload}")
