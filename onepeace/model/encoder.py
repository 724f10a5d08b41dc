"""Run blocks and final norms over a token sequence; also used by the masked decoder."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.features import Features
from onepeace.layers.precision import cast_once

from .sequence import TokenSequence


def attention_bias(sequence: TokenSequence, block: int = 0) -> Tensor | None:
    """The attention bias (1 or B, H or 1, L, L), or None if no bias is needed.

    It holds each span's relative-position bias on the diagonal, 0 across spans, and -inf in the columns of padding.
    Without padding or masking, one bias (1, H, L, L) is broadcast to the batch. Blocks without tables (the decoder's)
    still mask padding.
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
        batch = max(part.shape[0] for _, part in parts)
        length = sequence.tokens.shape[1]
        bias = parts[0][1].new_zeros(batch, parts[0][1].shape[1], length, length)
        for span, part in parts:
            bias[:, :, span.start : span.stop, span.start : span.stop] = part
    if sequence.padding_mask is not None:
        dtype = sequence.tokens.dtype if bias is None else bias.dtype
        padding = torch.zeros_like(sequence.padding_mask, dtype=dtype).masked_fill(sequence.padding_mask, -torch.inf)
        padding = padding[:, None, None]
        bias = padding if bias is None else bias + padding
    return bias


def encode(
    sequence: TokenSequence, blocks: Iterable[nn.Module], norms: nn.ModuleDict | None, out_indices: Collection[int] = ()
) -> dict[str, Features]:
    """Run the blocks over all tokens together, then each modality's own final norm, if it has one.

    ``out_indices``: indices, from 0, of the blocks whose outputs are returned as ``intermediates``, in this order.
    """
    x = sequence.tokens
    bias = None
    per_block = any(len(tables) > 1 for tables in sequence.tables)
    outputs = {}
    for i, block in enumerate(blocks):
        if per_block or i == 0:
            bias = attention_bias(sequence, i)
            bias = None if bias is None else cast_once(bias)
        x = block(x, sequence.spans, bias)
        if i in out_indices:
            outputs[i] = sequence.split(x)
    masks = {} if sequence.padding_mask is None else sequence.split(sequence.padding_mask)
    features = {}
    for span, (key, tokens) in zip(sequence.spans, sequence.split(x).items(), strict=True):
        mask = masks.get(key)
        between = tuple(Features(outputs[i][key], mask, span.grid) for i in out_indices)
        if norms is not None and key in norms:
            tokens = norms[key](tokens)
        features[key] = Features(tokens, mask, span.grid, between)
    return features
