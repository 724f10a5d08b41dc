"""Samples of a data set."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.data.shard import content_of
from onepeace.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One example: inputs by modality, and targets."""

    key: str
    source: str
    """Origin, for messages: a shard's name, or a table and its line."""
    inputs: dict[str, Any]
    """Inputs by modality: encoded bytes, `Extent` or path of a picture or sound, or a list of them; for text a list of
    captions, one of which is drawn each time."""
    targets: dict[str, Any]
    """Targets by name: "label" (a class name), answers, boxes, events; see onepeace.data.targets for their forms."""

    @property
    def captions(self) -> list[str]:
        """The captions; may be empty."""
        return self.inputs.get("text", [])

    @property
    def label(self) -> Any:
        """The class name, or None."""
        return self.targets.get("label")

    def read(self, modality: str) -> Any:
        """The input of a modality; an `Extent` is replaced by its bytes."""
        return content_of(self.inputs[modality])


def item_name(sample: Sample) -> str:
    """Name of an item that is unique even if several sources have the same keys."""
    return f"{Path(sample.source).name}/{sample.key}"


def source_states(items: Mapping[str, Sample]) -> dict[str, str]:
    """Size and modification time of the file that each sample is from, by name; "" for an address."""
    state_by_source: dict[str, str] = {}
    for source in {sample.source for sample in items.values()}:
        with suppress(OSError):
            status = os.stat(source)
            state_by_source[source] = f"{status.st_size}-{status.st_mtime_ns}"
    return {name: state_by_source.get(sample.source, "") for name, sample in items.items()}


def key_of(sample: Sample) -> str:
    """Name of an item that all sources of a sample have in common."""
    return sample.key


def by_name(
    samples: Iterable[Sample],
    modality: str,
    what: str,
    name: Callable[[Sample], str] = key_of,
) -> dict[str, Sample]:
    """Samples by name; a sample may occur in several sources.

    Args:
        what: description of the data stored by name, for the message.

    Raises:
        UserError: two samples with the same name have different inputs of the modality.
    """
    samples_by_name: dict[str, Sample] = {}
    for sample in samples:
        first = samples_by_name.setdefault(name(sample), sample)
        if first.inputs[modality] == sample.inputs[modality]:
            continue
        if first.read(modality) != sample.read(modality):
            raise UserError(
                f"{first.source} and {sample.source} have different items of one name, {name(sample)}, and {what} are "
                "kept by that name; write the shards of one again with another prefix"
            )
    return samples_by_name
