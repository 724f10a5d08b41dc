"""What a server says by its model alone: vectors and classes of what is sent, for many threads at once."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onepeace.errors import expect
from onepeace.hub.towers.config import names_towers, public_name
from onepeace.serve.limits import Limits
from onepeace.serve.requests import Decoder, Refused

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.serve.queue import ModelQueue

ALIAS = "text-embedding-"
"""How the names of OpenAI's models begin, which its clients send if they are given no other: they mean this model."""


class Queues:
    """The queue of the model that is served; an index that is built anew may get another one.

    Args:
        prepare: returns a form of a model that computes the same vectors quicker.
    """

    def __init__(
        self, limits: Limits | None = None, prepare: "Callable[[Embedder], Embedder]" = lambda embedder: embedder
    ) -> None:
        self.observe_batch: Callable[[str, int], None] = lambda modality, count: None
        self._limits = limits or Limits()
        self._prepare = prepare
        self._embedder: Embedder | None = None
        self._queue: ModelQueue | None = None
        self._opening = threading.Lock()

    def of(self, embedder: "Embedder") -> "ModelQueue":
        """The queue of a model; that of another one ends when it has computed what waits."""
        from onepeace.serve.queue import ModelQueue

        with self._opening:
            if self._queue is None or self._embedder is not embedder:
                if self._queue is not None:
                    self._queue.close()
                prepared = self._prepare(embedder)
                self._queue = ModelQueue(prepared, self._limits.queue, lambda *batch: self.observe_batch(*batch))
                self._embedder = embedder
            return self._queue

    def encode(self, embedder: "Embedder", items: Sequence[Mapping[str, object]]) -> np.ndarray:
        """(n, E) float32 unit vectors of {modality: value}; for `onepeace.index.Index.open`."""
        return self.of(embedder).encode(items)

    def waiting(self) -> dict[str, int]:
        """Numbers of items that wait, by modality."""
        return {} if self._queue is None else self._queue.waiting()

    def stop(self) -> None:
        """Cancel what is in the queue, for requests that are not answered any longer."""
        if self._queue is not None:
            self._queue.cancel()


class ModelService:
    """A model for requests; what is under way is computed together (queue.py).

    Args:
        present: returns the model; an index may get another one.
        limits: limits of requests.
        queues: those of the model.
    """

    def __init__(
        self, present: "Callable[[], Embedder]", limits: Limits | None = None, queues: Queues | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.queues = queues or Queues(self.limits)
        self._present = present

    @property
    def embedder(self) -> "Embedder":
        """The present model."""
        return self._present()

    @property
    def model(self) -> str:
        """Name of the model for clients, without the folders it lies in."""
        return shown_name(self.embedder.identity.name)

    @property
    def embed_dim(self) -> int:
        return self.embedder.embed_dim

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.embedder.modalities_with_vectors

    def check_model(self, name: str | None) -> None:
        """Raise `Refused` (404) for the name of a model that is not this one."""
        if name and name != self.model and not name.startswith(ALIAS):
            raise Refused(404, f"model: {name!r} is not served; give {self.model!r}, a name of OpenAI's, or none")

    def queue(self) -> "ModelQueue":
        """The queue of the present model."""
        return self.queues.of(self._present())

    def queue_now(self) -> "ModelQueue | None":
        """The queue of the present model, if that is known without waiting."""
        return self.queue()

    def decoder(self) -> Decoder:
        return Decoder(self.limits, lambda: self.embedder.processors)

    def classify(
        self, items: Iterable[Mapping[str, object]], count: int, labels: Sequence[str], template: str | None = None
    ) -> list[dict[str, float]]:
        """Probability of each label for every item, most likely first.

        Args:
            items: `count` of {modality: value}.
            template: sentence with {} for the label; None = the default of the modality.

        Raises:
            Refused: too many labels.
        """
        import torch

        from onepeace.embed.classify import TEMPLATE, check_choice, prototypes

        names = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
        if not 1 <= len(names) <= self.limits.labels:
            raise Refused(422, f"labels: {len(names)} labels; give 1 to {self.limits.labels}")
        check_choice(names, template)
        queue = self.queue()

        @cache
        def classes(modality: str) -> torch.Tensor:
            return prototypes(queue.encode_text, names, template or TEMPLATE.get(modality, "{}"))

        results = []
        for result in queue.results(items, count):
            modality = str(result.modality)
            logits = queue.embedder.logit_scale_of(modality) * (classes(modality) @ expect(result.vector, torch.Tensor))
            shares, order = logits.softmax(dim=0).sort(descending=True, stable=True)
            results.append({names[i]: share for i, share in zip(order.tolist(), shares.tolist(), strict=True)})
        return results


def shown_name(name: str) -> str:
    """The name of a model without the folders that it lies in."""
    return public_name(name) if names_towers(name) else Path(name).name
