"""OFA's decoder, which writes ids of one vocabulary, and the caption head: this decoder on features of ONE-PEACE.

Its only input from the encoder is an `EncoderOutput`, so it works with any encoder.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Count, Depth, Share
from onepeace.errors import UserError, expect
from onepeace.generative.token_kinds import PositionBias, SequenceTokens, normal_init
from onepeace.heads.head import Head
from onepeace.layers.attention import HeadScaledAttention, KeysValues
from onepeace.layers.features import Features
from onepeace.layers.feedforward import FeedForward
from onepeace.layers.position import SequencePositions
from onepeace.layers.recompute import RecomputedBlock
from onepeace.layers.residual import DropPath
from onepeace.special_ids import PAD


class EncoderOutput(NamedTuple):
    """Output of an encoder for B sources.

    tokens: (B, S, D). padding_mask: (B, S), True = padding, or None without padding. positions: (1 or B, S, D),
    normalised, for the bias of the cross-attention. vectors: (B, E), embeddings of the sources, or None.
    """

    tokens: Tensor
    padding_mask: Tensor | None
    positions: Tensor
    vectors: Tensor | None = None

    def rows(self, index: Tensor) -> "EncoderOutput":
        """Select the sources ``index`` (M,), which may repeat."""
        mask = None if self.padding_mask is None else self.padding_mask[index]
        positions = self.positions if len(self.positions) == 1 else self.positions[index]
        return EncoderOutput(self.tokens[index], mask, positions)


def padding_bias(padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias (B, 1, 1, S) that is -inf where the mask (B, S) is True."""
    zeros = torch.zeros_like(padding_mask, dtype=dtype)
    return zeros.masked_fill(padding_mask, -torch.inf)[:, None, None]


class DecoderBlock(RecomputedBlock):
    """Pre-norm block: self-attention, cross-attention, feed-forward layer; a LayerNorm follows each attention."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, drop_path: float = 0.0, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.attn = HeadScaledAttention(dim, num_heads)
        self.attn_norm = nn.LayerNorm(dim)
        self.cross_attn = HeadScaledAttention(dim, num_heads)
        self.cross_attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.drop = nn.Sequential(nn.Dropout(dropout), DropPath(drop_path))

    def compute(  # type: ignore[override]
        self, x: Tensor, source: Tensor, self_bias: Tensor, cross_bias: Tensor
    ) -> Tensor:
        """Map tokens (B, T, D) to tokens (B, T, D).

        Args:
            source: (B, S, D), output of the encoder.
            self_bias: (1 or B, H, T, T), -inf at later tokens.
            cross_bias: (1 or B, H, T, S), -inf at padding of the source.
        """
        h = self.norm1(x)
        attended = self.attn(h, self.attn.keys_values(h), self_bias)
        x = x + self.drop(self.attn_norm(attended))
        return self._read(x, self.cross_attn.keys_values(source), cross_bias)

    def step(
        self, x: Tensor, past: KeysValues | None, source: KeysValues, self_bias: Tensor, cross_bias: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Map the newest token of K hypotheses per source, (B, K, D) -> (B, K, D); also returns all keys and values.

        Args:
            past: keys and values of the t earlier tokens, (B * K, H, t, head_dim).
            source: those of the encoder's tokens, (B, H, S, head_dim). The cross-attention processes K hypotheses like
                K tokens of a text, so nothing is copied for them.
            self_bias: (1 or B * K, H, 1, t + 1). cross_bias: (1 or B, H, 1, S).
        """
        h = self.norm1(x).reshape(-1, 1, x.shape[2])
        keys, values = self.attn.keys_values(h)
        if past is not None:
            past_keys, past_values = past
            keys = torch.cat([past_keys, keys], dim=2)
            values = torch.cat([past_values, values], dim=2)
        attended = self.attn(h, (keys, values), self_bias)
        x = x + self.attn_norm(attended).view_as(x)
        return self._read(x, source, cross_bias), (keys, values)

    def _read(self, x: Tensor, source: KeysValues, bias: Tensor) -> Tensor:
        """Cross-attention to the source, and the feed-forward layer."""
        attended = self.cross_attn(self.norm2(x), source, bias)
        x = x + self.drop(self.cross_attn_norm(attended))
        return x + self.drop(self.ffn(self.norm3(x)))


