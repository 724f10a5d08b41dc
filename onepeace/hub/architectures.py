"""The architectures this library can load, train and convert, by the name that stands in config.yaml.

A new one is an entry of `ARCHITECTURES`; no other file names the class of a model. Importing this loads no torch.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onepeace.config import SIZES, Config, ModelConfig, Options
from onepeace.errors import UserError

if TYPE_CHECKING:
    from onepeace.model import OnePeace


@dataclass(frozen=True)
class Architecture:
    """A kind of network: how it is configured, built and made smaller.

    The module offers what the rest of the package uses, by the names it has in `onepeace.model.OnePeace`:

    - `config`, with `adapters` (options by modality), `projections` (the modalities with a vector), `heads` and
      `embed_dim`;
    - `adapters[key]`, with `stem_tokens` and `token_lengths`; `heads`; `logit_scale`, a parameter or None;
    - `stems(inputs)`, `encode(stems, keep)` -> features by modality, `embed(key, features)` -> unit vectors (B, E);
      calling it gives the unit vectors of each input;
    - `no_weight_decay()` for training, `blocks` for its layer decay and activation checkpoints, `reconstruct` and
      `decoder` for the denoising loss, `predict` for `onepeace classify` of fine-tuned models: what a network lacks is
      refused where a recipe or a call asks for it.

    Building it on the meta device allocates nothing, and every tensor of it is in its state_dict.
    """

    config: type
    """The frozen dataclass that `model:` in config.yaml is read into."""
    module: Callable[[Any], "OnePeace"]
    """Makes the module of such a configuration. Typed as the one whose members the interface is."""
    sizes: Mapping[str, Options] = field(default_factory=dict)
    """Fields of `config` by the name of a size, for recipes that start from one."""
    keep_modalities: Callable[[Any, Collection[str]], Any] | None = None
    """The configuration without the other modalities; None if the network cannot do without any."""


def _onepeace(config: ModelConfig) -> "OnePeace":
    from onepeace.model import OnePeace

    return OnePeace(config)


def _keep_modalities(config: ModelConfig, modalities: Collection[str]) -> ModelConfig:
    """Task heads stay if all modalities they may see stay."""
    adapters = {key: options for key, options in config.adapters.items() if key in modalities}
    decoder = config.decoder
    if decoder is not None:
        decoder = replace(decoder, options={key: value for key, value in decoder.options.items() if key in adapters})
    return replace(
        config,
        adapters=adapters,
        projections=tuple(key for key in config.projections if key in adapters),
        decoder=decoder,
        heads=config.heads if len(adapters) == len(config.adapters) else {},
    )


ARCHITECTURES: dict[str, Architecture] = {
    "onepeace": Architecture(ModelConfig, _onepeace, SIZES, _keep_modalities),
}


def architecture(name: str, where: str = "") -> Architecture:
    """The entry of that name. UserError, beginning with the file `where`, if there is none."""
    if name not in ARCHITECTURES:
        at = f"{where}: " if where else ""
        raise UserError(f"{at}architecture {name!r} is not known; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_module(config: Config) -> "OnePeace":
    """A new module of this configuration; its weights are fresh, or without values under `torch.device("meta")`."""
    return architecture(config.architecture).module(config.model)


def keep_modalities(config: Config, modalities: Collection[str], where: str) -> Config:
    """`config` with these modalities only. UserError, beginning with `where`, for one it does not have."""
    unknown = [key for key in modalities if key not in config.model.adapters]
    if unknown or not modalities:
        there = ", ".join(config.model.adapters)
        raise UserError(f"{where}: no modality {unknown[0] if unknown else ''!r}; it has {there}")
    keep = architecture(config.architecture).keep_modalities
    if keep is None:
        raise UserError(f"{where}: a model of architecture {config.architecture} cannot leave a modality out")
    model = keep(config.model, modalities)
    return replace(config, model=model, processors={key: config.processors.get(key, {}) for key in model.adapters})
