"""OFA: an encoder of pictures and texts, and a decoder that answers in one vocabulary of words and boxes.

Data flow (paper: Figure 2): pixels -> stem -> patches; ids -> words; patches and words -> encoder -> `EncoderOutput`;
`EncoderOutput` and the ids written so far -> decoder -> logits of the next id.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from onepeace.generative import convert
from onepeace.generative.config import OFA_SIZES, OFAConfig
from onepeace.generative.decoder import EncoderOutput, TextDecoder
from onepeace.generative.encoder import PATCH_PIXELS, OFAEncoder
from onepeace.generative.token_kinds import normal_init
from onepeace.hub.architectures import Architecture, Conversion
from onepeace.layers.gather import take_rows
from onepeace.model import Trained
from onepeace.model.adapters.base import values_are_known
from onepeace.special_ids import PAD


class RawInput(NamedTuple):
    """Raw input of a modality, with the methods of `onepeace.model.Adapter` that training needs."""

    name: str
    """Name of the tensor in the output of a processor."""
    is_padded: bool = False

    def token_lengths(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Number of tokens of each item (B,)."""
        value = inputs[self.name]
        if self.is_padded:
            return (value != PAD).sum(1)
        height, width = value.shape[2:]
        rows = math.ceil(height / PATCH_PIXELS)
        columns = math.ceil(width / PATCH_PIXELS)
        return torch.full((len(value),), rows * columns)

    def take(
        self, inputs: Mapping[str, Tensor], rows: Tensor, lengths: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Select rows of the raw input; ``lengths`` as in `take_rows`."""
        return take_rows(inputs, rows, lengths, self.name if self.is_padded else None)


class OFA(Trained):
    """One sequence-to-sequence model for captions, answers, boxes and classes (arXiv 2202.03052).

    The embedding `decoder.token_embed` is shared by the encoder, the decoder and the output layer. Pictures cannot be
    generated: the image codes have rows in the embedding, but there is no decoder to pixels.

    Args:
        config: sizes. Construction on the meta device allocates nothing.
    """

    config: OFAConfig
    decoder: TextDecoder
    adapters: Mapping[str, RawInput] = {"text": RawInput("ids", True), "image": RawInput("pixels")}
    logit_scale = None
    """None: there are no embeddings to compare."""

    def __init__(self, config: OFAConfig):
        super().__init__()
        self.config = config
        self.encoder = OFAEncoder(config)
        self.decoder = TextDecoder(
            dim=config.dim,
            depth=config.decoder_depth,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            embedding=nn.Embedding(config.vocab_size, config.dim, padding_idx=PAD),
            num_positions=config.num_positions,
            num_buckets=config.num_buckets,
            drop_path=config.drop_path,
            dropout=config.dropout,
        )
        self.blocks = [*self.encoder.blocks, *self.decoder.blocks]
        normal_init(self)

    def encode(self, ids: Tensor | None, pixels: Tensor | None = None, keep: Tensor | None = None) -> EncoderOutput:
        """Encode texts, pictures or both.

        Args:
            ids: (B, L), padded with 1.
            pixels: (B, 3, H, W), normalised; sides up to 16 * config.image_grid.
            keep: (B, K), the patches that are read, numbered row by row; None = all.

        UserError for a text or a picture with more tokens than there are positions.
        """
        parts = []
        if pixels is not None:
            parts.append(self.encoder.read_pixels(pixels, keep))
        if ids is not None:
            padding_mask = ids == PAD
            # Without padding one bias serves the whole batch.
            is_padded = not values_are_known(ids) or bool(padding_mask.any())
            mask = padding_mask if is_padded else None
            parts.append(self.encoder.read_words(self.decoder.token_embed(ids), mask))
        if not parts:
            raise ValueError("encode needs ids, pixels or both")
        return self.encoder(parts)

    def forward(
        self, ids: Tensor | None, written: Tensor, pixels: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of the id after each of ``written`` (B, T), which begin with bos; teacher forcing.

        Args:
            ids, pixels, keep: input of the encoder, see `encode`.
        """
        return self.decoder(written, self.encode(ids, pixels, keep))


ARCHITECTURE = Architecture(
    config=OFAConfig,
    module=OFA,
    sizes=OFA_SIZES,
    conversion=Conversion(convert.to_ours, convert.infer_config, convert.CREDIT, has_average=True),
    generates=True,
)