@dataclass
class DecoderCache:
    """State of N hypotheses for B sources; `TextDecoder.start` creates it, `TextDecoder.step` updates it.

    Hypotheses are cells of a table (B, K), where K is the largest number per source; unused cells repeat another one.
    """

    sources: list[KeysValues]
    """Keys and values of each block's cross-attention, (B, H, S, head_dim), shared by all hypotheses of a source."""
    cross_bias: Tensor
    """(1 or B, H, max_len, S)."""
    self_bias: Tensor
    """Bias of absolute positions, (1, H, max_len, max_len)."""
    cells: Tensor
    """(N,): the cell of each hypothesis in the table, numbered row by row."""
    width: int = 1
    """K."""
    past: list[KeysValues] = field(default_factory=list)
    """Keys and values of each block's self-attention, (B * K, H, t, head_dim); empty before the first token."""
    length: int = 0
    """t, the number of tokens fed to each hypothesis."""

    @property
    def max_len(self) -> int:
        return self.cross_bias.shape[2]

    def select(self, rows: Tensor) -> "DecoderCache":
        """Create a cache of the hypotheses ``rows`` (M,), in this order; they may repeat.

        This cache is not changed.
        """
        if not len(rows):
            raise ValueError("select needs at least one hypothesis")
        old_cells = self.cells[rows]
        sources, source_of_row = (old_cells // self.width).unique(return_inverse=True)
        counts = source_of_row.bincount()
        width = int(counts.max())
        cells = source_of_row * width + _rank_in_group(source_of_row, counts)
        # For each cell of the new table the one that it continues; unused cells repeat the first.
        parents = old_cells[:1].repeat(len(sources) * width).scatter_(0, cells, old_cells)
        past = [_take(pair, parents) for pair in self.past]
        selected = replace(self, cells=cells, width=width, past=past)
        if len(sources) < len(self.sources[0][0]):
            selected.sources = [_take(pair, sources) for pair in self.sources]
            if len(self.cross_bias) > 1:
                selected.cross_bias = self.cross_bias[sources]
        return selected


def _take(pair: KeysValues, index: Tensor) -> KeysValues:
    """Rows ``index`` of keys and values."""
    keys, values = pair
    return keys[index], values[index]


def _rank_in_group(group: Tensor, counts: Tensor) -> Tensor:
    """For each of M rows, the number of rows before it in its group (M,); ``counts`` are the rows of each group."""
    order = group.argsort(stable=True)
    first_of_group = counts.cumsum(0) - counts
    rank_in_order = torch.arange(len(order), device=order.device) - first_of_group[group[order]]
    return torch.empty_like(order).scatter_(0, order, rank_in_order)


class TextDecoder(nn.Module):
    """Decoder that writes ids, given an encoder's output; its output layer is tied to the embedding.

    Args:
        embedding: embedding of the vocabulary; its ``padding_idx`` is the id of padding.
        num_positions: maximum number of tokens of a text.
        num_buckets: buckets of distances between words, see `SequenceTokens`.
        drop_path: rate of the last block; rates grow linearly from 0 at the first.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        ffn_dim: int,
        embedding: nn.Embedding,
        num_positions: int,
        num_buckets: int = 256,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.token_embed = embedding
        self.words = SequenceTokens(dim, num_heads, depth, num_positions, num_buckets)
        self.self_pos = PositionBias(dim, num_heads)
        self.cross_pos = PositionBias(dim, num_heads)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, ffn_dim, rate, dropout) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)
        normal_init(self)

    def forward(self, ids: Tensor, encoded: EncoderOutput) -> Tensor:
        """Logits (B, T, V) of the token after each of ``ids`` (B, T), which begin with bos.

        Padding is on the right, where the causal mask hides it from real tokens; its logits are unspecified.

        Args:
            encoded: output of the encoder for B sources.
        """
        length = ids.shape[1]
        x = self._embed(ids)
        hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        causal = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, -torch.inf)
        positions = self.words.positions(length)
        buckets = self.words.buckets(length)
        self_bias = self.self_pos(positions, positions) + causal
        cross_bias = self._cross_bias(positions, encoded)
        for i, block in enumerate(self.blocks):
            bias = self_bias + self.words.relative_bias(i, buckets)
            x = block(x, encoded.tokens, bias, cross_bias)
        return self.logits(x)

    def start(self, encoded: EncoderOutput, max_len: int) -> DecoderCache:
        """Create a cache of one empty hypothesis per source, for at most ``max_len`` tokens including bos.

        Values that depend only on sources and positions are computed here, once.
        """
        positions = self.words.positions(max_len)
        sources = []
        for block in self.blocks:
            keys, values = expect(block, DecoderBlock).cross_attn.keys_values(encoded.tokens)
            sources.append((keys.contiguous(), values.contiguous()))  # else the product of every step would copy them
        return DecoderCache(
            sources=sources,
            cross_bias=self._cross_bias(positions, encoded),
            self_bias=self.self_pos(positions, positions),
            cells=torch.arange(len(encoded.tokens), device=encoded.tokens.device),
        )

    def step(self, ids: Tensor, cache: DecoderCache) -> Tensor:
        """Feed each hypothesis its next token (N,); returns logits (N, V) of the token after it."""
        t = cache.length
        if t >= cache.max_len:
            raise ValueError(f"the cache was started for {cache.max_len} tokens, and all of them were fed")
        num_sources = len(cache.sources[0][0])
        table = ids.new_full((num_sources * cache.width,), self.token_embed.padding_idx or 0)
        table = table.scatter(0, cache.cells, ids)
        x = self._embed(table.view(num_sources, cache.width))
        absolute = cache.self_bias[:, :, t : t + 1, : t + 1]
        buckets = self.words.buckets(cache.max_len)[:, t : t + 1, : t + 1]
        cross_bias = cache.cross_bias[:, :, t : t + 1]
        keys_values = []
        for i, block in enumerate(self.blocks):
            x, pair = expect(block, DecoderBlock).step(
                x,
                past=cache.past[i] if cache.past else None,
                source=cache.sources[i],
                self_bias=absolute + self.words.relative_bias(i, buckets),
                cross_bias=cross_bias,
            )
            keys_values.append(pair)
        cache.past = keys_values
        cache.length += 1
        return self.logits(x.flatten(0, 1)[cache.cells])

    def logits(self, x: Tensor) -> Tensor:
        """Tokens (..., D) after the last block -> (..., V)."""
        return F.linear(self.norm(x), self.token_embed.weight)

    def _embed(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return self.drop(self.words.norm(self.token_embed(ids)))

    def _cross_bias(self, positions: Tensor, encoded: EncoderOutput) -> Tensor:
        bias = self.cross_pos(positions, encoded.positions)
        if encoded.padding_mask is None:
            return bias
        return bias + padding_bias(encoded.padding_mask, bias.dtype)


@dataclass(frozen=True)
class CaptionOptions:
    """Options of a ``caption`` in ``ModelConfig.heads``; its ``on`` lists the modalities that it can read."""

    vocab_size: Count
    """Number of ids of the model's tokenizer."""
    dim: Count = 256
    depth: Depth = 3
    num_heads: Count = 4
    ffn_dim: Count = 1024
    max_tokens: Count = 48
    """Maximum length of a text in tokens, bos and eos included."""
    max_sources: Count = 512
    """Maximum number of token features of an item, CLS included."""
    num_buckets: Count = 16
    """Number of buckets of the distance between words (see `sequence_buckets`)."""
    dropout: Share = 0.1


class Caption(Head):
    """OFA's decoder (onepeace/generative/decoder.py) on the features of any modality.

    All modalities share all of its weights.
    """

    Options = CaptionOptions

    def __init__(self, dim: int, options: CaptionOptions):
        super().__init__()
        self.options = options
        self.proj = nn.Linear(dim, options.dim)
        self.norm = nn.LayerNorm(options.dim)
        self.pos_embed = SequencePositions(options.dim, options.max_sources)
        self.pos_norm = nn.LayerNorm(options.dim)
        self.decoder = TextDecoder(
            dim=options.dim,
            depth=options.depth,
            num_heads=options.num_heads,
            ffn_dim=options.ffn_dim,
            embedding=nn.Embedding(options.vocab_size, options.dim, padding_idx=PAD),
            num_positions=options.max_tokens,
            num_buckets=options.num_buckets,
            dropout=options.dropout,
        )

    def encoded(self, features: Features) -> EncoderOutput:
        """Input of the decoder, from token features (B, L, D).

        Raises:
            UserError: L is larger than ``max_sources``.
        """
        tokens = self.norm(self.proj(features.tokens))
        length = tokens.shape[1]
        if length > self.options.max_sources:
            raise UserError(
                f"an item has {length} tokens, and the caption head reads {self.options.max_sources}; "
                "raise its max_sources before training, or give shorter items"
            )
        positions = self.pos_norm(self.pos_embed((length - 1,)))
        return EncoderOutput(tokens, features.padding_mask, positions)

    def forward(self, features: Features, ids: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (B, T, vocab_size) of the token that follows each of ids (B, T), which begin with bos."""
        return self.decoder(ids, self.encoded(features))
