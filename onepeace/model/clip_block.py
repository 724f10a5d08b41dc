"""Block for video: the image block on each frame, with its attention also applied over time."""

from collections.abc import Sequence

from torch import Tensor, nn

from onepeace.errors import expect
from onepeace.layers.bottleneck import Bottleneck

from .block import Block
from .sequence import TokenSpan


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
