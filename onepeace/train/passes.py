"""Forward passes of a step over one batch, each computed on first use and at most once.

Stems run once, as they do not depend on the masks. The unimodal teachers are the passes of the contrastive loss. Items
are encoded in groups of similar length to save padding; results have the batch's order and shape.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.data.batch import Batch, trim
from onepeace.errors import expect
from onepeace.model import Encoder, Features, StemOutput, Trained
from onepeace.train import parallel

T = TypeVar("T")
P = TypeVar("P", Features, StemOutput)


class Passes:
    """Forward passes of a model over a batch.

    Args:
        model: the model in training mode.
        batch: the batch, from onepeace/data/builder.py.
        max_padding: share of padding over all passes above which one is split into groups of similar length; 1 = never.
        agree: whether all processes make the same number of groups: sharded blocks must run equally often in each.
    """

    def __init__(self, model: Trained, batch: Batch, max_padding: float = 1.0, agree: bool = False):
        self.model, self.batch, self.max_padding, self.agree = model, batch, max_padding, agree
        self.keys = [key for key in model.adapters if key in batch.inputs]
        self.real_tokens = self.all_tokens = 0
        """Tokens computed in the blocks so far, without and with padding."""
        self._made: dict[Any, Any] = {}

    @property
    def encoder(self) -> Encoder:
        """The model, which must be an `Encoder`."""
        return expect(self.model, Encoder)

    @cached_property
    def lengths(self) -> dict[str, Tensor]:
        """Number of tokens (B,) of each item, with CLS, by modality."""
        return {key: self.model.adapters[key].token_lengths(self.batch.inputs[key]) + 1 for key in self.keys}

    @cached_property
    def stems(self) -> dict[str, StemOutput]:
        """Outputs of the stems for the whole batch, padded to its longest item."""
        stems = {}
        for key in self.keys:
            adapter, inputs = self.model.adapters[key], self.batch.inputs[key]
            groups = length_groups(self.lengths[key], self.max_padding if adapter.stem_by_length else 1.0)
            parts = [adapter.stem_tokens(adapter.take(inputs, rows) if len(groups) > 1 else inputs) for rows in groups]
            stems[key] = _merge(parts, groups)
        return stems

    def _once(self, name: Any, make: Callable[[], T]) -> T:
        """Result of ``make``, called on the first use of a name."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def unimodal(self, key: str) -> Features:
        """One modality encoded alone, without masks, after token dropout if the recipe has it."""
        masks = self.batch.masks.get(key, {})
        keep = {key: masks["contrastive"].keep} if "contrastive" in masks else {}
        return self._once(("unimodal", key), lambda: self._by_length([key], keep, self.encoder.encode))[key]

    def embedding(self, key: str) -> Tensor:
        """Unit vectors (B, E) of one modality."""
        return self._once(("embedding", key), lambda: self.encoder.embed(key, self.unimodal(key)))

    def fused(self, keys: tuple[str, ...], out_indices: Sequence[int] = ()) -> dict[str, Features]:
        """Modalities encoded together in one pass without masks and with gradient, for task heads.

        Args:
            out_indices: see `OnePeace.encode`; if given, all items are in one group.
        """
        if len(keys) == 1 and not out_indices and "contrastive" not in self.batch.masks.get(keys[0], {}):
            return {keys[0]: self.unimodal(keys[0])}
        encode = partial(self.encoder.encode, out_indices=out_indices)
        name = ("fused", keys, tuple(out_indices))
        return self._once(name, lambda: self._by_length(keys, {}, encode, grouped=not out_indices))

    def head(self, name: str, keys: tuple[str, ...]) -> Tensor:
        """Outputs of a task head for these modalities, one row per input; see `fused`."""
        return self.encoder.apply_head(name, self.fused(keys, self.encoder.head_blocks(name)))

    @cached_property
    def joint(self) -> dict[str, Features]:
        """The joint pass without masks and without gradient, as a teacher."""
        with torch.no_grad():
            return self._by_length(self.keys, {}, self.encoder.encode)

    def unimodal_masked(self, key: str) -> Tensor:
        """Predictions (B, L + 1, D) for one modality encoded alone with tokens masked."""
        keep = {key: self.batch.masks[key]["unimodal"].keep}
        return self._once(("masked", key), lambda: self._by_length([key], keep, self._reconstruct))[key].tokens

    @cached_property
    def joint_masked(self) -> dict[str, Tensor]:
        """Predictions (B, L_m + 1, D) of the joint pass with tokens of every modality masked."""
        keep = {key: self.batch.masks[key]["joint"].keep for key in self.keys}
        return {key: out.tokens for key, out in self._by_length(self.keys, keep, self._reconstruct).items()}

    def _allowed(self, lengths: Tensor) -> float:
        """Maximum share of padding in a pass over items of these lengths: 1 while the step's share is below the limit.

        Groups have smaller matrix products, which is faster only if padding is a large part of all tokens, unlike the
        padding of short texts next to pictures.
        """
        real, longest = int(lengths.sum()), int(lengths.amax(1).sum())
        expected = sum(int(own.sum()) for own in self.lengths.values())
        spare = self.max_padding * max(self.real_tokens + real, expected) - (self.all_tokens - self.real_tokens)
        return 1.0 if longest * lengths.shape[1] - real <= spare else self.max_padding

    def _reconstruct(self, stems: Mapping[str, StemOutput], keep: Mapping[str, Tensor]) -> dict[str, Features]:
        return {key: Features(tokens, None) for key, tokens in self.encoder.reconstruct(stems, keep).items()}

    def _by_length(
        self,
        keys: Sequence[str],
        keep: Mapping[str, Tensor],
        run: Callable[[Mapping[str, StemOutput], Mapping[str, Tensor]], dict[str, Features]],
        grouped: bool = True,
    ) -> dict[str, Features]:
        """Results of ``run`` over groups of similar length, in the batch's order and padded to its longest item."""
        stems = {key: self.stems[key] for key in keys}
        lengths = torch.stack([(keep[key] >= 0).sum(1) if key in keep else self.lengths[key] for key in keys])
        groups = length_groups(lengths, self._allowed(lengths) if grouped else 1.0, self.agree)
        self.real_tokens += int(lengths.sum())
        self.all_tokens += sum(len(rows) * int(lengths[:, rows].amax(1).sum()) for rows in groups)
        if len(groups) == 1:
            return run(stems, keep)
        parts = []
        for rows in groups:
            seen = {key: trim(chosen[rows]) for key, chosen in keep.items()}
            parts.append(run({key: stem.take(rows) for key, stem in stems.items()}, seen))
        return {key: _merge([part[key] for part in parts], groups) for key in keys}


