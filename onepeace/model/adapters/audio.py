"""Audio: waveform -> one token per frame.

Padding never leaks: it is zeroed before every convolution that could see it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Count, Natural, Share
from onepeace.layers.gather import gather_tokens
from onepeace.layers.position import SequencePositions, sequence_buckets, sequence_table_rows, trunc_normal

from ..sequence import StemOutput, TokenSequence, padding
from ..stems import AUDIO_STEMS, SAMPLE_RATE, PretrainedStem, make_stem
from .base import Adapter, AdapterOptions, values_are_known


class PositionalConvs(nn.ModuleList):
    """Convolutional position embedding: a chain of grouped convolutions, LayerNorm without gain, and GELU."""

    def __init__(self, dim: int, depth: int, kernel: int, groups: int):
        super().__init__(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) and the padding mask (B, L) -> (B, L, D)."""
        length = x.shape[1]
        for conv in self:
            if mask is not None:
                x = x.masked_fill(mask.unsqueeze(-1), 0.0)
            x = conv(x.transpose(1, 2))[..., :length].transpose(1, 2)  # an even kernel adds one frame
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        return x


class AudioAdapter(Adapter):
    """Adapter for waveforms at least as long as the stem's receptive field; one token per frame.

    Batch: ``waveform`` (B, N) float at 16 kHz, normalised, right-padded; ``lengths`` (B,) int64, the number of samples
    of each item, if any is padded.

    Args:
        num_buckets: b; the bias table has 2 b - 1 + 3 rows.
        pos_depth, pos_kernel, pos_groups: the positional convolutions.
        stem: a key of AUDIO_STEMS; aisfx, soundnet, joined (both) and transformers are pretrained networks. Further
            options are passed to the stem.
        cls_hidden, cls_dropout, cls_drop_path: see `make_cls_mlp`.
    """

    padded_input = "waveform"

    def __init__(
        self,
        options: AdapterOptions,
        *,
        stem: str = "wave",
        num_buckets: Count = 512,
        pos_depth: Natural = 5,
        pos_kernel: Count = 19,
        pos_groups: Count = 16,
        cls_hidden: Natural = 0,
        cls_dropout: Share = 0.0,
        cls_drop_path: Share = 0.0,
        **stem_options: Any,
    ):
        super().__init__(options, sequence_table_rows(num_buckets))
        self.num_buckets = num_buckets
        self.stem = make_stem(AUDIO_STEMS, stem, options.dim, stem_options, options.key)
        self.cls_mlp = self.make_cls_mlp(options.dim, cls_hidden, cls_dropout, cls_drop_path)
        self.cls_pos = nn.Parameter(torch.empty(1, 1, options.dim))
        self.pos_conv = PositionalConvs(options.dim, pos_depth, pos_kernel, pos_groups)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        trunc_normal(self.cls_pos)

    @property
    def seconds_per_token(self) -> float:
        """Seconds from one frame to the next."""
        return self.stem.hop / SAMPLE_RATE

    def stem_tokens(self, batch: dict[str, Tensor]) -> StemOutput:
        if "features" in batch:
            features = batch["features"]
            lengths = batch.get("lengths")
            mask = None if lengths is None else padding(lengths, features.shape[1])
            tokens = self.pretrained_stem().project(features)
        else:
            waveform, lengths, shortest = self._waveform(batch)
            if isinstance(self.stem, PretrainedStem):
                features = self.stem.features(waveform, lengths, shortest)
                tokens = self.stem.project(features)
            else:
                features = self.stem(waveform, lengths, shortest)
                tokens = features
            mask = None  # clips whose lengths differ by less than a token need no mask
            if lengths is not None and self.stem.token_lengths(shortest) < tokens.shape[1]:
                mask = padding(self.stem.token_lengths(lengths), tokens.shape[1])
        return StemOutput(
            tokens=tokens,
            padding_mask=mask,
            grid=(tokens.shape[1],),
            type_ids=batch.get("type_ids"),
            pooled=self.pooled(features, mask),
        )

    def stem_features(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, channels)."""
        return self.pretrained_stem().features(*self._waveform(batch))

    def _waveform(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, int]:
        """Waveform, lengths, and the number of samples of the shortest item."""
        waveform = batch["waveform"]
        lengths = batch.get("lengths")
        if waveform.ndim != 2 or (lengths is not None and lengths.shape != waveform.shape[:1]):
            shapes = f"{tuple(waveform.shape)} and {None if lengths is None else tuple(lengths.shape)}"
            raise ValueError(f"waveform and lengths should be (B, N) and (B,), not {shapes}")
        return waveform, lengths, self._shortest(waveform, lengths)

    def _shortest(self, waveform: Tensor, lengths: Tensor | None) -> int:
        """Number of samples of the shortest item, 0 if values are unknown; ValueError if lengths do not fit."""
        samples = waveform.shape[1]
        if lengths is None:
            shortest = longest = samples
        elif values_are_known(lengths):
            shortest = int(lengths.min())
            longest = int(lengths.max())
        else:
            return 0
        if shortest < self.stem.receptive_field or longest > samples:
            raise ValueError(
                f"lengths of {shortest} to {longest} samples; they must be at least {self.stem.receptive_field} "
                f"and at most the waveform's {samples}"
            )
        return shortest

    def forward(self, stem: StemOutput, keep: Tensor | None = None) -> TokenSequence:
        length = stem.grid[0] + 1
        if keep is not None:
            # The positional convolutions run over the visible frames only (released code).
            frames = keep[:, 1:]
            visible_tokens = gather_tokens(stem.tokens, (frames - 1).clamp_min(0))
            stem = stem._replace(tokens=visible_tokens, padding_mask=frames < 0, grid=(frames.shape[1],))
        tokens, mask = self.with_cls(stem)
        positions = self.pos_conv(stem.tokens, stem.padding_mask)
        cls_position = self.cls_pos.to(positions.dtype).expand(positions.shape[0], -1, -1)
        tokens = tokens + torch.cat([cls_position, positions], dim=1)
        buckets = sequence_buckets(length, self.num_buckets, tokens.device)
        return self.assemble(tokens, mask, stem, buckets, self.bias_tables(), keep, gathered=True)

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        if "features" in batch:
            features = batch["features"]
            full = torch.full(features.shape[:1], features.shape[1], device=features.device)
            return batch.get("lengths", full)
        if "lengths" in batch:
            return self.stem.token_lengths(batch["lengths"])
        waveform = batch["waveform"]
        samples = torch.full(waveform.shape[:1], waveform.shape[1], device=waveform.device)
        return self.stem.token_lengths(samples)

    def token_positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """Start and end of each token in seconds, (L, 2)."""
        seconds = self.seconds_per_token * torch.arange(int(self.token_lengths(batch)[0]) + 1)
        return torch.stack([seconds[:-1], seconds[1:]], dim=1), "second"

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}  # positions come from convolutions, not from an embedding

    @staticmethod
    def decoder_positions(dim: int, *, num_positions: int = 1026, **_: Any) -> nn.Module:
        return SequencePositions(dim, num_positions)
