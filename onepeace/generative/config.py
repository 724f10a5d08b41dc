"""The configuration of an OFA model (arXiv 2202.03052), and its released sizes. No torch here."""

from dataclasses import dataclass

from onepeace.config.reader import Count, Depth, Natural, Options, Share
from onepeace.errors import UserError


@dataclass(frozen=True)
class OFAConfig:
    """Sizes of OFA. The default numbers are those of the released base model."""

    dim: Count = 768
    """Width D of the tokens."""
    encoder_depth: Depth = 6
    decoder_depth: Depth = 6
    num_heads: Count = 12
    ffn_dim: Count = 3072
    num_words: Count = 50264
    """Size of the tokenizer's vocabulary, ids 0 to ``num_words`` - 1; <mask>, the image codes and the bins follow."""
    num_codes: Natural = 8192
    """Number of the original's image codes, with ids between words and bins; kept so that the bins have their ids."""
    num_bins: Natural = 1000
    """Coordinate bins for corners of boxes, along each side of the picture."""
    num_positions: Count = 1026
    """Maximum length of input and output texts in tokens."""
    num_buckets: Count = 256
    """Number of buckets of the distance between words; distances beyond half of it share logarithmic buckets."""
    image_grid: Count = 42
    """Maximum side of a picture, in patches of 16 pixels."""
    stretched_grid: Count | None = None
    """Side of the corner of the positions that is stretched over larger patch grids (an option of the original)."""
    stem_depths: tuple[Depth, ...] = (3, 4, 23)
    """Blocks of each stage of the ResNet."""
    stem_width: Count = 64
    freeze_stem_norms: bool = True
    """Whether training leaves the statistics of the ResNet's batch norms unchanged; the original updates them, which is
    unstable with few pictures in a batch."""
    drop_path: Share = 0.0
    """Stochastic depth rate of the last block; rates grow linearly from 0 at the first."""
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise UserError(f"model.dim {self.dim} is not a multiple of model.num_heads {self.num_heads}")

    # The interface of all configurations (model/interface.py).
    @property
    def adapters(self) -> dict[str, Options]:
        """Input modalities, with their options."""
        return {"text": {"vocab_size": self.num_words}, "image": {"patch_size": 16, "bias_grid": self.image_grid}}

    @property
    def projections(self) -> tuple[str, ...]:
        """Empty: the model has no embeddings."""
        return ()

    @property
    def heads(self) -> dict[str, Options]:
        return {}

    @property
    def writes(self) -> tuple[str, ...]:
        """Kinds of answers that the model can write."""
        counts = {"text": self.num_words, "boxes": self.num_bins}
        return tuple(name for name, count in counts.items() if count)

    @property
    def embed_dim(self) -> int:
        return self.dim

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.num_words + 1 + self.num_codes + self.num_bins


OFA_SIZES: dict[str, Options] = {
    "tiny": {"dim": 256, "encoder_depth": 4, "decoder_depth": 4, "num_heads": 4, "ffn_dim": 1024,
             "stem_depths": (3, 4, 6)},
    "medium": {"dim": 512, "encoder_depth": 4, "decoder_depth": 4, "num_heads": 8, "ffn_dim": 2048},
    "base": {},
    "large": {"dim": 1024, "encoder_depth": 12, "decoder_depth": 12, "num_heads": 16, "ffn_dim": 4096,
              "stem_depths": (3, 8, 36)},
    "huge": {"dim": 1280, "encoder_depth": 24, "decoder_depth": 12, "num_heads": 16, "ffn_dim": 5120,
             "stem_depths": (3, 8, 36)},
}  # fmt: skip
"""Fields of `OFAConfig` by the name of a released size."""
