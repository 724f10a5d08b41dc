"""Batches: model inputs, targets and token masks of some samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
"""The model's input of one modality, as returned by its processor's ``collate``."""


class Mask(NamedTuple):
    """The masked tokens of one modality in one pass; positions count from CLS = 0."""

    keep: Tensor
    """(B, K) int64: the visible positions, ascending, CLS first, padded with -1."""
    masked: Tensor
    """(B, L + 1) bool: True = masked."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B items of one pair of modalities."""

    inputs: Mapping[str, Inputs]
    """Model inputs by modality."""
    keys: list[str] = field(default_factory=list)
    """The samples' keys; KEY.mixed where another item is mixed in."""
    captions: list[str] = field(default_factory=list)
    """The captions as drawn and changed by augmentation."""
    names: list[list[str]] = field(default_factory=list)
    """Captions and label of each item; see ``multi_positive_ids``."""
    targets: Mapping[str, list[Any]] = field(default_factory=dict)
    """Values by name, one for each item."""
    rows: int = 1
    """Consecutive rows of the inputs per item: 2 for two pictures, 4 for a question with four candidate answers. An
    input that an item has once is repeated in all of its rows."""
    masks: Mapping[str, Mapping[str, Mask]] = field(default_factory=dict)
    """Masks by modality and pass: "contrastive" for token dropout, "unimodal" and "joint" for denoising."""
    replaced: list[str] = field(default_factory=list)
    """Keys of items that could not be decoded and were replaced."""
    source: str = ""
    """Name of the sources of all items."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with ``function`` applied to each of its tensors."""
        return replace(
            self,
            inputs={key: {name: function(x) for name, x in inputs.items()} for key, inputs in self.inputs.items()},
            masks={
                key: {name: Mask(*map(function, mask)) for name, mask in passes.items()}
                for key, passes in self.masks.items()
            },
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; torch's DataLoader calls it."""
        return self.map(Tensor.pin_memory)

    def split(self, parts: int, take: Mapping[str, Callable[..., Inputs]]) -> list["Batch"]:
        """Split the batch into parts of about equal size, at most one per item.

        Args:
            take: for each modality present: (inputs, rows) -> the inputs of these rows.
        """
        pieces = []
        for items in torch.arange(len(self.keys)).chunk(parts):
            own = slice(int(items[0]), int(items[-1]) + 1)
            rows = torch.arange(own.start * self.rows, own.stop * self.rows)
            pieces.append(
                replace(
                    self,
                    inputs={
                        key: take[key](inputs, rows.to(next(iter(inputs.values())).device))
                        for key, inputs in self.inputs.items()
                    },
                    keys=self.keys[own],
                    captions=self.captions[own],
                    names=self.names[own],
                    targets={name: values[own] for name, values in self.targets.items()},
                    masks={
                        key: {name: Mask(trim(mask.keep[own]), mask.masked[own]) for name, mask in passes.items()}
                        for key, passes in self.masks.items()
                    },
                )
            )
        return pieces


def trim(keep: Tensor) -> Tensor:
    """Visible positions (B, K), padded with -1, without the columns that are padding in every row."""
    return keep[:, : int((keep >= 0).sum(1).amax())]
