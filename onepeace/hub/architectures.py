"""The architectures this library can load, train and convert, by the name that stands in config.yaml.

A new one is an entry of `ARCHITECTURES`; no other file names the class of a model. Importing this loads no torch.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.config import SIZES, Config, ModelConfig, Options
from onepeace.config.ofa import OFA_SIZES, OFAConfig
from onepeace.errors import UserError, expect
from onepeace.hub import one_peace
from onepeace.hub.convert import ofa
from onepeace.hub.convert.infer import infer_config
from onepeace.hub.convert.keys import KEPT_AXES, to_ours

if TYPE_CHECKING:
    from torch import Tensor

    from onepeace.model import Encoder, Trained

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conversion:
    """Conversion of checkpoints of an architecture's original code into model folders (onepeace/hub/convert)."""

    to_ours: Callable[[str], str | None]
    """Our name of an original parameter; None for what is dropped; LookupError for an unknown name. A name that ends in
    "[n]" makes the tensor row n of one of ours."""
    infer_config: Callable[[Path, Mapping[str, Shape], Mapping[str, Any]], Config]
    """The configuration, from the shapes of our tensors and the trainer's cfg ({} if the file has none)."""
    credit: str = ""
    """Last line of MODEL_CARD.md: whose weights these are, and under which licence."""
    kept_axes: Mapping[str, int] = field(default_factory=dict)
    """Number of axes kept of tensors whose leading axes of size 1 are dropped, by our name."""
    has_average: bool = False
    """Whether the published scores need the moving average of the weights, of files that hold one (fairseq's EMA)."""


@dataclass(frozen=True)
class Architecture:
    """A kind of network: how it is configured, built, changed and converted.

    The module of one that encodes is an `onepeace.model.Encoder`, that of one that generates an
    `onepeace.generative.model.Writer`. Every tensor of it is in its state_dict.
    """

    config: type
    """The frozen dataclass that `model:` in config.yaml is read into."""
    module: Callable[[Any], "Trained"]
    """Makes the module of such a configuration."""
    sizes: Mapping[str, Options] = field(default_factory=dict)
    """Fields of `config` by the name of a size, for recipes that start from one."""
    keep_modalities: Callable[[Any, Collection[str]], Any] | None = None
    """The configuration without the other modalities; None if the network needs all."""
    resize: Callable[["Tensor", Shape], "Tensor"] | None = None
    """Makes a tensor fit the shape that it has for pictures of another size; None if that is fixed."""
    conversion: Conversion | None = None
    """None if there are no checkpoints of other code."""
    generates: bool = False
    """It writes text and has no vectors: `onepeace.load_generator` loads it, and what needs vectors refuses it."""


def _ofa(config: OFAConfig) -> "Trained":
    from onepeace.generative.model import OFA

    return OFA(config)


ARCHITECTURES: dict[str, Architecture] = {
    "onepeace": Architecture(
        ModelConfig,
        one_peace.module,
        SIZES,
        one_peace.keep_modalities,
        one_peace.resize,
        Conversion(to_ours, infer_config, one_peace.CREDIT, KEPT_AXES),
    ),
    "ofa": Architecture(
        OFAConfig,
        _ofa,
        OFA_SIZES,
        conversion=Conversion(ofa.to_ours, ofa.infer_config, ofa.CREDIT, has_average=True),
        generates=True,
    ),
}


def architecture(name: str, where: str = "") -> Architecture:
    """The entry of that name. UserError, beginning with the file `where`, if there is none."""
    if name not in ARCHITECTURES:
        at = f"{where}: " if where else ""
        raise UserError(f"{at}architecture {name!r} is not known; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_module(config: Config) -> "Trained":
    """A new module of this configuration; its weights are fresh, or without values under `torch.device("meta")`."""
    return architecture(config.architecture).module(config.model)


def build_encoder(config: Config, where: str = "") -> "Encoder":
    """The same of an architecture that encodes; UserError, beginning with `where`, for one that generates."""
    from onepeace.model import Encoder

    check_encodes(config, where)
    return expect(build_module(config), Encoder)


def check_encodes(config: Config, where: str = "") -> None:
    """UserError, beginning with `where`, if models of this configuration generate."""
    if architecture(config.architecture).generates:
        raise UserError(
            f"{f'{where}: ' if where else ''}models of architecture {config.architecture} write text and have no "
            "vectors; load one with onepeace.load_generator"
        )


def keep_modalities(config: Config, modalities: Collection[str], where: str) -> Config:
    """`config` with these modalities only. UserError, beginning with `where`, for one it does not have."""
    unknown = [key for key in modalities if key not in config.model.adapters]
    if unknown or not modalities:
        there = ", ".join(config.model.adapters)
        raise UserError(f"{where}: no modality {unknown[0] if unknown else ''!r}; it has {there}")
    keep = architecture(config.architecture).keep_modalities
    if keep is None:
        raise UserError(f"{where}: models of architecture {config.architecture} cannot leave a modality out")
    model = keep(config.model, modalities)
    processors = {key: options for key, options in config.processors.items() if key in model.adapters}
    return replace(config, model=model, processors=processors)
