"""Sections of a recipe, as typed and frozen dataclasses; each checks itself. The data section is in data/config.py.

Fields of several sections that do not fit together are found in model_config.py.
"""

import inspect
from dataclasses import dataclass, field
from typing import Literal

from onepeace.config import Options
from onepeace.config.reader import Count, Natural, NotNegative, OpenShare, Positive, Share, nearest
from onepeace.errors import UserError
from onepeace.layers.recompute import Recompute


@dataclass(frozen=True)
class StartConfig:
    """Fields of a recipe's ``model`` about its initial weights; all others belong to its configuration."""

    architecture: str | None = None
    """Key of ARCHITECTURES; default: that of ``from``, else onepeace."""
    size: str | None = None
    """Named size of the architecture."""
    source: str | None = None
    """``from`` in YAML: a model folder, a run, "tiny" or a released name."""
    modalities: tuple[str, ...] = ()
    """Modalities of the model; empty = all that it has."""
    copy: dict[str, str] = field(default_factory=dict)
    """{new: old}: FFNs, norms and projection of a new modality are initialised from those of another, and so is an
    adapter of the same class or a subclass (frames of a video from pictures), with all its options that the recipe does
    not set. What is copied is logged."""
    fresh: tuple[str, ...] = ()
    """Patterns of weights of ``from`` that are not used."""
    pretrained: bool = True
    """Whether a stem that names a network starts from its published weights."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Options of the tokenizer; with model.from, that model's tokenizer is used."""

    vocab_size: Count = 8000
    """Size of the vocabulary trained on the captions of the sources, if there is no name."""
    name: Literal["clip"] | None = None
    """clip for CLIP's tokenizer, from open_clip."""
    file: str | None = None
    """A tokenizer.json of a model of ours, or the model's folder, relative to the working folder. That of the released
    one-peace has GPT-2's vocabulary (50,265, case kept), as in the paper."""

    extend: bool = False
    """Whether the vocabulary of model.from grows to vocab_size by pieces of the captions, such as those of other
    languages. A new piece starts with the mean of the pieces that it consists of."""

    def __post_init__(self) -> None:
        if self.name is not None and self.file is not None:
            raise UserError("tokenizer.name and tokenizer.file both name a vocabulary; give one of them")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (lora.py); all other parameters are frozen, except those of freeze: {except: patterns}."""

    rank: Count = 8
    alpha: Positive = 16.0
    """The output of a low-rank adapter is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """Dropout of its input."""
    targets: tuple[str, ...] = ("blocks.*.attn.[qkv]", "blocks.*.attn.proj")
    """Patterns of module names; their linear layers are adapted: ["blocks.*.attn.*", "blocks.*.ffn.image.*"]."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise UserError("lora.targets is empty: name the layers that get adapters")


@dataclass(frozen=True)
class OptimGroup:
    """Optimizer settings of some parameters."""

    lr_scale: NotNegative = 1.0
    """Factor of the learning rate, on top of that of optim.layer_decay."""
    weight_decay: NotNegative | None = None
    """Weight decay of those parameters that decay at all; null = optim.weight_decay."""


@dataclass(frozen=True)
class OptimConfig:
    """Options of the optimizer; the defaults of adamw are those of the released pretraining."""

    name: str = "adamw"
    """adamw: torch's fused AdamW. Any other name is one of timm's optimizers: muon, lion, lamb, adopt, sgdw, ..."""
    lr: NotNegative = 5e-4
    """Peak learning rate."""
    betas: tuple[Share, Share] | None = None
    """Decay of the averages of the gradient and of its square; null = (0.9, 0.98) for adamw, else timm's default."""
    eps: NotNegative | None = None
    """Added to the root of the second average; null = 1e-8 for adamw, else timm's default."""
    weight_decay: NotNegative = 0.05
    options: Options = field(default_factory=dict)
    """Further arguments of timm's optimizer by name, as {momentum: 0.95, nesterov: true} for muon."""
    decay_all: bool = False
    """Whether biases, norms and positions decay as well (OFA)."""
    grad_clip: Positive | None = 3.0
    """Maximum norm of the gradient; null = no clipping."""
    layer_decay: NotNegative | None = None
    """Ratio of a layer's learning rate to the next layer's, for fine-tuning."""
    groups: dict[str, OptimGroup] = field(default_factory=dict)
    """Settings by pattern of parameter names, as {"heads.*": {lr_scale: 0.1}}; the first match counts."""

    def __post_init__(self) -> None:
        if self.name != "adamw":
            check_optimizer(self.name, self.arguments)
            return
        for name in self.options:
            raise UserError(f"optim.options.{name}: adamw has no further options; leave it out")
        if self.betas is None:
            object.__setattr__(self, "betas", (0.9, 0.98))
        if self.eps is None:
            object.__setattr__(self, "eps", 1e-8)

    @property
    def is_muon(self) -> bool:
        """Whether some parameters are left to AdamW: Muon is for matrices inside a network."""
        return self.name.endswith("muon")

    @property
    def arguments(self) -> Options:
        """Arguments of the optimizer's class beside the learning rate and the weight decay."""
        arguments = dict(self.options)
        if self.betas is not None:
            arguments["betas"] = self.betas
        if self.eps is not None:
            arguments["eps"] = self.eps
        return arguments


