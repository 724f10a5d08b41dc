"""Text: token ids -> tokens. The shortest adapter."""

from typing import Any

import torch
from torch import Tensor, nn

from onepeace.config.reader import Count
from onepeace.layers.position import SequencePositions, sequence_buckets, sequence_table_rows, trunc_normal
from onepeace.special_ids import PAD

from ..sequence import StemOutput, TokenSequence, padding
from ..stems import TEXT_STEMS, make_stem
from .base import Adapter, AdapterOptions, values_are_known


class Embedding(nn.Embedding):
    """nn.Embedding that is not initialised on the meta device, where torch's normal_ would import the compiler."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class TextAdapter(Adapter):
    """Adapter for text: token embedding, learned positions (CLS is position 0), logarithmic relative-position buckets.

    Batch: ``ids`` (B, L) int64, right-padded with 1, each row ending with eos; ``lengths`` (B,) int64, the number of
    tokens of each item, if any is padded (counted if omitted, except in an exported graph).

    Args:
        vocab_size: rows of the token embedding.
        num_positions: longest sequence, CLS included.
        num_buckets: b; the bias table has 2 b - 1 + 3 rows.
        stem: None = the token embedding, or a key of TEXT_STEMS for a pretrained network with its own embedding;
            further options are passed to it.
    """

    padded_input = "ids"
    stem_by_length = False  # looking up costs nothing, but each group's gradient would be as large as the whole table

    def __init__(
        self,
        options: AdapterOptions,
        *,
        vocab_size: Count,
        num_positions: Count = 514,
        num_buckets: Count = 256,
        stem: str | None = None,
        **stem_options: Any,
    ):
        super().__init__(options, sequence_table_rows(num_buckets))
        self.num_buckets = num_buckets
        if stem is None and stem_options:
            raise TypeError(f"the token embedding has no option {', '.join(stem_options)}")
        if stem is None:
            self.token_embed = Embedding(vocab_size, options.dim, padding_idx=PAD)
        else:
            self.stem = make_stem(TEXT_STEMS, stem, options.dim, stem_options, options.key)
        self.pos_embed = SequencePositions(options.dim, num_positions)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.stem is None:
            trunc_normal(self.token_embed.weight)
            with torch.no_grad():
                self.token_embed.weight[PAD].zero_()

    def stem_tokens(self, batch: dict[str, Tensor]) -> StemOutput:
        ids = batch["ids"]
        if ids.dtype not in (torch.int64, torch.int32) or ids.ndim != 2:
            raise ValueError(f"ids should be (B, L) int64, not {tuple(ids.shape)} {ids.dtype}")
        limit = len(self.pos_embed.weight) - 1
        if ids.shape[1] > limit:
            raise ValueError(f"{ids.shape[1]} text tokens exceed this model's limit of {limit}; shorten the text")
        lengths = batch.get("lengths")
        if lengths is None and not torch.compiler.is_compiling():
            # A mask that hides nothing is slower; where looking would mean to wait for the device, it is made anyway.
            if not values_are_known(ids) or bool((ids[:, -1:] == PAD).any()):
                lengths = self.token_lengths(batch)
        mask = None if lengths is None else padding(lengths, ids.shape[1])
        tokens = self.token_embed(ids) if self.stem is None else self.stem(ids, mask)
        return StemOutput(tokens, mask, (ids.shape[1],), batch.get("type_ids"))

    def forward(self, stem: StemOutput, keep: Tensor | None = None) -> TokenSequence:
        tokens, mask = self.with_cls(stem)
        tokens = tokens + self.pos_embed(stem.grid)
        buckets = sequence_buckets(tokens.shape[1], self.num_buckets, tokens.device)
        return self.assemble(tokens, mask, stem, buckets, self.bias_tables(), keep)

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        if "lengths" in batch:
            return batch["lengths"]
        return (batch["ids"] != PAD).sum(1)

    @staticmethod
    def decoder_positions(dim: int, *, num_positions: int = 514, **_: Any) -> nn.Module:
        return SequencePositions(dim, num_positions)
