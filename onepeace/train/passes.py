"""Forward passes of a step over one batch, each computed on first use and at most once.

Stems run once, as they do not depend on the masks. The unimodal teachers are the passes of the contrastive loss. Items
are encoded in groups of similar length to save padding; results have the batch's order and shape. Groups follow from
the lengths that the batch carries, so no pass waits for the device.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.data.batch import Batch, Mask
from onepeace.device import upload
from onepeace.errors import expect
from onepeace.model import Encoder, Features, StemOutput, Trained
from onepeace.train import groups
from onepeace.train.groups import Rows

T = TypeVar("T")
P = TypeVar("P", Features, StemOutput)

Pass = Callable[[Mapping[str, StemOutput], Mapping[str, Tensor]], dict[str, Features]]
"""A pass: from the stems' outputs and the visible positions, by modality, to features."""


class Passes:
    """Forward passes of a model over a batch.

    Args:
        model: the model in training mode.
        batch: the batch, from onepeace/data/builder.py. One without lengths is measured first, which waits for its
            device.
        max_padding: share of padding over all passes above which one is split into groups of similar length; 1 = never.
        sharded: whether weights are sharded over processes, which must all make the same number of groups.
    """

    def __init__(self, model: Trained, batch: Batch, max_padding: float = 1.0, sharded: bool = False):
        self.model = model
        self.batch = batch.measured(model.adapters)
        self.max_padding = max_padding
        self.sharded = sharded
        self.keys = [key for key in model.adapters if key in batch.inputs]
        self.real_tokens = 0
        """Number of tokens computed in the blocks so far, without padding."""
        self.all_tokens = 0
        """Number of tokens computed in the blocks so far, with padding."""
        self._results: dict[Any, Any] = {}

    @property
    def encoder(self) -> Encoder:
        """The model, which must be an `Encoder`."""
        return expect(self.model, Encoder)

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        inputs = next(iter(self.batch.inputs.values()))
        return next(iter(inputs.values())).device

    @cached_property
    def stems(self) -> dict[str, StemOutput]:
        """Outputs of the stems for the whole batch, padded to its longest item."""
        return {key: self._stem(key) for key in self.keys}

    def unimodal(self, key: str) -> Features:
        """One modality encoded alone, without masks, after token dropout if the recipe has it."""
        mask_name = "contrastive" if "contrastive" in self.batch.masks.get(key, {}) else None
        encode = partial(self._encode, [key], self.encoder.encode, mask_name)
        return self._once(("unimodal", key), encode)[key]

    def embedding(self, key: str) -> Tensor:
        """Unit vectors (B, E) of one modality."""
        return self._once(("embedding", key), lambda: self.encoder.embed(key, self.unimodal(key)))

    def fused(self, keys: tuple[str, ...], out_indices: Sequence[int] = ()) -> dict[str, Features]:
        """Modalities encoded together in one pass without masks and with gradient, for task heads.

        Args:
            out_indices: see `OnePeace.encode`; if given, all items are in one group.
        """
        has_dropout = "contrastive" in self.batch.masks.get(keys[0], {})
        if len(keys) == 1 and not out_indices and not has_dropout:
            return {keys[0]: self.unimodal(keys[0])}
        run = partial(self.encoder.encode, out_indices=out_indices)
        encode = partial(self._encode, keys, run, in_groups=not out_indices)
        return self._once(("fused", keys, tuple(out_indices)), encode)

    def head(self, name: str, keys: tuple[str, ...]) -> Tensor:
        """Outputs of a task head for these modalities, one row per input; see `fused`."""
        features = self.fused(keys, self.encoder.head_blocks(name))
        return self.encoder.apply_head(name, features)

    @cached_property
    def joint(self) -> dict[str, Features]:
        """The joint pass without masks and without gradient, as a teacher."""
        with torch.no_grad():
            return self._encode(self.keys, self.encoder.encode)

    def unimodal_masked(self, key: str) -> Tensor:
        """Predictions (B, L + 1, D) for one modality encoded alone with tokens masked."""
        encode = partial(self._encode, [key], self._reconstruct, "unimodal")
        return self._once(("masked", key), encode)[key].tokens

    @cached_property
    def joint_masked(self) -> dict[str, Tensor]:
        """Predictions (B, L_m + 1, D) of the joint pass with tokens of every modality masked."""
        features = self._encode(self.keys, self._reconstruct, "joint")
        return {key: features[key].tokens for key in self.keys}

    def _once(self, name: Any, compute: Callable[[], T]) -> T:
        """Result of ``compute``, called on the first use of a name."""
        if name not in self._results:
            self._results[name] = compute()
        return self._results[name]

    def _stem(self, key: str) -> StemOutput:
        """Output of the stem of a modality, in groups if that is cheaper."""
        adapter = self.model.adapters[key]
        inputs = self.batch.inputs[key]
        input_lengths = self.batch.input_lengths.get(key)
        lengths = self.batch.lengths[key]
        row_groups = groups.by_length(lengths[None], self.max_padding if adapter.stem_by_length else 1.0)
        if len(row_groups) == 1:
            return adapter.stem_tokens(inputs)
        outputs = []
        for rows in row_groups:
            group_lengths = None if input_lengths is None else input_lengths[rows].tolist()
            group_inputs = adapter.take(inputs, self._index(rows), group_lengths)
            outputs.append(adapter.stem_tokens(group_inputs))
        return self._merge(outputs, row_groups)

    def _reconstruct(self, stems: Mapping[str, StemOutput], keep: Mapping[str, Tensor]) -> dict[str, Features]:
        predictions = self.encoder.reconstruct(stems, keep)
        return {key: Features(tokens, None) for key, tokens in predictions.items()}

    def _encode(
        self,
        keys: Sequence[str],
        run: Pass,
        mask_name: str | None = None,
        in_groups: bool = True,
    ) -> dict[str, Features]:
        """Results of ``run`` over groups of similar length, in the batch's order and padded to its longest item.

        Args:
            keys: the modalities that are encoded together.
            run: function of the stems' outputs and the visible positions by modality.
            mask_name: name of the masks that hide tokens; None = all are visible.
        """
        masks: dict[str, Mask] = {}
        lengths_by_key = {key: self.batch.lengths[key] for key in keys}
        if mask_name is not None:
            masks = {key: self.batch.masks[key][mask_name] for key in keys}
            lengths_by_key = {key: mask.visible for key, mask in masks.items()}
        lengths = np.stack(list(lengths_by_key.values()))
        row_groups = self._groups(keys, lengths) if in_groups else groups.by_length(lengths, 1.0)
        self.real_tokens += int(lengths.sum())
        self.all_tokens += groups.padded_tokens(lengths, row_groups)
        if len(row_groups) == 1:
            stems = {key: self.stems[key] for key in keys}
            keep = {key: mask.keep for key, mask in masks.items()}
            return run(stems, keep)
        features_of_groups = [self._run_group(run, keys, masks, rows) for rows in row_groups]
        merged = {}
        for key in keys:
            merged[key] = self._merge([features[key] for features in features_of_groups], row_groups)
        return merged

    def _run_group(self, run: Pass, keys: Sequence[str], masks: Mapping[str, Mask], rows: Rows) -> dict[str, Features]:
        """Results of ``run`` for some rows of the batch, padded to the longest of them."""
        index = self._index(rows)
        stems = {key: self._stem_of_group(key, rows, index) for key in keys}
        keep = {key: _keep_of_group(mask, rows, index) for key, mask in masks.items()}
        return run(stems, keep)

    def _stem_of_group(self, key: str, rows: Rows, index: Tensor) -> StemOutput:
        """The stem's output for some rows, padded to the longest of them."""
        tokens_without_cls = self.batch.lengths[key][rows] - 1
        return self.stems[key].take(index, tokens_without_cls.tolist())

    def _groups(self, keys: Sequence[str], lengths: Rows) -> list[Rows]:
        """Groups of rows for a pass over items of these lengths (M, B)."""
        if not self.sharded:
            return groups.by_length(lengths, self._allowed_padding(lengths))
        is_ragged = self.model.adapters[keys[0]].padded_input is not None
        if self.max_padding >= 1 or len(keys) > 1 or not is_ragged:
            return groups.by_length(lengths, 1.0)
        return groups.in_equal_parts(lengths, groups.SHARDED_GROUPS)

    def _allowed_padding(self, lengths: Rows) -> float:
        """Maximum share of padding in a pass over items of these lengths: 1 while the step's share is below the limit.

        Groups have smaller matrix products, which is faster only if padding is a large part of all tokens, unlike the
        padding of short texts next to pictures.
        """
        real = int(lengths.sum())
        padding = groups.padded_tokens(lengths, groups.by_length(lengths, 1.0)) - real
        padding_before = self.all_tokens - self.real_tokens
        expected = sum(int(counts.sum()) for counts in self.batch.lengths.values())
        limit = self.max_padding * max(self.real_tokens + real, expected)
        return 1.0 if padding <= limit - padding_before else self.max_padding

    def _index(self, rows: Rows) -> Tensor:
        """Row numbers on the device of the batch."""
        return upload(torch.from_numpy(rows), self.device)

    def _merge(self, parts: Sequence[P], row_groups: list[Rows]) -> P:
        """Join the parts of a batch, each a group of its rows, in the batch's order and padded to the longest."""
        longest = max(part.tokens.shape[1] for part in parts)
        missing = [longest - part.tokens.shape[1] for part in parts]
        order = self._index(np.argsort(np.concatenate(row_groups)))
        tokens = []
        for part, count in zip(parts, missing, strict=True):
            tokens.append(F.pad(part.tokens, (0, 0, 0, count)))
        joined: dict[str, Any] = {"tokens": torch.cat(tokens)[order], "padding_mask": None}
        if any(missing) or any(part.padding_mask is not None for part in parts):
            masks = []
            for part, count in zip(parts, missing, strict=True):
                masks.append(F.pad(_dense_mask(part), (0, count), value=True))
            joined["padding_mask"] = torch.cat(masks)[order]
        grids: list[Any] = [part.grid for part in parts]
        joined["grid"] = None if None in grids else max(grids)  # None where tokens were left out
        first = parts[0]
        if isinstance(first, StemOutput):
            joined |= _joined_rows(parts, order)
        return first._replace(**joined)


def _joined_rows(stems: Sequence[Any], order: Tensor) -> dict[str, Tensor]:
    """Outputs of the stems with one row per item: those of all groups together, in the order of the batch."""
    joined = {}
    for name in ("type_ids", "pooled"):
        rows = [getattr(stem, name) for stem in stems]
        if rows[0] is not None:
            joined[name] = torch.cat(rows)[order]
    return joined


def _keep_of_group(mask: Mask, rows: Rows, index: Tensor) -> Tensor:
    """Positions of the visible tokens of some rows, padded to the longest of them."""
    most_visible = mask.visible[rows].max()
    return mask.keep[index, :most_visible]


def _dense_mask(part: Features | StemOutput) -> Tensor:
    """The padding mask (B, L), all False when nothing is padding."""
    if part.padding_mask is not None:
        return part.padding_mask
    return part.tokens.new_zeros(part.tokens.shape[:2], dtype=torch.bool)