def length_groups(lengths: Tensor, max_padding: float, agree: bool = False) -> list[Tensor]:
    """Groups of rows of similar length, each with a share of padding of at most ``max_padding``.

    Args:
        lengths: (B,) tokens of each item, or (M, B) for M modalities in one pass, each padded to its own longest.
        max_padding: maximum share; 1 = one group.
        agree: see `Passes`.

    Returns:
        Row numbers, ascending in each group; each row is in one group.
    """
    lengths = torch.atleast_2d(lengths)
    rows = lengths.sum(0).argsort(descending=True, stable=True)
    groups = [rows]
    if max_padding < 1:
        groups = _greedy(lengths[0], rows, max_padding) if len(lengths) == 1 else _halves(lengths, rows, max_padding)
    count = max(parallel.gather_objects(len(groups))) if agree else len(groups)
    if count != len(groups):
        groups = list(rows.tensor_split(count))
    return [part.sort().values for part in groups]


def _greedy(lengths: Tensor, rows: Tensor, max_padding: float) -> list[Tensor]:
    """Fill groups from the longest row on, which makes the fewest groups."""
    groups, start, total = [], 0, 0
    values = lengths[rows].tolist()
    for i, length in enumerate(values):
        if total + length < (1 - max_padding) * values[start] * (i - start + 1):
            groups.append(rows[start:i])
            start, total = i, 0
        total += length
    return [*groups, rows[start:]]


def _halves(lengths: Tensor, rows: Tensor, max_padding: float) -> list[Tensor]:
    """Halve by the modality with most padding until all groups fit, as no single order suits several modalities."""
    part = lengths[:, rows]
    padding = (part.amax(1, keepdim=True) - part).sum(1)
    if padding.sum() <= max_padding * part.amax(1).sum() * len(rows):
        return [rows]
    ordered = rows[part[padding.argmax()].argsort(stable=True)]
    middle = len(rows) // 2
    return _halves(lengths, ordered[:middle], max_padding) + _halves(lengths, ordered[middle:], max_padding)


def _merge(parts: Sequence[P], groups: Sequence[Tensor]) -> P:
    """Join the parts of a batch, each a group of its rows, in the batch's order and padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    order, longest = torch.cat(list(groups)).argsort(), max(part.tokens.shape[1] for part in parts)
    padded: dict[str, list[Tensor]] = {"tokens": [], "padding_mask": []}
    for part in parts:
        missing, mask = longest - part.tokens.shape[1], part.padding_mask
        mask = part.tokens.new_zeros(part.tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        padded["tokens"].append(F.pad(part.tokens, (0, 0, 0, missing)))
        padded["padding_mask"].append(F.pad(mask, (0, missing), value=True))
    for name in ("type_ids", "pooled"):  # of a stem, one row per item
        if getattr(parts[0], name, None) is not None:
            padded[name] = [getattr(part, name) for part in parts]
    joined: dict[str, Any] = {name: torch.cat(values)[order] for name, values in padded.items()}
    if not joined["padding_mask"].any():
        joined["padding_mask"] = None
    grids: list[Any] = [part.grid for part in parts]  # None where tokens were left out
    joined["grid"] = None if None in grids else max(grids)
    return parts[0]._replace(**joined)
