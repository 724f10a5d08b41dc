"""The lightweight decoder that predicts the features of masked tokens; used in pretraining only."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from onepeace.layers.features import Features
from onepeace.layers.position import trunc_normal

from .block import Block
from .encoder import encode
from .sequence import TokenSequence, TokenSpan


class MaskedDecoder(nn.Module):
    """Decoder from encoder outputs at visible positions and mask tokens elsewhere to predictions for all positions.

    Its blocks are narrower than the encoder's, without bias tables and layer scale (released code).

    Args:
        encoder_dim: width of the encoder's features, which are input and output.
        dim, depth, num_heads, ffn_dim: sizes of the decoder's blocks.
        positions: per modality, a function from dim to a module of position embeddings.
    """

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        ffn_dim: int,
        positions: Mapping[str, Callable[[int], nn.Module]],
    ):
        super().__init__()
        keys = list(positions)
        self.into = nn.ModuleDict({key: nn.Linear(encoder_dim, dim) for key in keys})
        self.mask_token = nn.ParameterDict({key: torch.empty(1, dim) for key in keys})
        self.pos_embed = nn.ModuleDict({key: make(dim) for key, make in positions.items()})
        self.blocks = nn.ModuleList(Block(dim, num_heads, ffn_dim, keys, layer_scale=None) for _ in range(depth))
        self.norms = nn.ModuleDict({key: nn.LayerNorm(dim) for key in keys})
        self.out = nn.ModuleDict({key: nn.Linear(dim, encoder_dim) for key in keys})

    def reset_parameters(self) -> None:
        for token in self.mask_token.values():
            trunc_normal(token)

    def no_weight_decay(self) -> set[str]:
        """Names of the position parameters, which have no weight decay."""
        return {f"pos_embed.{key}.weight" for key in self.pos_embed}

    def forward(
        self,
        visible: Mapping[str, Features],
        keep: Mapping[str, Tensor],
        grids: Mapping[str, tuple[int, ...]],
        padding_masks: Mapping[str, Tensor | None],
    ) -> dict[str, Tensor]:
        """Predictions (B, L_m + 1, encoder_dim) for each modality's full sequence, CLS first.

        Args:
            visible: the encoder's features of the kept tokens (B, K, encoder_dim).
            keep: ids (B, K) of the kept tokens, padded with -1.
            grids: shape of each modality's positions, without CLS.
            padding_masks: (B, L_m + 1) of each full sequence, or None.
        """
        sequences = []
        for key, features in visible.items():
            tokens = self._fill(key, features.tokens, keep[key], grids[key])
            spans = (TokenSpan(key, 0, tokens.shape[1], grids[key]),)
            sequence = TokenSequence(
                tokens=tokens, padding_mask=padding_masks[key], spans=spans, buckets=(None,), tables=([],)
            )
            sequences.append(sequence)
        decoded = encode(TokenSequence.concat(sequences), self.blocks, self.norms)
        return {key: self.out[key](features.tokens) for key, features in decoded.items()}

    def _fill(self, key: str, tokens: Tensor, keep: Tensor, grid: tuple[int, ...]) -> Tensor:
        positions = self.pos_embed[key](grid)
        x = self.into[key](tokens)
        batch = x.shape[0]
        length = positions.shape[1]
        dim = positions.shape[2]
        # An extra row, dropped below, receives the writes of padding in ``keep``.
        full = self.mask_token[key].to(x.dtype).expand(batch, length + 1, dim)
        slots = torch.where(keep < 0, length, keep).unsqueeze(-1).expand(-1, -1, dim)
        return full.scatter(1, slots, x)[:, :length] + positions
