"""The Transformer block: attention shared by all modalities, one FFN per modality; and its form for video."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onepeace.errors import expect
from onepeace.layers.attention import SelfAttention
from onepeace.layers.bottleneck import Bottleneck
from onepeace.layers.feedforward import GEGLU
from onepeace.layers.recompute import RecomputedBlock
from onepeace.layers.residual import DropPath, LayerScale, Residual

from .sequence import TokenSpan


class Block(RecomputedBlock):
    """Pre-norm Transformer block: attention shared by all modalities, one FFN per modality (paper: modality FFNs).

    The key of a span selects the FFN of its tokens: a modality is an entry of ``ffn``.

    Args:
        dim, num_heads, ffn_dim: token width D, heads H (must divide D), hidden width of each FFN.
        modalities: keys for which the block has an FFN.
        drop_path: probability that a sample skips a residual branch, in training only.
        layer_scale: initial per-channel gain of both branches; None = no gain.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        modalities: Sequence[str],
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-6,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, num_heads)
        self.ffn = nn.ModuleDict({key: GEGLU(dim, ffn_dim) for key in modalities})
        self.ls1 = Residual() if layer_scale is None else LayerScale(dim, layer_scale)
        self.ls2 = Residual() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def compute(  # type: ignore[override]
        self, x: Tensor, spans: Sequence[TokenSpan], bias: Tensor | None, padding: Tensor | None = None
    ) -> Tensor:
        """Map tokens (B, L, D) to tokens (B, L, D).

        ``bias`` and ``padding`` are those of `onepeace.model.encoder.attention_bias`. CLS is never padding, so every
        token attends to at least one.
        """
        x = self.ls1(x, self.drop_path(self.attend(x, spans, bias, padding)))
        return self.add_fed(x, self.norm2(x), spans)

    def attend(self, x: Tensor, spans: Sequence[TokenSpan], bias: Tensor | None, padding: Tensor | None) -> Tensor:
        """Output of the attention branch, before its gain."""
        return self.attn(self.norm1(x), bias, padding)

    def add_fed(self, x: Tensor, h: Tensor, spans: Sequence[TokenSpan]) -> Tensor:
        """Add the output of the FFNs to the tokens; ``h`` is the tokens after ``norm2``."""
        return self.ls2(x, self.drop_path(self.feed(h, spans)))

    def feed(self, h: Tensor, spans: Sequence[TokenSpan]) -> Tensor:
        """Output of the FFNs for tokens after ``norm2``, before the gain."""
        parts = [self.ffn[span.key](h[:, span.start : span.stop]) for span in spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class ClipAdapters(nn.Module):
    """Adapters of a block for video (released code: T_Adapter, S_Adapter, MLP_Adapter)."""

    def __init__(self, dim: int):
        super().__init__()
        self.time = Bottleneck(dim)
        self.space = Bottleneck(dim)
        self.mlp = Bottleneck(dim)


class ClipBlock(Block):
    """Block in which the rows of some modalities are frames (B * T, L, D), T per clip.

    Attention runs over the T tokens at each position of the frames, and then, with the same weights, over the L tokens
    of each frame. While the adapters are zero, as initially, the result is that of `Block`. Stochastic depth drops
    branches of frames, not of clips (released code: frames are folded into the batch).

    Args:
        over_time: the modalities whose rows are frames; others are treated as in `Block`.
    """

    def __init__(self, dim: int, *args: int, over_time: Sequence[str], **options: object):
        super().__init__(dim, *args, **options)  # type: ignore[arg-type]
        self.clips = nn.ModuleDict({key: ClipAdapters(dim) for key in over_time})

    def _adapters(self, spans: Sequence[TokenSpan]) -> ClipAdapters | None:
        """The adapters of the span if it is a clip, which is then the only span of its sequence."""
        key = spans[0].key
        if key not in self.clips:
            return None
        return expect(self.clips[key], ClipAdapters)

    def attend(self, x: Tensor, spans: Sequence[TokenSpan], bias: Tensor | None, padding: Tensor | None) -> Tensor:
        adapters = self._adapters(spans)
        if adapters is None or spans[0].grid is None:
            return super().attend(x, spans, bias, padding)
        frames = spans[0].grid[0]
        length = x.shape[1]
        tracks = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (B * L, T, D)
        over_time = adapters.time(self.attn(self.norm1(tracks), None))
        over_time = over_time.unflatten(0, (-1, length)).transpose(1, 2).flatten(0, 1)  # (B * T, L, D)
        # The temporal output only feeds the spatial attention: the residual branch is added to x itself.
        over_space = super().attend(x + over_time, spans, bias, padding)
        return over_space + adapters.space(over_space)

    def add_fed(self, x: Tensor, h: Tensor, spans: Sequence[TokenSpan]) -> Tensor:
        adapters = self._adapters(spans)
        if adapters is None:
            return super().add_fed(x, h, spans)
        branch = self.ls2(0.5 * adapters.mlp(h), self.feed(h, spans))
        return x + self.drop_path(branch)  # one branch, dropped as one
