"""What ONE-PEACE is built of. No torch here. Next: sizes.py."""

from dataclasses import dataclass, field

from onepeace.config.reader import Options
from onepeace.errors import UserError


@dataclass(frozen=True)
class MaskedDecoderConfig:
    """The light decoder that fills hidden positions for the denoising loss (paper: masked contrastive learning)."""

    dim: int
    depth: int
    num_heads: int
    ffn_dim: int
    options: dict[str, Options] = field(default_factory=dict)
    """Options of each modality's decoder positions, e.g. ``{"text": {"num_positions": 514}}``."""


@dataclass(frozen=True)
class ClassifierConfig:
    """A head on token features (released code: classify_head)."""

    num_classes: int
    features: str
    """Which modality's token features are pooled."""
    pool: str = "attention"
    """"attention": a learned query over the tokens without CLS; "mean": their mean; "cls": the CLS token."""
    num_heads: int | None = None
    """Heads of the attention pool; the encoder's by default."""
    hidden_ratio: int = 2
    """Width of the hidden layer over the width of the features; 0 = one linear layer."""
    pooler: bool = False
    """A tanh layer between pool and classifier (VQA)."""
    inputs: int = 1
    """How many encoder passes are pooled and concatenated (NLVR2: 2)."""


@dataclass(frozen=True)
class ModelConfig:
    """What OnePeace is built of. The defaults of the numbers are the released 4 B model's."""

    dim: int = 1536
    """Width D of the tokens."""
    embed_dim: int = 1536
    """Width E of the shared space."""
    depth: int = 40
    num_heads: int = 24
    ffn_dim: int = 6144
    layer_scale: float | None = 1e-6
    """Initial gain of both branches of a block; null = none."""
    init_std: float = 0.02
    """Deviation of the Linear layers' initial weights, cut at one deviation. Narrow models learn faster with more."""
    drop_path: float = 0.0
    """Rate of the last block; it grows linearly from 0 at the first."""
    bias_per_block: bool = False
    """One table of relative-position biases per modality and block, instead of one per modality."""
    adapters: dict[str, Options] = field(default_factory=dict)
    """Keyword options of each modality's adapter; the keys are the model's modalities."""
    heads: tuple[str, ...] = ()
    """Modalities with a projection into the shared space."""
    final_norm: bool = True
    """Whether features pass a final LayerNorm per modality (the vision branch with mean pooling has none)."""
    logit_scale: bool = True
    """Whether there is a learned temperature for contrastive training."""
    decoder: MaskedDecoderConfig | None = None
    classifier: ClassifierConfig | None = None

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise UserError(f"model.dim {self.dim} is not a multiple of model.num_heads {self.num_heads}")
        if not self.adapters:
            raise UserError("model.adapters is empty: name at least one modality")
        options = tuple(self.decoder.options) if self.decoder else ()
        for name, keys in {"heads": self.heads, "decoder.options": options}.items():
            unknown = [key for key in keys if key not in self.adapters]
            if unknown:
                raise UserError(f"model.{name} names {unknown[0]!r}; the adapters are {', '.join(self.adapters)}")
        if self.classifier and self.classifier.features not in self.adapters:
            raise UserError(f"model.classifier.features is {self.classifier.features!r}; "
                            f"the adapters are {', '.join(self.adapters)}")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The content of a model folder's config.yaml."""

    model: ModelConfig
    """Of the class that `architecture` names. Typed as ONE-PEACE's; what others need: hub/architectures.py."""
    processors: dict[str, Options] = field(default_factory=dict)
    """Keyword options of each modality's processor of files and values (onepeace/processors)."""
    architecture: str = "onepeace"
    """A key of ARCHITECTURES (onepeace/hub/architectures.py)."""
    format: int = 1
