"""OFA's encoder: patches of a picture, from a ResNet, and words, concatenated and processed by the same blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onepeace.errors import UserError
from onepeace.generative.config import OFAConfig
from onepeace.generative.decoder import EncoderOutput, padding_bias
from onepeace.generative.token_kinds import STD, GridTokens, PositionBias, SequenceTokens, TokenKind
from onepeace.layers.attention import HeadScaledAttention
from onepeace.layers.feedforward import FeedForward
from onepeace.layers.gather import gather_pairs, gather_tokens
from onepeace.layers.recompute import RecomputedBlock
from onepeace.layers.residual import DropPath


class BatchNorm(nn.BatchNorm2d):
    """Batch norm without torch's count of batches, which only matters if momentum is None."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.num_batches_tracked = None

    def reset_running_stats(self) -> None:
        nn.init.zeros_(self.running_mean)  # type: ignore[arg-type]
        nn.init.ones_(self.running_var)  # type: ignore[arg-type]

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # torch's method would add the count to older states


class ResNetStem(nn.Module):
    """Pixels -> a map of 16 x 16 pixel patches: ResNet (v1.5) without its fourth stage, names as in torchvision.

    Args:
        width: channels of the first convolution; stages end with 4, 8 and 16 times as many.
        depths: bottlenecks of each stage.
        freeze_norms: use the stored statistics of batch norms in training too. Gains and biases are trained.
    """

    def __init__(self, width: int, depths: Sequence[int], freeze_norms: bool = True):
        super().__init__()
        self.freeze_norms = freeze_norms
        self.channels = 16 * width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, depths[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, depths[2], stride=2)

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def train(self, mode: bool = True) -> "ResNetStem":
        super().train(mode)
        if self.freeze_norms:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels, H / 16, W / 16), sides rounded up."""
        x = self.maxpool(self.bn1(self.conv1(pixels)).relu())
        return self.layer3(self.layer2(self.layer1(x)))


def _stage(channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import Bottleneck, conv1x1

    shortcut = nn.Sequential(conv1x1(channels, 4 * width, stride), BatchNorm(4 * width))
    blocks = [Bottleneck(channels, width, stride, shortcut, norm_layer=BatchNorm)]
    for _ in range(depth - 1):
        blocks.append(Bottleneck(4 * width, width, norm_layer=BatchNorm))
    return nn.Sequential(*blocks)


PATCH_PIXELS = 16
WORD = 0
PATCH = 1
"""Rows of the type embedding."""


class Segment(NamedTuple):
    """The tokens of one kind: (B, L, D), positions (1 or B, L, D), buckets (1 or B, L, L), padding (B, L) or None."""

    kind: TokenKind
    tokens: Tensor
    positions: Tensor
    buckets: Tensor
    padding_mask: Tensor | None

    def dense_mask(self) -> Tensor:
        """The padding mask, all False when nothing is padding."""
        if self.padding_mask is not None:
            return self.padding_mask
        return torch.zeros(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)


class EncoderBlock(RecomputedBlock):
    """Pre-norm block: self-attention followed by a LayerNorm, and a feed-forward layer."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, drop_path: float = 0.0, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = HeadScaledAttention(dim, num_heads)
        self.attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.drop = nn.Sequential(nn.Dropout(dropout), DropPath(drop_path))

    def compute(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        """Map tokens (B, L, D) to tokens (B, L, D); ``bias`` (1 or B, H, L, L) is -inf in columns of padding."""
        h = self.norm1(x)
        attended = self.attn(h, self.attn.keys_values(h), bias)
        x = x + self.drop(self.attn_norm(attended))
        return x + self.drop(self.ffn(self.norm2(x)))


class OFAEncoder(nn.Module):
    """Patches and words -> tokens that the decoder reads.

    Positions only affect the attention: absolute positions of all tokens by a bias that is the same in every block
    (`PositionBias`), relative positions by two tables per block, one for patches and one for words.
    """

    def __init__(self, config: OFAConfig):
        super().__init__()
        dim = config.dim
        heads = config.num_heads
        depth = config.encoder_depth
        self.stem = ResNetStem(config.stem_width, config.stem_depths, config.freeze_stem_norms)
        self.image_proj = nn.Linear(self.stem.channels, dim)
        self.type_embed = nn.Parameter(torch.empty(2, dim))
        self.words = SequenceTokens(dim, heads, depth, config.num_positions, config.num_buckets)
        self.patches = GridTokens(dim, heads, depth, config.image_grid, config.stretched_grid)
        self.pos = PositionBias(dim, heads)
        rates = torch.linspace(0, config.drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(EncoderBlock(dim, heads, config.ffn_dim, rate, config.dropout) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(config.dropout)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.type_embed, std=STD)

    def read_words(self, embedded: Tensor, padding_mask: Tensor | None) -> Segment:
        """Tokens from embedded words (B, L, D)."""
        tokens = self.words.norm(embedded + self.type_embed[WORD])
        length = embedded.shape[1]
        return Segment(self.words, tokens, self.words.positions(length), self.words.buckets(length), padding_mask)

    def read_pixels(self, pixels: Tensor, keep: Tensor | None = None) -> Segment:
        """Tokens from pixels (B, 3, H, W), row by row; ``keep`` as in `OFA.encode`.

        UserError for pictures with more patches on a side than there are positions.
        """
        height, width = pixels.shape[2:]
        largest = PATCH_PIXELS * self.patches.side
        if max(height, width) > largest:
            raise UserError(f"pictures of {height} x {width} pixels: this model reads up to {largest} on a side")
        features = self.stem(pixels)
        rows, columns = features.shape[2:]
        # Positions and buckets begin with those of a start token, which only generated pictures have.
        positions = self.patches.positions(rows, columns)[:, 1:]
        buckets = self.patches.buckets(rows, columns)[:, 1:, 1:]
        features = features.flatten(2).mT
        if keep is not None:
            features = gather_tokens(features, keep)
            positions = gather_tokens(positions, keep)
            buckets = gather_pairs(buckets, keep)
        tokens = self.patches.norm(self.image_proj(features) + self.type_embed[PATCH])
        return Segment(self.patches, tokens, positions, buckets, None)

    def forward(self, parts: list[Segment]) -> EncoderOutput:
        """Run the blocks over all parts, concatenated."""
        x = self.drop(torch.cat([part.tokens for part in parts], dim=1))
        batch = max(len(part.positions) for part in parts)
        positions = torch.cat([part.positions.expand(batch, -1, -1) for part in parts], dim=1)
        padding_mask = None
        if any(part.padding_mask is not None for part in parts):
            padding_mask = torch.cat([part.dense_mask() for part in parts], dim=1)
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        absolute = self.pos(positions, positions)
        if padding_mask is not None:
            absolute = absolute + padding_bias(padding_mask, absolute.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, self._bias(i, absolute, parts))
        return EncoderOutput(self.norm(x), padding_mask, positions)

    def _bias(self, block: int, absolute: Tensor, parts: list[Segment]) -> Tensor:
        """``absolute`` plus, within each part, the relative-position bias of this block."""
        batch = max(len(absolute), *(len(part.buckets) for part in parts))
        bias = absolute.expand(batch, -1, -1, -1).clone()
        start = 0
        for part in parts:
            stop = start + part.tokens.shape[1]
            bias[:, :, start:stop, start:stop] += part.kind.relative_bias(block, part.buckets)
            start = stop
        return bias
