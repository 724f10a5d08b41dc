"""What every protocol has: a set of shards, and a way to measure an embedder on it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.data.shards import read_source
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, as_array


@dataclass(frozen=True)
class Items:
    """The items of one modality in a set of shards."""

    modality: str
    shards: str
    """Pattern of shard files, below the root."""
    keys: str = "*"
    """Pattern of the samples' keys: a part of the shards."""

    def read(self, root: Path, *others: str) -> list[Sample]:
        """The samples that have this modality and the others; incomplete ones are left out with a warning."""
        samples = read_source(self.shards, (self.modality, *others), root, broken_limit=1.0).samples
        chosen = [sample for sample in samples if fnmatchcase(sample.key, self.keys)]
        if not chosen:
            raise UserError(f"{self.shards}: no key of its {len(samples)} samples fits the pattern {self.keys!r}")
        return chosen

    def read_labelled(self, root: Path) -> list[Sample]:
        """The samples; UserError when one of them has no label."""
        samples = self.read(root)
        for sample in samples:
            if sample.label is None:
                raise UserError(f"{sample.source}: {sample.key} has no label, and this protocol needs one")
        return samples

    def encode(self, embedder: Any, samples: Sequence[Sample]) -> NDArray:
        """The vectors (n, E) of the samples' items."""
        return encode(embedder, self.modality, [sample.inputs[self.modality] for sample in samples])


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol(Items, ABC):
    """A set of items and how it is measured; a subclass adds options, checks them in ``__post_init__``, and runs."""

    @property
    def sides(self) -> tuple[Items, ...]:
        """The items of each modality that the model must have besides text."""
        return (self,)

    @abstractmethod
    def run(self, embedder: Any, root: Path) -> list[Figure]:
        """Measure an embedder on the shards below ``root``.

        Args:
            embedder: has encode_text and encode_<modality>, each a function of a list (of texts; of encoded file
                bytes) that returns (n, E) unit vectors in its order.

        Raises:
            UserError: no shards, a sample that lacks something, a file that cannot be decoded.
        """


def encode(embedder: Any, modality: str, items: Sequence[Any]) -> NDArray:
    """The embedder's vectors (n, E) of one modality as a numpy array; an output of another shape is a ValueError."""
    vectors = as_array(getattr(embedder, f"encode_{modality}")(list(items)))
    if vectors.ndim != 2 or len(vectors) != len(items):
        raise ValueError(f"encode_{modality} returned {vectors.shape} for {len(items)} items; expected (items, width)")
    return vectors


def check_at(at: Sequence[int]) -> None:
    """UserError unless ``at`` lists one k or more, each at least 1."""
    if not at or min(at) < 1:
        raise UserError(f"at is {list(at)}; give at least one k, each at least 1")
