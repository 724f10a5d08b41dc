"""What a data set consists of."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One example: what a model reads, and what it should say about it."""

    key: str
    source: str
    """Where it is from, for messages: a shard's name, or a table and its line."""
    inputs: dict[str, Any]
    """By modality: the encoded bytes or the path of a picture or sound, a list of them where the sample has several; of
    text a list of captions, one of which is drawn each time."""
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
