"""Base of the adapters: CLS, type embeddings, selection of visible tokens, bias tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Natural
from onepeace.layers.features import Features
from onepeace.layers.gather import gather_pairs, gather_tokens, take_rows
from onepeace.layers.position import trunc_normal
from onepeace.layers.residual import DropPath

from ..sequence import StemOutput, TokenSequence, TokenSpan
from ..stems import PretrainedStem


class BiasTables(nn.ParameterList):
    """Tables (rows, H) of relative-position biases, one for all blocks or one per block.

    They are read by calling the module, because tools that move or gather parameters hook into module calls.
    """

    __call__ = nn.Module.__call__  # torch's parameter lists do not support calls

    def forward(self) -> list[Tensor]:
        return list(self)


@dataclass(frozen=True)
class AdapterOptions:
    """Arguments that the model passes to each adapter, and options that all adapters have."""

    key: str
    """The modality."""
    dim: int
    """D, width of the tokens."""
    num_heads: int
    """H, heads of the bias tables."""
    num_tables: int
    """Number of tables of relative-position biases: 1 for all blocks, or one per block."""
    num_types: Natural = 0
    """Number of learned vectors for type ids of items: type id k adds the first k + 1 to all tokens (released code:
    type_embedding, for tasks with two pictures)."""
    mean_cls: bool = False
    """Initialise CLS with its learned vector plus the mean of the visible tokens, so that the pooled features of a
    pretrained stem bypass the blocks and reach the output from the first step on."""
    max_cls: bool = False
    """Add the per-channel maximum of the visible tokens to CLS, which preserves short events in a long item."""


class Adapter(nn.Module):
    """Raw input of one modality -> tokens (paper: modality adapters).

    A subclass implements ``stem_tokens`` (raw batch -> Stem, independent of the mask, so that one call serves all
    passes of a step), ``forward`` (Stem -> TokenSequence: adds CLS, positions and buckets, drops masked tokens),
    ``token_lengths`` and ``decoder_positions`` (the position embedding of masked tokens in the decoder).

    With a pretrained stem, a batch may contain ``features``, the output of ``stem_features``, instead of its raw input;
    ``lengths`` then counts tokens.

    A batch is padded if and only if it has ``lengths`` (B,), which must be added for items of unequal length. So an
    exported graph does not depend on values, and unpadded batches need no mask, which is faster.

    Args:
        table_rows: rows of a table of relative-position biases.
    """

    padded_input: str | None = None
    """Name of the input that may be padded and that ``lengths`` describes."""

    over_time = False
    """Whether rows of the sequences are frames, and blocks also attend over time (`ClipBlock`)."""

    stem_by_length = True
    """Whether the stem is cheaper on groups of items of similar length."""

    def __init__(self, options: AdapterOptions, table_rows: int):
        super().__init__()
        self.key = options.key
        self.mean_cls = options.mean_cls
        self.max_cls = options.max_cls
        self.stem: Any = None
        """Network from the raw input to tokens, if it is a module of its own; a subclass sets it."""
        self.cls_mlp: PooledMLP | None = None
        self.type_embed: nn.Parameter | None = None
        self.cls_token = nn.Parameter(torch.empty(1, 1, options.dim))
        self.bias_tables = BiasTables([torch.empty(table_rows, options.num_heads) for _ in range(options.num_tables)])
        if options.num_types:
            self.type_embed = nn.Parameter(torch.empty(options.num_types, options.dim))

    def reset_parameters(self) -> None:
        trunc_normal(self.cls_token)
        for table in self.bias_tables:
            nn.init.zeros_(table)
        if self.type_embed is not None:
            nn.init.zeros_(self.type_embed)

    @property
    def seconds_per_token(self) -> float:
        """Seconds from one token to the next; 0 if tokens are not points in time."""
        return 0.0

    def stem_tokens(self, batch: dict[str, Tensor]) -> StemOutput:
        raise NotImplementedError

    def stem_features(self, batch: dict[str, Tensor]) -> Tensor:
        """The feature map (B, ..., channels) of a pretrained stem, before its projection."""
        raise NotImplementedError

    def pretrained_stem(self) -> Any:
        """The stem if it is a pretrained network; otherwise ValueError."""
        if not isinstance(self.stem, PretrainedStem):
            raise ValueError(f"the stem of {self.key} has no features of its own: it is trained with the model")
        return self.stem

    def make_cls_mlp(self, dim: int, hidden: int, dropout: float, drop_path: float) -> "PooledMLP | None":
        """Create the MLP that adds the mean and maximum of a pretrained stem's features to CLS, before the blocks and
        after the final norm.

        The blocks then start from the accuracy of an MLP on pooled features, and add to it. Unlike tokens, the features
        are not normalised before pooling, so that silence has little weight.

        Args:
            hidden: width of the hidden layer; 0 = no MLP.
            dropout: dropout rate of the input and of the hidden layer.
            drop_path: probability that, in training, a sample's final CLS is the MLP's second term alone.
        """
        if not hidden:
            return None
        return PooledMLP(self.pretrained_stem().proj.in_features, hidden, dim, dropout, drop_path)

    def pooled(self, features: Tensor, mask: Tensor | None) -> Tensor | None:
        """Compute the two terms (B, 2, D) of CLS from features (B, L, channels) of whole items; None without an MLP."""
        if self.cls_mlp is None:
            return None
        # Not of a Linear layer, whose ``weight`` is a method once torch.ao has quantised it.
        x = features.to(self.cls_mlp.norm.weight.dtype)
        if mask is not None:
            x = x.masked_fill(mask.unsqueeze(-1), 0.0)
        mean_and_maximum = torch.cat([mean_of_tokens(x, mask), maximum_of_tokens(x, mask)], dim=-1)
        return self.cls_mlp(mean_and_maximum.squeeze(1))

    def take(self, batch: dict[str, Tensor], rows: Tensor, lengths: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Select rows of the raw input, and trim unneeded padding; ``lengths`` as in `take_rows`."""
        padded = "features" if "features" in batch else self.padded_input
        return take_rows(batch, rows, lengths, padded)

    def numbered(self, batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """The raw input of items of ``count`` consecutive rows, with the number of each row in its item as type id.

        It stays as it is if it has type ids, or if there are too few type embeddings: a text is about all rows.
        """
        if count == 1 or "type_ids" in batch or self.type_embed is None or len(self.type_embed) < count:
            return batch
        rows = next(iter(batch.values()))
        return {**batch, "type_ids": torch.arange(len(rows), device=rows.device) % count}

    def forward(self, stem: StemOutput, keep: Tensor | None = None) -> TokenSequence:
        """Add CLS and positions to the tokens.

        ``keep`` (B, K) int64: ids of the visible tokens, ascending, CLS (0) first, padded with -1. They keep their
        original positions and distances (released code: preserve_ids).
        """
        raise NotImplementedError

    def item_features(self, features: Features, pooled: Tensor | None = None) -> Features:
        """Features of the rows of ``forward``, after the final norm, with one row for each item.

        The second of the terms ``pooled`` (B, 2, D) is added to CLS, also normalised: both weigh the same.
        """
        if self.cls_mlp is None or pooled is None:
            return features
        cls = features.tokens[:, :1]
        added = F.layer_norm(pooled[:, 1:], cls.shape[-1:]).to(cls.dtype)
        cls = self.cls_mlp.drop_path(cls) + added
        return features._replace(tokens=torch.cat([cls, features.tokens[:, 1:]], dim=1))

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        """Number of tokens of each item (B,), without CLS and padding."""
        raise NotImplementedError

    def token_positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """The extent (L, 2) that each token of a single item covers, and its unit; here the token index."""
        first = torch.arange(int(self.token_lengths(batch)[0]))
        return torch.stack([first, first + 1], dim=1), "token"

    @staticmethod
    def decoder_positions(dim: int, **options: Any) -> nn.Module:
        """A module that maps a grid to positions (1, L + 1, dim)."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of position and CLS parameters, which have no weight decay (released code)."""
        return {"cls_token", "pos_embed.weight"}

    def with_cls(self, stem: StemOutput) -> tuple[Tensor, Tensor | None]:
        """Prepend CLS; returns tokens (B, L + 1, D) and their mask."""
        batch = stem.tokens.shape[0]  # not len(), which would fix the size of an exported graph
        cls = self.cls_token.to(stem.tokens.dtype).expand(batch, -1, -1)
        if stem.pooled is not None:
            cls = cls + stem.pooled[:, :1]
        tokens = torch.cat([cls, stem.tokens], dim=1)
        mask = stem.padding_mask
        if mask is not None:
            mask = torch.cat([mask.new_zeros(batch, 1), mask], dim=1)
        return tokens, mask

    def assemble(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        stem: StemOutput,
        buckets: Tensor,
        tables: list[Tensor],
        keep: Tensor | None,
        gathered: bool = False,
    ) -> TokenSequence:
        """Add the type embedding, drop masked tokens (unless already ``gathered``), and zero the padding."""
        if self.type_embed is not None:
            tokens = tokens + _type_vectors(self.type_embed, stem.type_ids, tokens)
        grid: tuple[int, ...] | None = stem.grid
        if keep is not None:
            grid = None
            buckets = gather_pairs(buckets, keep)
            mask = keep < 0
            if not gathered:
                tokens = gather_tokens(tokens, keep)
        if mask is not None:
            tokens = tokens.masked_fill(mask.unsqueeze(-1), 0.0)
        tokens = self._add_to_cls(tokens, mask)
        span = TokenSpan(self.key, 0, tokens.shape[1], grid)
        return TokenSequence(tokens=tokens, padding_mask=mask, spans=(span,), buckets=(buckets,), tables=(tables,))

    def _add_to_cls(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Add the mean and the maximum of the other tokens to CLS, where the options say so."""
        if not (self.mean_cls or self.max_cls):
            return tokens
        cls = tokens[:, :1]
        other_tokens = tokens[:, 1:]
        padded = None if mask is None else mask[:, 1:]
        if self.mean_cls:
            cls = cls + mean_of_tokens(other_tokens, padded)
        if self.max_cls:
            cls = cls + maximum_of_tokens(other_tokens, padded)
        return torch.cat([cls, other_tokens], dim=1)


def _type_vectors(type_embed: Tensor, type_ids: Tensor | None, tokens: Tensor) -> Tensor:
    """The vectors (B, 1, D) of the items' type ids, which are 0 if none are given, for tokens (B, L, D)."""
    if type_ids is None:
        type_ids = tokens.new_zeros(tokens.shape[0], dtype=torch.long)
    return type_embed.cumsum(0)[type_ids].unsqueeze(1)


def mean_of_tokens(x: Tensor, padded: Tensor | None) -> Tensor:
    """Mean over L (B, 1, D) of tokens (B, L, D) that are zero where ``padded`` (B, L)."""
    if padded is None:
        return x.sum(1, keepdim=True) / x.shape[1]
    count = (~padded).sum(1).clamp_min(1)[:, None, None]
    return x.sum(1, keepdim=True) / count


def maximum_of_tokens(x: Tensor, padded: Tensor | None) -> Tensor:
    """Maximum over L (B, 1, D) of tokens (B, L, D), without those ``padded`` (B, L); 0 if all are."""
    if padded is None:
        return x.amax(1, keepdim=True)
    largest = x.masked_fill(padded[..., None], -torch.inf).amax(1, keepdim=True)
    is_empty = padded.all(1)[:, None, None]
    return largest.masked_fill(is_empty, 0.0)


class PooledMLP(nn.Module):
    """LayerNorm, a hidden layer with GELU and a linear layer: mean and maximum (B, 2 channels) -> (B, 2, dim)."""

    def __init__(self, channels: int, hidden: int, dim: int, dropout: float, drop_path: float):
        super().__init__()
        self.norm = nn.LayerNorm(2 * channels)
        self.fc1 = nn.Linear(2 * channels, hidden)
        self.fc2 = nn.Linear(hidden, 2 * dim)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(self.dropout(self.norm(x))))
        return self.fc2(self.dropout(hidden)).unflatten(-1, (2, -1))


def values_are_known(x: Tensor) -> bool:
    """Whether input values can be read at once: not while tracing a graph, nor from a device that would be waited for,
    nor from a tensor without values (meta, or torch's FakeTensor, which is a subclass)."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()
