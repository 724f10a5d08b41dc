"""Batches: model inputs, targets and token masks of some samples, and all numbers that decide shapes.

The builder knows the length of every item and every mask on the CPU. A batch carries them there, so that no part of a
training step asks the device for a value, for which it would have to wait.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onepeace.device import upload

Inputs = dict[str, Tensor]
"""The model's input of one modality, as returned by its processor's ``collate``."""
Lengths = NDArray[np.int64]
"""Numbers of tokens, samples or ids, one for each row of an input."""


class Mask(NamedTuple):
    """The masked tokens of one modality in one pass; positions count from CLS = 0."""

    keep: Tensor
    """(B, K) int64: the visible positions, ascending, CLS first, padded with -1."""
    visible: Lengths
    """(B,): number of visible positions, with CLS."""
    masked: Tensor
    """(M,) int64: the masked tokens among the positions after CLS, counted row by row as in a flattened (B, L)."""
    masked_of_real: Tensor
    """(M,) int64: the same tokens, counted among the real tokens of all rows."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B items of the same modalities."""

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
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    """Number of tokens of each row, with CLS, by modality. On the CPU, like ``input_lengths``."""
    input_lengths: Mapping[str, Lengths] = field(default_factory=dict)
    """The input ``lengths`` of each row, such as its number of samples, by modality that has padding."""
    real: Mapping[str, Tensor] = field(default_factory=dict)
    """(N,) int64 by modality: the tokens that are not padding among the positions after CLS, as in `Mask.masked`."""
    masks: Mapping[str, Mapping[str, Mask]] = field(default_factory=dict)
    """Masks by modality and pass: "contrastive" for token dropout, "unimodal" and "joint" for denoising."""
    source: str = ""
    """Name of the sources of all items."""
    parts: tuple["Batch", ...] = ()
    """Parts of the batch that are computed one after the other; see `split`."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with ``function`` applied to each of its tensors, except inputs that its parts have too."""
        inputs = self.inputs
        if not self.parts:
            inputs = {key: _map_tensors(function, tensors) for key, tensors in self.inputs.items()}
        masks = {}
        for key, by_pass in self.masks.items():
            masks[key] = {name: Mask(**_map_tensors(function, mask._asdict())) for name, mask in by_pass.items()}
        return replace(
            self,
            inputs=inputs,
            real=_map_tensors(function, self.real),
            masks=masks,
            parts=tuple(part.map(function) for part in self.parts),
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from page-locked memory this does not wait."""
        return self.map(lambda tensor: upload(tensor, device))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; torch's DataLoader calls it."""
        return self.map(Tensor.pin_memory)

    def measured(self, adapters: Mapping[str, Any]) -> "Batch":
        """The batch with the lengths of its rows, and with its real tokens, unless it has them.

        Args:
            adapters: the model's adapters by modality, of which ``token_lengths`` is used.
        """
        if self.lengths:
            return self
        lengths = {}
        input_lengths = {}
        for key, inputs in self.inputs.items():
            lengths[key] = adapters[key].token_lengths(inputs).cpu().numpy() + 1
            if "lengths" in inputs:
                # A copy: a worker moves the memory of the tensor when it sends the batch.
                input_lengths[key] = inputs["lengths"].cpu().numpy().copy()
        real = {}
        for key, inputs in self.inputs.items():
            device = next(iter(inputs.values())).device
            real[key] = upload(real_tokens(lengths[key] - 1), device)
        return replace(self, lengths=lengths, input_lengths=input_lengths, real=real)

    def split(self, count: int, adapters: Mapping[str, Any]) -> "Batch":
        """The batch with up to ``count`` parts of about equal size, each of at least one item.

        Args:
            adapters: the model's adapters by modality, of which ``take`` is used.
        """
        if count == 1:
            return self
        items = np.array_split(np.arange(len(self.keys)), min(count, len(self.keys)))
        parts = tuple(self._part(int(numbers[0]), int(numbers[-1]) + 1, adapters) for numbers in items)
        return replace(self, parts=parts)

    def _part(self, start: int, stop: int, adapters: Mapping[str, Any]) -> "Batch":
        """The items ``start`` to ``stop``."""
        rows = slice(start * self.rows, stop * self.rows)
        indices = torch.arange(rows.start, rows.stop)
        lengths = {key: counts[rows] for key, counts in self.lengths.items()}
        input_lengths = {key: counts[rows] for key, counts in self.input_lengths.items()}
        inputs = {}
        for key, tensors in self.inputs.items():
            part_lengths = input_lengths[key].tolist() if key in input_lengths else None
            inputs[key] = adapters[key].take(tensors, indices, part_lengths)
        masks = {}
        for key, masks_of_key in self.masks.items():
            masks[key] = {name: self._mask_of_rows(key, mask, rows) for name, mask in masks_of_key.items()}
        return replace(
            self,
            inputs=inputs,
            keys=self.keys[start:stop],
            captions=self.captions[start:stop],
            names=self.names[start:stop],
            targets={name: values[start:stop] for name, values in self.targets.items()},
            lengths=lengths,
            input_lengths={key: input_lengths[key] for key in input_lengths if "lengths" in inputs[key]},
            real={key: real_tokens(counts - 1) for key, counts in lengths.items()},
            masks=masks,
        )

    def _mask_of_rows(self, key: str, mask: Mask, rows: slice) -> Mask:
        """A mask of the batch for some of its rows, whose longest may be shorter."""
        lengths = self.lengths[key]
        shape = (len(lengths), int(lengths.max()) - 1)
        hidden = torch.zeros(shape, dtype=torch.bool)
        hidden.view(-1)[mask.masked] = True
        return make_mask(hidden[rows], lengths[rows] - 1)


def make_mask(hidden: Tensor, lengths: Lengths) -> Mask:
    """The mask that hides some tokens.

    Args:
        hidden: (B, at least L) bool without CLS, True = masked.
        lengths: (B,) number of tokens of each row without CLS, at most L.
    """
    longest = int(lengths.max(initial=0))
    counts = torch.from_numpy(lengths)
    real = torch.arange(longest) < counts[:, None]
    hidden = hidden[:, :longest] & real
    stays = torch.nn.functional.pad(real & ~hidden, (1, 0), value=True)
    visible = stays.sum(1)
    # False sorts before True, and a stable sort leaves the positions in order.
    keep = (~stays).byte().argsort(dim=1, stable=True)[:, : int(visible.max())]
    is_padding = torch.arange(keep.shape[1]) >= visible[:, None]
    return Mask(
        keep=keep.masked_fill(is_padding, -1),
        visible=visible.numpy(),
        masked=hidden.flatten().nonzero().squeeze(1),
        masked_of_real=hidden[real].nonzero().squeeze(1),
    )


def real_tokens(lengths: Lengths) -> Tensor:
    """(N,) int64: the real tokens of rows of these lengths, counted row by row as in a flattened (B, L)."""
    real = np.arange(lengths.max(initial=0)) < lengths[:, None]
    return torch.from_numpy(np.flatnonzero(real))


def _map_tensors(function: Callable[[Tensor], Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by name, with ``function`` applied to those that are tensors."""
    return {name: function(value) if isinstance(value, Tensor) else value for name, value in values.items()}
