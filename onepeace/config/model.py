"""The configuration of a ONE-PEACE model, and its named sizes. No torch here."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from onepeace.config.reader import Count, Depth, NotNegative, Options, Positive, Share
from onepeace.errors import UserError


@dataclass(frozen=True)
class MaskedDecoderConfig:
    """The light decoder that predicts the features of masked tokens (paper: masked contrastive learning)."""

    dim: Count
    depth: Depth
    num_heads: Count
    ffn_dim: Count
    options: dict[str, Options] = field(default_factory=dict)
    """Options of each modality's decoder positions, e.g. ``{"text": {"num_positions": 514}}``."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and parts of OnePeace. The default numbers are those of the released 4 B model."""

    dim: Count = 1536
    """Width D of the tokens."""
    embed_dim: Count = 1536
    """Width E of the shared space."""
    depth: Depth = 40
    num_heads: Count = 24
    ffn_dim: Count = 6144
    layer_scale: NotNegative | None = 1e-6
    """Initial gain of both branches of a block; null = none."""
    init_std: Positive = 0.02
    """Standard deviation of the Linear layers' initial weights, truncated at one; larger values suit narrow models."""
    drop_path: Share = 0.0
    """Stochastic depth rate of the last block; rates grow linearly from 0 at the first."""
    bias_per_block: bool = False
    """Whether each block has its own table of relative-position biases per modality, instead of a shared one."""
    adapters: dict[str, Options] = field(default_factory=dict)
    """Keyword options of each modality's adapter; the keys are the model's modalities."""
    projections: tuple[str, ...] = ()
    """Modalities with a projection into the shared space."""
    heads: dict[str, Options] = field(default_factory=dict)
    """Task heads by name, e.g. ``{"pets": {"kind": "classifier", "on": "image", "num_classes": 37}}``. ``kind``: a key
    of onepeace.heads.HEADS. ``on``: the modality whose token features the head reads; for a caption head, a list of
    modalities, one of which it reads at a time. ``blocks``: blocks whose outputs it reads as well. ``labels``: class
    names. ``task``: meaning of the outputs (embed/predict.py). Other entries are options of the kind."""
    final_norm: bool | tuple[str, ...] = True
    """Whether features pass through a final LayerNorm per modality (the vision branch with mean pooling has none), or
    the modalities that do."""
    logit_scale: bool = True
    """Whether there is a learned temperature for contrastive training."""
    decoder: MaskedDecoderConfig | None = None

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise UserError(f"model.dim {self.dim} is not a multiple of model.num_heads {self.num_heads}")
        if not self.adapters:
            raise UserError("model.adapters is empty: name at least one modality")
        self._check_modalities("projections", self.projections)
        if self.decoder is not None:
            self._check_modalities("decoder.options", self.decoder.options)
        if not isinstance(self.final_norm, bool):
            self._check_modalities("final_norm", self.final_norm)
        for name, head in self.heads.items():
            self._check_head(name, head)

    def _check_modalities(self, field_name: str, keys: Iterable[str]) -> None:
        for key in keys:
            if key not in self.adapters:
                raise UserError(f"model.{field_name} names {key!r}; the adapters are {', '.join(self.adapters)}")

    def _check_head(self, name: str, head: Options) -> None:
        if name in self.adapters:
            raise UserError(f"model.heads.{name} has the name of a modality, which is reserved for its projection")
        on = head.get("on") or []
        is_list = isinstance(on, list) and head.get("kind") == "caption"
        modalities = on if is_list else [str(on)]
        if "kind" not in head or not on or not set(modalities) <= set(self.adapters):
            raise UserError(
                f"model.heads.{name} is {head}; it needs kind (e.g. classifier) and on, a modality of "
                f"{', '.join(self.adapters)}"
            )

    def has_final_norm(self, modality: str) -> bool:
        """Whether the features of a modality pass through a final LayerNorm."""
        return self.final_norm if isinstance(self.final_norm, bool) else modality in self.final_norm


@dataclass(frozen=True)
class Base:
    """Model that has the tensors missing from a model folder."""

    name: str
    """Name of the model, as accepted by `onepeace.load`."""
    fingerprint: str
    """Fingerprint of its folder (hub/resolve.py)."""


@dataclass(frozen=True)
class Config:
    """The content of a model folder's config.yaml.

    The file is part of a model's fingerprint (hub/resolve.py), by which indexes know their model: a field that is
    added to the file of a model makes the indexes built with it before refuse it.
    """

    model: ModelConfig
    """Instance of the configuration class of `architecture`, typed as ONE-PEACE's."""
    processors: dict[str, Options] = field(default_factory=dict)
    """Keyword options of each modality's processor of files and values (onepeace/processors)."""
    architecture: str = "onepeace"
    """A key of ARCHITECTURES (onepeace/hub/architectures.py)."""
    base: Base | None = None
    """Model that has the tensors missing from the folder, e.g. for a head on a frozen model, which is stored alone."""
    format: int = 1


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
