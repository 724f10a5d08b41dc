"""How much a client may ask for, and how a request is refused."""

from dataclasses import dataclass

from onepeace.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Of one request. Everything above them is refused before it is decoded."""

    upload: int = 20 << 20
    """Bytes of one picture or sound."""
    pixels: int = 50_000_000
    """Of one picture."""
    inputs: int = 128
    """Items of /v1/embeddings."""
    characters: int = 20_000
    """Of one text; the model reads far less."""
    top: int = 100
    """Hits of a search."""
    offset: int = 10_000

    @property
    def body(self) -> int:
        """Bytes of a request: one upload as base64, and room for the rest of the JSON around it."""
        return self.upload * 4 // 3 + (4 << 20)


class Refused(UserError):
    """A request that is not answered, with the status code of HTTP that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
