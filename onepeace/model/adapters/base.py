"""What adapters share: CLS, type embeddings, leaving tokens out, bias tables."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.features import Features
from onepeace.layers.gather import gather_pairs, gather_tokens, take_rows
from onepeace.layers.position import trunc_normal

from ..sequence import Span, Stem, TokenSequence
from ..stems import PretrainedStem


class BiasTables(nn.ParameterList):
    """Tables (rows, H) of relative-position biases, one for all blocks or one per block.

    They are read by calling it, as tools that move or gather parameters do their work when a module is called.
    """

    __call__ = nn.Module.__call__  # torch's lists refuse to be called

    def forward(self) -> list[Tensor]:
        return list(self)


class Adapter(nn.Module):
    """Raw input of one modality -> tokens (paper: modality adapters).

    A subclass gives ``stem_tokens`` (raw batch -> Stem; it does not depend on what is masked, so one call serves all
    passes of a step), ``forward`` (Stem -> TokenSequence: CLS, positions, buckets, masked tokens left out),
    ``token_lengths`` and ``decoder_positions`` (the positions of its masked tokens in the decoder).

    With a stem whose network was trained elsewhere, a batch may hold ``features``, what ``stem_features`` gives, in
    place of its raw input; ``lengths`` then counts tokens.

    A batch has padding if, and only if, it has ``lengths`` (B,): whoever makes a batch of unequal items adds them. So
    an exported graph does not depend on values, and unpadded batches do without masks, which is faster.

    Args:
        key: the modality.
        dim, num_heads: width D of the tokens, heads H of the bias tables.
        num_tables: 1 table of relative-position biases for all blocks, or one per block.
        table_rows: rows of a table.
        num_types: learned vectors added to all tokens by the item's type id: k adds the first k + 1 (released code:
            type_embedding, for tasks with two pictures).
        mean_cls: CLS starts as its learned vector plus the mean of the other tokens, of those that are left in. So what
            a pretrained stem says of the whole item reaches the output from the first step on, past all blocks.
        max_cls: likewise plus the maximum of each channel over them, which short events in a long item do not drown in.
    """

    padded_input: str | None = None
    """The input that ``lengths`` are about and whose end may be padding."""

    over_time = False
    """Whether the rows of its sequences are frames, which the blocks relate over time (`ClipBlock`)."""

    stem_by_length = True
    """Whether the stem of items of many lengths is cheaper in groups of similar length."""

    def __init__(
        self,
        key: str,
        dim: int,
        num_heads: int,
        num_tables: int,
        table_rows: int,
        num_types: int = 0,
        mean_cls: bool = False,
        max_cls: bool = False,
    ):
        super().__init__()
        self.key, self.mean_cls, self.max_cls = key, mean_cls, max_cls
        self.cls_mlp: PooledMLP | None = None
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.bias_tables = BiasTables([torch.empty(table_rows, num_heads) for _ in range(num_tables)])
        if num_types:
            self.type_embed = nn.Parameter(torch.empty(num_types, dim))

    def reset_parameters(self) -> None:
        trunc_normal(self.cls_token)
        for zero in [*self.bias_tables, *([self.type_embed] if hasattr(self, "type_embed") else [])]:
            nn.init.zeros_(zero)

    def stem_tokens(self, batch: dict[str, Tensor]) -> Stem:
        raise NotImplementedError

    def stem_features(self, batch: dict[str, Tensor]) -> Tensor:
        """The feature map (B, ..., channels) of a pretrained stem, before its projection."""
        raise NotImplementedError

    def pretrained_stem(self) -> Any:
        """The stem, if it is a network that was trained elsewhere; else ValueError."""
        stem = getattr(self, "stem", None)
        if not isinstance(stem, PretrainedStem):
            raise ValueError(f"the stem of {self.key} has no features of its own: it is trained with the model")
        return stem

    def make_cls_mlp(self, dim: int, hidden: int, dropout: float) -> "PooledMLP | None":
        """The MLP through which mean and maximum of a pretrained stem's features are added to CLS.

        Blocks then start from what an MLP on the pooled features alone is worth. Unlike tokens these are not normalised
        before they are pooled, so that silence weighs little.

        Args:
            hidden: width of the hidden layer; 0 = no MLP.
            dropout: of what it reads and of the hidden layer.
        """
        return PooledMLP(2 * self.pretrained_stem().proj.in_features, hidden, dim, dropout) if hidden else None

    def pooled(self, features: Tensor, mask: Tensor | None) -> Tensor | None:
        """Pool the features (B, L, channels) of whole items into what is added to CLS, (B, D); None without an MLP."""
        if self.cls_mlp is None:
            return None
        x = features.to(self.cls_mlp.fc1.weight.dtype)
        if mask is not None:
            x = x.masked_fill(mask.unsqueeze(-1), 0.0)
        return self.cls_mlp(torch.cat(pool(x, mask, mean=True, maximum=True), dim=-1)).squeeze(1)

    def take(self, batch: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The raw input of these rows, without the padding that none of them needs."""
        return take_rows(batch, rows, "features" if "features" in batch else self.padded_input)

    def forward(self, stem: Stem, keep: Tensor | None = None) -> TokenSequence:
        """Tokens with CLS and positions.

        ``keep`` (B, K) int64: ids of the tokens to leave in, ascending, CLS (0) first, padded with -1. Kept tokens have
        the positions and distances they had among all (released code: preserve_ids).
        """
        raise NotImplementedError

    def item_features(self, features: Features) -> Features:
        """Features with a row for each item, from those with the rows that ``forward`` made."""
        return features

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        """Number of tokens of each item (B,), without CLS and padding."""
        raise NotImplementedError

    def token_positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """What each token of a single item covers, (L, 2), and the unit: here the token's number and the next one."""
        first = torch.arange(int(self.token_lengths(batch)[0]))
        return torch.stack([first, first + 1], dim=1), "token"

    @staticmethod
    def decoder_positions(dim: int, **options: Any) -> nn.Module:
        """A module that maps a grid to positions (1, L + 1, dim)."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of this adapter's positions and CLS, which are not decayed (released code)."""
        return {"cls_token", "pos_embed.weight"}

    def with_cls(self, stem: Stem) -> tuple[Tensor, Tensor | None]:
        """Put CLS in front: tokens (B, L + 1, D) and the mask that goes with them."""
        batch = stem.tokens.shape[0]  # not len(), which would fix the size of an exported graph
        cls = self.cls_token.to(stem.tokens.dtype).expand(batch, -1, -1)
        if stem.pooled is not None:
            cls = cls + stem.pooled.unsqueeze(1)
        tokens = torch.cat([cls, stem.tokens], dim=1)
        mask = stem.padding_mask
        return tokens, None if mask is None else torch.cat([mask.new_zeros(batch, 1), mask], dim=1)

    def assemble(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        stem: Stem,
        buckets: Tensor,
        tables: list[Tensor],
        keep: Tensor | None,
        gathered: bool = False,
    ) -> TokenSequence:
        """Add the type embedding, leave out masked tokens (unless ``gathered`` already), zero the padding."""
        if hasattr(self, "type_embed"):
            type_ids = tokens.new_zeros(tokens.shape[0], dtype=torch.long) if stem.type_ids is None else stem.type_ids
            tokens = tokens + self.type_embed.cumsum(0)[type_ids].unsqueeze(1)
        if keep is not None:
            tokens = tokens if gathered else gather_tokens(tokens, keep)
            buckets = gather_pairs(buckets, keep)
            mask = keep < 0
        if mask is not None:
            tokens = tokens.masked_fill(mask.unsqueeze(-1), 0.0)
        if self.mean_cls or self.max_cls:
            others, padded = tokens[:, 1:], None if mask is None else mask[:, 1:]
            cls = sum(pool(others, padded, self.mean_cls, self.max_cls), tokens[:, :1])
            tokens = torch.cat([cls, others], dim=1)
        span = Span(self.key, 0, tokens.shape[1], stem.grid if keep is None else None)
        return TokenSequence(tokens, mask, (span,), (buckets,), (tables,))


def pool(x: Tensor, padded: Tensor | None, mean: bool, maximum: bool) -> list[Tensor]:
    """(B, L, D), padding zero -> mean and maximum over L, as asked, each (B, 1, D)."""
    found = []
    if mean:
        count = x.shape[1] if padded is None else (~padded).sum(1).clamp_min(1)[:, None, None]
        found.append(x.sum(1, keepdim=True) / count)
    if maximum:
        largest = (x if padded is None else x.masked_fill(padded[..., None], -torch.inf)).amax(1, keepdim=True)
        found.append(largest if padded is None else largest.masked_fill(padded.all(1)[:, None, None], 0.0))
    return found


class PooledMLP(nn.Module):
    """LayerNorm, a hidden layer with GELU, and a linear one: (..., width) -> (..., dim)."""

    def __init__(self, width: int, hidden: int, dim: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(self.dropout(self.norm(x))))
        return self.fc2(self.dropout(hidden))


def values_are_known(x: Tensor) -> bool:
    """Whether input can be checked by its values: not while a graph is traced, nor on the meta device."""
    return not (torch.compiler.is_compiling() or x.is_meta)
