"""Blocks and final norms over a token sequence. The decoder runs through the same function. Next file: model.py."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.features import Features
from onepeace.layers.precision import cast_once

from .sequence import TokenSequence


def attention_bias(sequence: TokenSequence, block: int = 0) -> Tensor | None:
    """What is added to the attention logits: (1 or B, H or 1, L, L), or None if there is nothing to add.

    Each span's own table on the diagonal, 0 across spans, -inf in the columns of padding. While nothing is padded or
    hidden it is one broadcast (1, H, L, L) for the whole batch. A stack without tables (the decoder) still masks.
    """
    parts = []
    for span, buckets, tables in zip(sequence.spans, sequence.buckets, sequence.tables, strict=True):
        if tables and buckets is not None:
            table = tables[min(block, len(tables) - 1)]
            parts.append((span, F.embedding(buckets, table).permute(0, 3, 1, 2)))  # (1 or B, H, L_m, L_m)
    bias = None
    if len(parts) == 1 and len(sequence.spans) == 1:
        bias = parts[0][1].contiguous()  # every block reads it for every item
    elif parts:
        batch, length = max(len(part) for _, part in parts), sequence.tokens.shape[1]
        bias = parts[0][1].new_zeros(batch, parts[0][1].shape[1], length, length)
        for span, part in parts:
            bias[:, :, span.start : span.stop, span.start : span.stop] = part
    if sequence.padding_mask is not None:
        dtype = sequence.tokens.dtype if bias is None else bias.dtype
        hidden = torch.zeros_like(sequence.padding_mask, dtype=dtype).masked_fill(sequence.padding_mask, -torch.inf)
        hidden = hidden[:, None, None]
        bias = hidden if bias is None else bias + hidden
    return bias


def encode(sequence: TokenSequence, blocks: Iterable[nn.Module], norms: nn.ModuleDict | None) -> dict[str, Features]:
    """Run the blocks over all tokens together, then each modality's own final norm."""
    x, bias = sequence.tokens, None
    per_block = any(len(tables) > 1 for tables in sequence.tables)
    for i, block in enumerate(blocks):
        if per_block or i == 0:
            bias = attention_bias(sequence, i)
            bias = None if bias is None else cast_once(bias)
        x = block(x, sequence.spans, bias)
    masks = {} if sequence.padding_mask is None else sequence.split(sequence.padding_mask)
    return {
        key: Features(tokens if norms is None else norms[key](tokens), masks.get(key))
        for key, tokens in sequence.split(x).items()
    }
