"""What a client sends, checked and decoded before the model is asked for anything.

Everything is data: a path or an address that a client names is neither opened nor fetched, and nothing is written to
the disk. Limits hold for a whole request and not only for one file of it, and decoding happens in the request's own
thread, so that a request of many large files delays itself and not the others.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onepeace.errors import UserError
from onepeace.files.source import NamedBytes, scheme

DATA_URI = re.compile(r"data:[\w.+-]*(?:/[\w.+-]+)?(?:;[\w.+-]+=[\w.+\"-]*)*;base64,", re.IGNORECASE)
LARGE, SIDE = 16_000_000, 2048
"""Pixels above which a decoded picture is scaled down to SIDE at once: the model would take long to do so."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request. What is above them is refused before it is decoded."""

    upload: int = 20 << 20
    """Bytes of one picture or sound."""
    pixels: int = 100_000_000
    """Pixels of all pictures together."""
    seconds: float = 600.0
    """Seconds of all sounds together."""
    sound: float = 60.0
    """Seconds that are read of one sound; models hear less."""
    inputs: int = 128
    """Items of /v1/embeddings, or parts of a query."""
    characters: int = 20_000
    """Characters of one text; models read far less."""
    labels: int = 200
    top: int = 100
    offset: int = 10_000

    @property
    def body(self) -> int:
        """Bytes of a request: one upload as base64, and the JSON around it."""
        return self.upload * 4 // 3 + (4 << 20)


class Refused(UserError):
    """Error for a request that is not answered, with the HTTP status code that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request:
    """The parts of one request, decoded; keeps account of what they cost.

    Methods take what a client sent and the name of its field, and raise `Refused` for whatever is above the limits.

    Args:
        processors: gives those of the model, by modality; is called when a file comes.
    """

    def __init__(self, limits: Limits, processors: Callable[[], Mapping[str, Any]]) -> None:
        self.limits, self.processors = limits, processors
        self.pixels, self.seconds = 0, 0.0

    def decode(self, modality: str, value: str, name: str) -> object:
        """A text, picture or sound as `Embedder.encode` takes it."""
        return {"text": self.text, "image": self.picture, "audio": self.sound}[modality](value, name)

    def text(self, value: str, name: str) -> str:
        if len(value) > self.limits.characters:
            raise Refused(413, f"{name}: {len(value)} characters are above the limit of {self.limits.characters}")
        return value

    def picture(self, value: str, name: str) -> object:
        """A PIL image. UserError if it cannot be read."""
        from onepeace.processors import ImageProcessor

        data, processor = self._data(value, name), self._processor("image", ImageProcessor)
        width, height = processor.size_in_pixels(data)
        self.pixels += width * height
        if self.pixels > self.limits.pixels:
            raise Refused(413, f"{name}: {self.pixels} pixels in this request, above the limit of {self.limits.pixels}")
        image = processor.load(data)
        if image.width * image.height > LARGE:
            image.thumbnail((SIDE, SIDE))
        return image

    def sound(self, value: str, name: str) -> object:
        """(samples, rate) of the beginning of a sound. UserError if it cannot be read."""
        from onepeace.processors import AudioProcessor

        processor = self._processor("audio", AudioProcessor)
        samples = processor.load(self._data(value, name), seconds=self.limits.sound)
        self.seconds += len(samples) / processor.sample_rate
        if self.seconds > self.limits.seconds:
            raise Refused(413, f"{name}: {self.seconds:.0f} s of sound, above the limit of {self.limits.seconds:.0f}")
        return samples, processor.sample_rate

    def _processor(self, modality: str, kind: type[Any]) -> Any:
        """The model's own, so that a vector is the same whichever way its file came; else a usual one."""
        own = self.processors().get(modality)
        return own if isinstance(own, kind) else kind()

    def _data(self, text: str, name: str) -> bytes:
        """The bytes of a file that came as base64 or as a data: URI."""
        if match := DATA_URI.match(text):
            text = text[match.end() :]
        elif scheme(text):
            raise Refused(422, f"{name}: an address is never fetched; send the data as base64 or data:...;base64,")
        if len(text) > self.limits.upload * 4 // 3 + 4:
            raise Refused(413, f"{name}: {len(text) * 3 // 4} bytes are above the limit of {self.limits.upload}")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):  # ValueError: letters outside ASCII
            raise Refused(422, f"{name}: not base64; send the data itself, a path is not opened") from None
        if not data:
            raise Refused(422, f"{name}: 0 bytes")
        return NamedBytes(data, name)
