"""Audio: waveform -> one token per frame.

Padding never leaks: it is zeroed before every convolution that could see it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.cache import cached
from onepeace.layers.position import SequencePositions, sequence_buckets, sequence_table_rows, trunc_normal
from onepeace.layers.precision import without_autocast

from ..sequence import Stem, TokenSequence, gather_tokens, padding
from .base import Adapter, values_are_known

Count = TypeVar("Count", int, Tensor)
SAMPLE_RATE = 16000
RELEASED_CONVS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)


class WaveStem(nn.Module):
    """The released stem: seven convolutions without padding over the waveform, as in wav2vec 2.0.

    ``convs`` lists (channels, kernel, stride). Hop 320 and receptive field 400 samples as released: a frame per 20 ms.
    No frame of an item sees beyond the item's own samples, so padding needs no care here.
    """

    def __init__(self, dim: int, convs: Sequence[Sequence[int]] = RELEASED_CONVS):
        super().__init__()
        widths = [1] + [channels for channels, _, _ in convs]
        self.convs = nn.ModuleList(
            nn.Conv1d(width, channels, kernel, stride, bias=False)
            for width, (channels, kernel, stride) in zip(widths, convs, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels, _, _ in convs)
        self.norm = nn.LayerNorm(widths[-1])
        self.proj = nn.Linear(widths[-1], dim)
        self.hop, self.receptive_field = 1, 1
        for _, kernel, stride in convs:
            self.receptive_field += (kernel - 1) * self.hop
            self.hop *= stride

    def reset_parameters(self) -> None:
        for conv in self.convs:
            nn.init.kaiming_normal_(cast(nn.Conv1d, conv).weight)

    def forward(self, waveform: Tensor, lengths: Tensor | None, shortest: int) -> Tensor:
        """(B, N) -> (B, T, D)."""
        x = waveform.unsqueeze(-1).to(self.proj.weight.dtype)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.gelu(norm(_conv_channels_last(x, cast(nn.Conv1d, conv))))
        return self.proj(self.norm(x))

    def token_lengths(self, samples: Count) -> Count:
        return (samples - self.receptive_field) // self.hop + 1


def _conv_channels_last(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution without padding of (B, N, C), channels last, as one matrix product over its windows.

    The layer norms between the convolutions want channels last; a matrix product keeps them there, where conv1d would
    transpose twice per layer. A window of k frames is contiguous in memory.
    """
    if torch.compiler.is_exporting():  # whether linear may fold these windows depends on their number
        return conv(x.transpose(1, 2)).transpose(1, 2)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    windows = x.unfold(1, kernel, stride).transpose(2, 3).flatten(2)  # (B, T, k C)
    return F.linear(windows, conv.weight.transpose(1, 2).flatten(1))


@cached(8)
def mel_filters(num_mels: int, num_bins: int, low: float, device: torch.device) -> Tensor:
    """Triangular filters (num_bins, num_mels) from ``low`` Hz to half the sample rate, each of the area 1 (Slaney).

    torchaudio's melscale_fbanks(norm="slaney") to the bit, without its warning, which looks at values.
    """
    frequencies = torch.linspace(0, SAMPLE_RATE // 2, num_bins)
    lowest, highest = (2595.0 * math.log10(1.0 + hertz / 700.0) for hertz in (low, SAMPLE_RATE / 2))
    points = 700.0 * (10.0 ** (torch.linspace(lowest, highest, num_mels + 2) / 2595.0) - 1.0)
    slopes = points.unsqueeze(0) - frequencies.unsqueeze(1)
    widths = points.diff()
    filters = torch.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]).clamp_min(0.0)
    return (filters * (2.0 / (points[2:] - points[:-2]))).to(device)


