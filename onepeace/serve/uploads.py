"""Uploads: the content of a request, checked and decoded before the model runs.

Clients send data: a path or URL in a request is neither opened nor fetched, and nothing is written to the disk. The
limits apply to a whole request, not only to each file, and decoding runs in the request's own thread, so that a
request with many large files delays only itself.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from onepeace.errors import UserError
from onepeace.files.source import NamedBytes, scheme
from onepeace.serve.memory import MANY_PIXELS, room_for

DATA_URI = re.compile(r"data:[\w.+-]*(?:/[\w.+-]+)?(?:;[\w.+-]+=[\w.+\"-]*)*;base64,", re.IGNORECASE)
SIDE = 2048
"""Longest side to which a large picture is scaled down once decoded; scaling it for the model would take long."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request. Anything above them is refused before it is decoded."""

    upload: int = 20 << 20
    """Bytes per picture or sound."""
    pixels: int = 100_000_000
    """Pixels of all pictures in total."""
    seconds: float = 600.0
    """Seconds of all sounds in total."""
    sound: float = 60.0
    """Seconds read of one sound; models use less."""
    inputs: int = 128
    """Items of /v1/embeddings, or parts of a query."""
    characters: int = 20_000
    """Characters per text; models read far fewer."""
    all_characters: int = 200_000
    """Characters of all texts in total."""
    labels: int = 200
    label_tokens: int = 4096
    """Tokens of all labels."""
    label_characters: int = 32_768
    """Characters of all labels; these bound the time in which their tokens are counted."""
    filter_characters: int = 1000
    """Characters of a condition, a date or a pattern."""
    top: int = 100
    offset: int = 10_000

    @property
    def body(self) -> int:
        """Maximum bytes of a request: one upload in base64, plus the JSON around it."""
        return self.upload * 4 // 3 + (4 << 20)


class Refused(UserError):
    """Error of a refused request, with its HTTP status code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request:
    """Decoder of the parts of one request, which adds up their sizes.

    Methods take the uploaded value and the name of its field, and raise `Refused` above the limits.

    Args:
        processors: returns the processors of the model by modality; called only for files.
    """

    def __init__(self, limits: Limits, processors: Callable[[], Mapping[str, Any]]) -> None:
        self.limits = limits
        self.processors = processors
        self.pixels = 0
        self.seconds = 0.0
        self.characters = 0

    def decode(self, modality: str, value: str | bytes, name: str) -> object:
        """A text, or a picture or sound in base64 or as bytes, in the form that `Embedder.encode` takes."""
        if modality == "text":
            return self.text(cast("str", value), name)
        if isinstance(value, str):
            value = self.data(value, name)
        if modality == "image":
            return self.picture(value, name)
        return self.sound(value, name)

    def text(self, value: str, name: str) -> str:
        if len(value) > self.limits.characters:
            raise Refused(413, f"{name}: {len(value)} characters are above the limit of {self.limits.characters}")
        self.characters += len(value)
        limit = self.limits.all_characters
        if self.characters > limit:
            raise Refused(413, f"{name}: {self.characters} characters in this request, above the limit of {limit}")
        return value

    def picture(self, data: bytes, name: str) -> object:
        """Decode to a PIL image; UserError if it cannot be read."""
        from PIL import Image

        from onepeace.processors import ImageProcessor

        processor = self._processor("image", ImageProcessor)
        try:
            width, height = processor.size_in_pixels(data)
        except UserError as error:
            if isinstance(error.__cause__, Image.DecompressionBombError):  # the limit of Pillow, which is higher
                raise Refused(413, f"{name}: above the limit of {self.limits.pixels} pixels") from error
            raise
        self.pixels += width * height
        if self.pixels > self.limits.pixels:
            raise Refused(413, f"{name}: {self.pixels} pixels in this request, above the limit of {self.limits.pixels}")
        with room_for(width * height):
            image = processor.load(data)
            if image.width * image.height > MANY_PIXELS:
                image.thumbnail((SIDE, SIDE))
        return image

    def sound(self, data: bytes, name: str) -> object:
        """Decode the start of a sound to (samples, rate); UserError if it cannot be read."""
        from onepeace.processors import AudioProcessor

        processor = self._processor("audio", AudioProcessor)
        samples = processor.load(data, seconds=self.limits.sound)
        self.seconds += len(samples) / processor.sample_rate
        if self.seconds > self.limits.seconds:
            raise Refused(413, f"{name}: {self.seconds:.0f} s of audio, above the limit of {self.limits.seconds:.0f}")
        return samples, processor.sample_rate

    def _processor(self, modality: str, processor_class: type[Any]) -> Any:
        """The model's own processor, so that an upload gets the same vector as a file; otherwise a default one."""
        processor = self.processors().get(modality)
        return processor if isinstance(processor, processor_class) else processor_class()

    def data(self, text: str, name: str) -> NamedBytes:
        """Decode the bytes of a file from base64 or a data: URI."""
        match = DATA_URI.match(text)
        if match is not None:
            text = text[match.end() :]
        elif scheme(text):
            raise Refused(422, f"{name}: URLs are not fetched; send the data as base64 or data:...;base64,")
        if len(text) > self.limits.upload * 4 // 3 + 4:
            raise Refused(413, f"{name}: {len(text) * 3 // 4} bytes are above the limit of {self.limits.upload}")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):  # ValueError: letters outside ASCII
            raise Refused(422, f"{name}: not valid base64; send the data itself, not a path") from None
        if not data:
            raise Refused(422, f"{name}: 0 bytes")
        return NamedBytes(data, name)
