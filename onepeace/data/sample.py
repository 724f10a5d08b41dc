"""What a data set consists of."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class Extent(NamedTuple):
    """A member of a shard, read when it is wanted."""

    shard: Any
    """The `onepeace.data.shard_cache.Shard` that it lies in."""
    offset: int
    size: int

    def __bool__(self) -> bool:
        return self.size > 0


@dataclass(frozen=True)
class Sample:
    """One example: what a model reads, and what it should say about it."""

    key: str
    source: str
    """Where it is from, for messages: a shard's name, or a table and its line."""
    inputs: dict[str, Any]
    """By modality: the encoded bytes, the `Extent` or the path of a picture or sound, or a list of them; of text a list
    of captions, one of which is drawn each time."""
    targets: dict[str, Any]
    """By name, as far as there are any: "label" (a class name), answers, boxes, events; onepeace.data.targets has the
    form of each."""

    @property
    def captions(self) -> list[str]:
        """The captions; empty if there are none."""
        return self.inputs.get("text", [])

    @property
    def label(self) -> Any:
        """The class name, or None."""
        return self.targets.get("label")

    def read(self, modality: str) -> Any:
        """The input of a modality; bytes in place of an `Extent`."""
        return content_of(self.inputs[modality])

    def whole(self) -> "Sample":
        """The sample with all its bytes in memory."""
        inputs, targets = (
            {name: content_of(value) for name, value in part.items()} for part in (self.inputs, self.targets)
        )
        return replace(self, inputs=inputs, targets=targets)


def content_of(value: Any) -> Any:
    """Bytes of an `Extent`, or of each in a list; any other value itself."""
    if isinstance(value, Extent):
        return value.shard.read(value.offset, value.size)
    return [content_of(one) for one in value] if isinstance(value, list) else value
