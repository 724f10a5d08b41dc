"""Named sizes of ONE-PEACE."""

from onepeace.config.reader import Options

RELEASED_ADAPTERS: dict[str, Options] = {
    "text": {"vocab_size": 50264, "num_positions": 514, "num_buckets": 256},
    "image": {"patch_size": 16, "grid": 16, "bias_grid": 16},
    "audio": {"stem": "wave", "num_buckets": 512, "pos_depth": 5, "pos_kernel": 19, "pos_groups": 16},
}
TINY_ADAPTERS: dict[str, Options] = {
    "text": {"vocab_size": 8000, "num_positions": 80, "num_buckets": 32},
    "image": {"patch_size": 16, "grid": 6, "bias_grid": 6, "stem": "conv"},
    "audio": {"stem": "mel", "num_buckets": 64, "pos_depth": 2, "pos_kernel": 9, "pos_groups": 16},
}
_MODALITIES = ("text", "image", "audio")

# A recipe starts from a named size and can override every field. The three matrices of an FFN of width 2,048 cost as
# much as the two of width 3,072 in a ViT-B, so blocks of "base" have the parameters and compute of a ViT-B's, those of
# "large" of a ViT-L's (within 1 %: 2,752 is a multiple of 64). In "small", one modality uses 30 M parameters.
SIZES: dict[str, Options] = {
    "tiny": {"dim": 256, "embed_dim": 256, "depth": 6, "num_heads": 4, "ffn_dim": 768, "layer_scale": 0.1,
             "adapters": TINY_ADAPTERS, "projections": _MODALITIES,
             "decoder": {"dim": 128, "depth": 2, "num_heads": 4, "ffn_dim": 384}},
    "small": {"dim": 512, "embed_dim": 512, "depth": 9, "num_heads": 8, "ffn_dim": 1344,
              "adapters": RELEASED_ADAPTERS, "projections": _MODALITIES,
              "decoder": {"dim": 256, "depth": 2, "num_heads": 4, "ffn_dim": 704}},
    "base": {"dim": 768, "embed_dim": 768, "depth": 12, "num_heads": 12, "ffn_dim": 2048,
             "adapters": RELEASED_ADAPTERS, "projections": _MODALITIES,
             "decoder": {"dim": 384, "depth": 2, "num_heads": 6, "ffn_dim": 1024}},
    "large": {"dim": 1024, "embed_dim": 1024, "depth": 24, "num_heads": 16, "ffn_dim": 2752,
              "adapters": RELEASED_ADAPTERS, "projections": _MODALITIES,
              "decoder": {"dim": 512, "depth": 2, "num_heads": 8, "ffn_dim": 1344}},
    "4b": {"adapters": RELEASED_ADAPTERS, "projections": _MODALITIES,
           "decoder": {"dim": 768, "depth": 2, "num_heads": 12, "ffn_dim": 2048}},
}  # fmt: skip
