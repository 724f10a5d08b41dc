"""The Transformer block: attention shared by all modalities, one FFN per modality."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onepeace.layers.attention import SelfAttention
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