class MelStem(nn.Module):
    """A log-mel spectrogram and three 3x3 / 2 convolutions over it, for few recordings: no filter bank to learn.

    Windows of 25 ms every 10 ms, a token per 80 ms. In training, bands of frequency and time are blanked at random
    (SpecAugment), as dropout is: ``mask_mels`` and ``mask_frames`` are the largest widths, two bands of each.
    """

    window, step = 400, 160

    def __init__(self, dim: int, num_mels: int = 64, width: int = 32, mask_mels: int = 0, mask_frames: int = 0):
        super().__init__()
        widths = [1, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, padding=1) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(o) for o in widths[1:])
        self.num_mels, self.mask_mels, self.mask_frames = num_mels, mask_mels, mask_frames
        self.norm = nn.LayerNorm(widths[-1] * (num_mels // 8))
        self.proj = nn.Linear(widths[-1] * (num_mels // 8), dim)
        self.hop, self.receptive_field = 8 * self.step, self.window

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Log-mel spectrogram (B, frames, mels), float32, roughly zero mean and unit deviation for normalised sound."""
        with without_autocast(waveform.device.type):
            window = torch.hann_window(self.window, device=waveform.device)
            sound = waveform.float()
            spectrum = torch.stft(sound, 512, self.step, self.window, window, center=False, return_complex=True)
            power = torch.view_as_real(spectrum).square().sum(-1)  # abs() of complex numbers is many times slower
            mel = power.transpose(1, 2) @ mel_filters(self.num_mels, 257, 50.0, waveform.device)
            return ((mel + 1e-5).log() + 4.0) / 4.0

    def forward(self, waveform: Tensor, lengths: Tensor | None, shortest: int) -> Tensor:
        """(B, N), (B,) samples of each unless all are N, and the fewest of them -> (B, T, D)."""
        # torch.stft centres the window of 400 in frames of 512: pad by what its zeros multiply.
        mel = self.spectrogram(F.pad(waveform, (56, 56)))
        if self.training:
            mel = _blank(_blank(mel, 2, self.mask_mels), 1, self.mask_frames)
        frames = None if lengths is None else self._frames(lengths)
        fewest = self._frames(shortest)
        x = mel.unsqueeze(1).to(self.proj.weight.dtype)  # (B, 1, frames, mels)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            if frames is not None:  # what follows an item is zero, as if it were alone
                if fewest < x.shape[2]:
                    x = x.masked_fill(padding(frames, x.shape[2])[:, None, :, None], 0.0)
                frames, fewest = (frames + 1) // 2, (fewest + 1) // 2
            x = F.gelu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.proj(self.norm(x.permute(0, 2, 3, 1).flatten(2)))

    def _frames(self, samples: Count) -> Count:
        return (samples - self.window) // self.step + 1

    def token_lengths(self, samples: Count) -> Count:
        return (self._frames(samples) + 7) // 8


def _blank(x: Tensor, dim: int, widest: int, bands: int = 2) -> Tensor:
    """Set ``bands`` random stretches of each item along ``dim`` to 0, the mean."""
    if not widest:
        return x
    position = torch.arange(x.shape[dim], device=x.device).view([-1 if d == dim else 1 for d in range(x.ndim)])
    for _ in range(bands):
        shape = [len(x)] + [1] * (x.ndim - 1)
        width = torch.randint(0, widest + 1, shape, device=x.device)
        start = (torch.rand(shape, device=x.device) * (x.shape[dim] - width).clamp_min(1)).long()
        x = x.masked_fill((position >= start) & (position < start + width), 0.0)
    return x


STEMS = {"wave": WaveStem, "mel": MelStem}


class PositionalConvs(nn.ModuleList):
    """Positions from the neighbours: grouped convolutions, LayerNorm without gain and GELU, chained."""

    def __init__(self, dim: int, depth: int, kernel: int, groups: int):
        super().__init__(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) and a mask of the padding (B, L) -> (B, L, D)."""
        length = x.shape[1]
        for conv in self:
            if mask is not None:
                x = x.masked_fill(mask.unsqueeze(-1), 0.0)
            x = conv(x.transpose(1, 2))[..., :length].transpose(1, 2)  # an even kernel makes one frame too many
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        return x


class AudioAdapter(Adapter):
    """Frames of a waveform of any length from the receptive field up.

    Batch: ``waveform`` (B, N) float at 16 kHz, normalised, right-padded; ``lengths`` (B,) int64 samples of each, if any
    is padded.

    Args:
        num_buckets: b; the bias table has 2 b - 1 + 3 rows.
        pos_depth, pos_kernel, pos_groups: the positional convolutions.
        stem: a key of STEMS; further options go to it.
    """

    padded_input = "waveform"

    def __init__(
        self,
        key: str,
        dim: int,
        num_heads: int,
        num_tables: int,
        *,
        stem: str = "wave",
        num_buckets: int = 512,
        pos_depth: int = 5,
        pos_kernel: int = 19,
        pos_groups: int = 16,
        num_types: int = 0,
        **stem_options: Any,
    ):
        super().__init__(key, dim, num_heads, num_tables, sequence_table_rows(num_buckets), num_types)
        if stem not in STEMS:
            raise ValueError(f"no stem {stem!r}; known: {', '.join(STEMS)}")
        self.num_buckets = num_buckets
        self.stem = STEMS[stem](dim, **stem_options)
        self.cls_pos = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_conv = PositionalConvs(dim, pos_depth, pos_kernel, pos_groups)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        trunc_normal(self.cls_pos)

    @property
    def seconds_per_token(self) -> float:
        """Time from one frame to the next."""
        return self.stem.hop / SAMPLE_RATE

    def stem_tokens(self, batch: dict[str, Tensor]) -> Stem:
        waveform, lengths = batch["waveform"], batch.get("lengths")
        if waveform.ndim != 2 or (lengths is not None and lengths.shape != waveform.shape[:1]):
            shapes = f"{tuple(waveform.shape)} and {None if lengths is None else tuple(lengths.shape)}"
            raise ValueError(f"waveform and lengths should be (B, N) and (B,), not {shapes}")
        shortest = self._shortest(waveform, lengths)
        tokens = self.stem(waveform, lengths, shortest)
        length = tokens.shape[1]
        # Clips that differ by less than a token need no mask.
        padded = lengths is not None and self.stem.token_lengths(shortest) < length
        mask = padding(self.stem.token_lengths(lengths), length) if padded and lengths is not None else None
        return Stem(tokens, mask, (length,), batch.get("type_ids"))

    def _shortest(self, waveform: Tensor, lengths: Tensor | None) -> int:
        """Samples of the shortest item, 0 if values are not known; ValueError for lengths that do not fit."""
        samples = waveform.shape[1]
        if lengths is None:
            shortest = longest = samples
        elif values_are_known(lengths):
            shortest, longest = int(lengths.min()), int(lengths.max())
        else:
            return 0
        if shortest < self.stem.receptive_field or longest > samples:
            raise ValueError(
                f"lengths of {shortest} to {longest} samples; they must be at least {self.stem.receptive_field} "
                f"and at most the waveform's {samples}"
            )
        return shortest

    def embed_positions(self, stem: Stem, keep: Tensor | None = None) -> TokenSequence:
        length = stem.grid[0] + 1
        if keep is not None:
            # The positional convolutions run over the frames that are left (released code).
            frames = keep[:, 1:]
            kept = gather_tokens(stem.tokens, (frames - 1).clamp_min(0))
            stem = Stem(kept, frames < 0, (frames.shape[1],), stem.type_ids)
        tokens, mask = self.with_cls(stem)
        positions = self.pos_conv(stem.tokens, stem.padding_mask)
        tokens = tokens + torch.cat(
            [self.cls_pos.to(positions.dtype).expand(positions.shape[0], -1, -1), positions], dim=1
        )
        buckets = sequence_buckets(length, self.num_buckets, tokens.device)
        return self.assemble(tokens, mask, stem, buckets, list(self.bias_tables), keep, gathered=True)

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        if "lengths" in batch:
            return self.stem.token_lengths(batch["lengths"])
        waveform = batch["waveform"]
        return self.stem.token_lengths(torch.full(waveform.shape[:1], waveform.shape[1], device=waveform.device))

    def token_positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """(L, 2) second at which each token starts and ends."""
        seconds = self.seconds_per_token * torch.arange(int(self.token_lengths(batch)[0]) + 1)
        return torch.stack([seconds[:-1], seconds[1:]], dim=1), "second"

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}  # the positions are convolutions

    @staticmethod
    def decoder_positions(dim: int, *, num_positions: int = 1026, **_: Any) -> nn.Module:
        return SequencePositions(dim, num_positions)