def check_optimizer(name: str, arguments: Options) -> None:
    """UserError if timm has no optimizer of this name, or if it has no such argument."""
    from timm import optim

    names = optim.list_optimizers(exclude_filters=["bnb*", "fused*", "*hessian"])
    optimizer_names = [str(listed) for listed in names]
    if name not in optimizer_names:
        raise UserError(f"optim.name {name!r} is not known; {nearest(name, ['adamw', *optimizer_names])}")
    parameters = inspect.signature(optim.get_optimizer_class(name, bind_defaults=False)).parameters
    for argument in arguments:
        if argument in ("params", "lr", "weight_decay") or argument not in parameters:
            option = argument if argument in ("betas", "eps") else f"options.{argument}"
            raise UserError(f"optim.{option} is not an option of {name}; it has {', '.join(parameters)}")


@dataclass(frozen=True)
class RunConfig:
    """Options of the training loop."""

    out: str
    """Folder of the run: checkpoints, log, the resolved recipe."""
    batch_size: dict[str, Count] | Count = 32
    """Items per step for each name of sources, or by name: {image+text: 256, audio+text: 64}."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, or autocast to bfloat16; auto = bfloat16 where the device computes in it natively. There is no float16:
    gains of 1e-6 and the losses' gradients would need a scale of their own; older GPUs train in float32."""
    workers: Natural = 1
    """Number of processes that load data; 0 = load it between the steps."""
    log_every: Count = 20
    eval_every: Natural = 0
    """Steps between evaluations; 0 = at the end only."""
    save_every: Natural = 0
    """Steps between checkpoints; 0 = by time only."""
    save_minutes: NotNegative = 5.0
    """Minutes between checkpoints, or more if they would stop the training for over 2 % of the time; 0 = by steps
    only."""
    keep: Count = 2
    """Number of checkpoints to keep."""
    ema: OpenShare | None = None
    """Decay of the averaged weights; null = none."""
    grad_cache_chunks: Count = 1
    """Number of parts in which a process computes its batch; more parts need less memory, with the same result, which
    gradient accumulation of a contrastive loss does not have."""
    recompute: Recompute = "ffn"
    """What the backward pass recomputes instead of storing it: blocks, of which only the inputs are stored; ffn, the
    cheap end of FFNs and attention; or none, which needs most memory and is fastest."""
    max_padding: NotNegative = 0.1
    """Share of padding above which items are computed in groups of similar length; 1 = never."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Layout over several processes: ddp, each holds the whole model; fsdp, each holds a shard."""
    shard: Count | None = None
    """Number of processes that share one copy of the model under fsdp; null = those of one machine."""
    keep_gathered: bool | Literal["auto"] = "auto"
    """Whether weights that fsdp has gathered stay through all passes of a step, which needs memory for two bytes a
    weight and saves most of the traffic; auto = if they take at most a tenth of a GPU's memory."""
    compile: bool = False
    """Whether to compile the blocks with torch.compile, where it pays (`onepeace.compiling`)."""
    loggers: tuple[str, ...] = ()
    """Where the log is written as well: tensorboard (extra ``track``), wandb, mlflow (extras of these names)."""
    profile: tuple[Count, Count] | None = None
    """First and last step that torch's profiler records in the first process, into trace.json.gz; null = none."""

    def __post_init__(self) -> None:
        if self.profile is not None and self.profile[0] > self.profile[1]:
            raise UserError(f"run.profile {list(self.profile)} ends before it begins; give [first, last]")
        if self.parallel == "ddp":
            if self.shard is not None:
                raise UserError(f"run.shard {self.shard} is for run.parallel fsdp, but this is ddp; leave it out")
            if self.keep_gathered != "auto":
                raise UserError("run.keep_gathered is for run.parallel fsdp, but this is ddp; leave it out")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation of the run."""

    recipe: str
    """Evaluation recipe, such as recipes/evaluate/tiny.yaml: a path relative to the working folder or else to the
    nearest folder above this recipe that has it."""
    sets: tuple[str, ...] | None = None
    """Names of its sets to use; null = all."""
