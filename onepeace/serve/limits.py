"""How much a server takes on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all together. Anything above them is refused before it is decoded."""

    upload: int = 20 << 20
    """Bytes per picture or sound."""
    pixels: int = 100_000_000
    """Pixels of all pictures in total."""
    seconds: float = 600.0
    """Seconds of all sounds in total."""
    sound: float = 60.0
    """Seconds read of one sound; models use less."""
    items: int = 2048
    """Items of /v1/embeddings."""
    parts: int = 128
    """Parts of a query, or files that are classified."""
    values: int = 1_000_000
    """Values in the JSON of a body, about; a list of very many takes seconds to read."""
    characters: int = 20_000
    """Characters per text; models read far fewer."""
    labels: int = 200
    requests: int = 1024
    """Requests at the same time."""
    bodies: int = 512 << 20
    """Bytes of the bodies of these requests."""
    queue: int = 16_384
    """Items that wait for the model, or are decoded for it."""

    @property
    def body(self) -> int:
        """Maximum bytes of a request: one upload in base64, plus the JSON around it."""
        return self.upload * 4 // 3 + (4 << 20)
