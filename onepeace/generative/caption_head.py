"""Caption head: a small autoregressive decoder on the token features of an item."""

from dataclasses import dataclass

from torch import Tensor, nn

from onepeace.errors import UserError
from onepeace.generative.decoder import EncoderOutput, TextDecoder
from onepeace.heads.head import Head
from onepeace.layers.features import Features
from onepeace.layers.position import SequencePositions
from onepeace.special_ids import PAD


@dataclass(frozen=True)
class CaptionOptions:
    """Options of a ``caption`` in ``ModelConfig.heads``; its ``on`` lists the modalities that it can read."""

    vocab_size: int
    """Number of ids of the model's tokenizer."""
    dim: int = 256
    depth: int = 3
    num_heads: int = 4
    ffn_dim: int = 1024
    max_tokens: int = 48
    """Maximum length of a text in tokens, bos and eos included."""
    max_sources: int = 512
    """Maximum number of token features of an item, CLS included."""
    num_buckets: int = 16
    """Number of buckets of the distance between words (see `sequence_buckets`)."""
    dropout: float = 0.1


class Caption(Head):
    """OFA's decoder (onepeace/generative/decoder.py) on the features of any modality.

    All modalities share all of its weights.
    """

    Options = CaptionOptions

    def __init__(self, dim: int, options: CaptionOptions):
        super().__init__()
        self.options = options
        self.proj = nn.Linear(dim, options.dim)
        self.norm = nn.LayerNorm(options.dim)
        self.pos_embed = SequencePositions(options.dim, options.max_sources)
        self.pos_norm = nn.LayerNorm(options.dim)
        self.decoder = TextDecoder(
            dim=options.dim,
            depth=options.depth,
            num_heads=options.num_heads,
            ffn_dim=options.ffn_dim,
            embedding=nn.Embedding(options.vocab_size, options.dim, padding_idx=PAD),
            num_positions=options.max_tokens,
            num_buckets=options.num_buckets,
            dropout=options.dropout,
        )

    def encoded(self, features: Features) -> EncoderOutput:
        """Input of the decoder, from token features (B, L, D).

        Raises:
            UserError: L is larger than ``max_sources``.
        """
        tokens = self.norm(self.proj(features.tokens))
        length = tokens.shape[1]
        if length > self.options.max_sources:
            raise UserError(
                f"an item has {length} tokens, and the caption head reads {self.options.max_sources}; "
                "raise its max_sources before training, or give shorter items"
            )
        positions = self.pos_norm(self.pos_embed((length - 1,)))
        return EncoderOutput(tokens, features.padding_mask, positions)

    def forward(self, features: Features, ids: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (B, T, vocab_size) of the token that follows each of ids (B, T), which begin with bos."""
        return self.decoder(ids, self.encoded(features))
