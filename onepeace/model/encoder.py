"""Run blocks and final norms over a token sequence; also used by the masked decoder."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.features import Features
from onepeace.layers.precision import cast_once

from .sequence import TokenSequence

FOLDED = ("cpu", "mps")
"""Kinds of devices whose kernels are fastest, or right, with queries as wide as values: padding is part of the bias."""
SHORT = 128
"""Tokens up to which a bias for each item is smaller than the copies of queries and keys that take its place."""


def attention_bias(sequence: TokenSequence, block: int = 0) -> tuple[Tensor | None, Tensor | None]:
    """The attention bias (1 or B, H or 1, L, L), or None if no bias is needed; and the padding mask (B, L) if the bias
    does not hide padding.

    The bias holds each span's relative-position bias on the diagonal and 0 across spans. One bias (1, H, L, L) is
    broadcast to all items, and the mask stays beside it. Where a bias has rows for each item anyway, is small, or the
    device asks for it, padding is -inf in its columns. Blocks without tables (the decoder's) still mask padding.
    """
    bias = _position_bias(sequence, block)
    mask = sequence.padding_mask
    if mask is None:
        return bias, None
    is_shared = bias is not None and bias.shape[0] == 1
    if is_shared and mask.shape[1] > SHORT and mask.device.type not in FOLDED:
        return bias, mask
    dtype = sequence.tokens.dtype if bias is None else bias.dtype
    padding = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)[:, None, None]
    return padding if bias is None else bias + padding, None


def _position_bias(sequence: TokenSequence, block: int) -> Tensor | None:
    """The spans' relative-position biases (1 or B, H, L, L) for a block; None if no span has tables."""
    parts = []
    for span, buckets, tables in zip(sequence.spans, sequence.buckets, sequence.tables, strict=True):
        if tables and buckets is not None:
            table = tables[min(block, len(tables) - 1)]
            bias = F.embedding(buckets, table).permute(0, 3, 1, 2)  # (1 or B, H, L_m, L_m)
            parts.append((span, bias))
    if not parts:
        return None
    _, first = parts[0]
    if len(sequence.spans) == 1:
        return first.contiguous()  # every block reads it for every item
    batch = max(bias.shape[0] for _, bias in parts)
    length = sequence.tokens.shape[1]
    whole = first.new_zeros(batch, first.shape[1], length, length)
    for span, bias in parts:
        whole[:, :, span.start : span.stop, span.start : span.stop] = bias
    return whole


def encode(
    sequence: TokenSequence, blocks: Iterable[nn.Module], norms: nn.ModuleDict | None, out_indices: Collection[int] = ()
) -> dict[str, Features]:
    """Run the blocks over all tokens together, then each modality's own final norm, if it has one.

    ``out_indices``: indices, from 0, of the blocks whose outputs are returned as ``intermediates``, in this order.
    """
    x = sequence.tokens
    bias = None
    padding = None
    has_bias_per_block = any(len(tables) > 1 for tables in sequence.tables)
    outputs = {}
    for number, block in enumerate(blocks):
        if number == 0 or has_bias_per_block:
            bias, padding = attention_bias(sequence, number)
            if bias is not None:
                bias = cast_once(bias)
        x = block(x, sequence.spans, bias, padding)
        if number in out_indices:
            outputs[number] = sequence.split(x)
    masks = {} if sequence.padding_mask is None else sequence.split(sequence.padding_mask)
    features = {}
    for span, (key, tokens) in zip(sequence.spans, sequence.split(x).items(), strict=True):
        mask = masks.get(key)
        intermediates = tuple(Features(outputs[number][key], mask, span.grid) for number in out_indices)
        if norms is not None and key in norms:
            tokens = norms[key](tokens)
        features[key] = Features(tokens, mask, span.grid, intermediates)
    return features
