"""Architectures that this library can load, train and convert, by their name in config.yaml.

To add one, add an entry to `ARCHITECTURES`; no other file names a model class. Importing this does not import torch.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.config import SIZES, Config, ModelConfig, Options
from onepeace.errors import UserError, expect, one_line
from onepeace.extensions import HINT, Table
from onepeace.hub.convert.infer import infer_config
from onepeace.hub.convert.keys import KEPT_AXES, to_ours
from onepeace.hub.towers.config import TowersConfig
from onepeace.hub.towers.config import keep_modalities as keep_modalities_of_towers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from onepeace.model import Embeds, Encoder, OnePeace, Trained
    from onepeace.processors import Processor

Shape = tuple[int, ...]
Loaded = tuple["Embeds", Mapping[str, "Processor"]]
"""A module that makes vectors, and the processor of each of its modalities."""


@dataclass(frozen=True)
class Conversion:
    """Conversion of checkpoints of an architecture's original code into model folders (onepeace/hub/convert)."""

    to_ours: Callable[[str], str | None]
    """Our name of an original parameter; None if it is dropped; LookupError for an unknown name. A result that ends in
    "[n]" means that the tensor becomes row n of one of ours."""
    infer_config: Callable[[Path, Mapping[str, Shape], Mapping[str, Any]], Config]
    """The configuration, from the path, the shapes by our names, and the trainer's cfg ({} if there is none)."""
    credit: str = ""
    """Last line of MODEL_CARD.md: authors and licence of the weights."""
    kept_axes: Mapping[str, int] = field(default_factory=dict)
    """For tensors whose leading axes of size 1 are dropped, the number of remaining axes by our name."""
    has_average: bool = False
    """Whether to use the moving average of the weights (fairseq's EMA) if a file has one, as published scores do."""


@dataclass(frozen=True)
class Architecture:
    """A kind of network: how to configure, build, change and convert it.

    The module is an `onepeace.model.Encoder`, unless it generates text. All its tensors are in its state_dict.
    """

    config: type
    """Frozen dataclass of the section `model:` in config.yaml."""
    module: Callable[[Any], "Trained"] | None
    """Builds the module from such a configuration; None if `load` makes it."""
    sizes: Mapping[str, Options] = field(default_factory=dict)
    """Fields of `config` by the name of a size that a recipe can start from."""
    keep_modalities: Callable[[Any, Collection[str]], Any] | None = None
    """Reduces a configuration to some modalities; None if the network needs all of them."""
    resize: Callable[["Tensor", Shape], "Tensor"] | None = None
    """Resizes a tensor to its shape for another picture size; None if the size is fixed."""
    conversion: Conversion | None = None
    """Conversion of original checkpoints; None if there are none."""
    generates: bool = False
    """Whether it writes text and has no embeddings; such models are loaded by `onepeace.load_generator`."""
    processors: Mapping[str, "Callable[[Options, Path], Processor]"] = field(default_factory=dict)
    """By modality, what makes the processor of a model from the settings and the folder, in place of the one in
    `onepeace.processors.PROCESSORS`."""
    load: "Callable[[Any, Path, torch.device, str | torch.dtype], Loaded] | None" = None
    """Loads a model whose weights are not in its folder, from the configuration, the folder, the device and the name
    of the dtype; None if they are."""


CREDIT = (
    "Weights by the authors of ONE-PEACE (Wang et al., arXiv 2305.11172; https://github.com/OFA-Sys/ONE-PEACE, "
    "Apache-2.0)."
)


def _one_peace(config: ModelConfig) -> "OnePeace":
    """Build the model; UserError for a modality that has no adapter."""
    from onepeace.model import ADAPTERS, OnePeace

    for key in config.adapters:
        if key not in ADAPTERS:
            raise UserError(f"no modality {key!r}; known: {', '.join(ADAPTERS)}; {HINT}")
    return OnePeace(config)


def _keep_modalities_of_one_peace(config: ModelConfig, modalities: Collection[str]) -> ModelConfig:
    """Keep these modalities, and task heads that read items of one of them; other heads need all modalities."""
    adapters = {key: options for key, options in config.adapters.items() if key in modalities}
    decoder = config.decoder
    if decoder is not None:
        decoder = replace(decoder, options={key: value for key, value in decoder.options.items() if key in adapters})
    heads = config.heads
    if len(adapters) < len(config.adapters):
        heads = _kept_heads(heads, adapters)
    final_norm = config.final_norm
    if not isinstance(final_norm, bool):
        final_norm = tuple(key for key in final_norm if key in adapters)
    return replace(
        config,
        adapters=adapters,
        final_norm=final_norm,
        projections=tuple(key for key in config.projections if key in adapters),
        decoder=decoder,
        heads=heads,
    )


def _kept_heads(heads: Mapping[str, Options], modalities: Collection[str]) -> dict[str, Options]:
    kept = {}
    for name, head in heads.items():
        if isinstance(head["on"], list):
            keys = [key for key in head["on"] if key in modalities]
            if keys:
                kept[name] = {**head, "on": keys}
        elif head["on"] in modalities and classifies_items(head):
            kept[name] = head
    return kept


def classifies_items(head: Options) -> bool:
    """Whether a head classifies single items: it reads neither several nor a question."""
    has_classes = head.get("task", "label") in ("label", "labels")
    return head["kind"] == "classifier" and has_classes and head.get("inputs", 1) == 1


def resize(table: "Tensor", shape: tuple[int, ...]) -> "Tensor":
    """Resample a table of relative-position biases to ``shape``; no other tensor depends on the size of pictures.

    A table that is not of a grid, such as that of texts, stays as it is.
    """
    from onepeace.layers.position import grid_table_rows, resize_bias_table

    rows = [grid_table_rows(side) for side in range(1, shape[0])]
    if table.shape[0] not in rows or shape[0] not in rows:
        return table
    return resize_bias_table(table, rows.index(shape[0]) + 1)


def _load_towers(config: TowersConfig, folder: Path, device: "torch.device", dtype: "str | torch.dtype") -> Loaded:
    from onepeace.hub.towers.space import load_towers

    return load_towers(config, folder, device, dtype)


ARCHITECTURES: Table[Architecture] = Table(
    {
        "onepeace": Architecture(
            config=ModelConfig,
            module=_one_peace,
            sizes=SIZES,
            keep_modalities=_keep_modalities_of_one_peace,
            resize=resize,
            conversion=Conversion(to_ours, infer_config, CREDIT, KEPT_AXES),
        ),
        "ofa": "onepeace.generative.model.ARCHITECTURE",
        "towers": Architecture(
            config=TowersConfig,
            module=None,
            keep_modalities=keep_modalities_of_towers,
            load=_load_towers,
        ),
    }
)


def architecture(name: str, where: str = "") -> Architecture:
    """The architecture called `name`. UserError, beginning with the file `where`, if there is none."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"architecture {name!r} is not known; known: {known}; {HINT}", where=where)
    return ARCHITECTURES[name]


def build_module(config: Config, where: str = "") -> "Trained":
    """Build the module of a configuration, with initialised weights, or without values under `torch.device("meta")`.

    Raises:
        UserError: an option of a part of the model is unknown or wrong; the message begins with `where`.
    """
    make = architecture(config.architecture).module
    if make is None:
        raise _of_another_library(where)
    try:
        return make(config.model)
    except UserError as error:
        raise UserError(str(error), where=where) from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the model of this configuration cannot be built ({one_line(error)})", where=where) from error


def check_own_weights(config: Config, where: str = "") -> None:
    """Raise UserError, beginning with `where`, if models of this configuration are those of another library."""
    if architecture(config.architecture).module is None:
        raise _of_another_library(where)


def _of_another_library(where: str) -> UserError:
    return UserError(
        "models of other libraries give vectors only, for search, index, serve, classify and evaluate; training, "
        "heads, heat maps, export and conversion need a model of this package, such as tiny",
        where=where,
    )


def build_encoder(config: Config, where: str = "") -> "Encoder":
    """`build_module` for an architecture that encodes; UserError, beginning with `where`, for one that generates."""
    from onepeace.model import Encoder

    check_encodes(config, where)
    return expect(build_module(config, where), Encoder)


def can_write(config: Config) -> bool:
    """Whether models of this configuration write text (`onepeace.load_generator`)."""
    return architecture(config.architecture).generates or bool(writing_head(config))


def writing_head(config: Config) -> str:
    """Name of the model's head that writes text; "" if it has none."""
    for name, head in config.model.heads.items():
        if head["kind"] == "caption":
            return name
    return ""


def check_encodes(config: Config, where: str = "") -> None:
    """Raise UserError, beginning with `where`, if models of this configuration generate."""
    if architecture(config.architecture).generates:
        raise UserError(
            f"models of architecture {config.architecture} write text and have no vectors; load one with "
            "onepeace.load_generator",
            where=where,
        )


def keep_modalities(config: Config, modalities: Collection[str], where: str) -> Config:
    """Reduce `config` to these modalities. UserError, beginning with `where`, for one that it does not have."""
    names = ", ".join(config.model.adapters)
    if not modalities:
        raise UserError(f"modalities is empty; it has {names}", where=where)
    for key in modalities:
        if key not in config.model.adapters:
            raise UserError(f"no modality {key!r}; it has {names}", where=where)
    keep = architecture(config.architecture).keep_modalities
    if keep is None:
        raise UserError(f"models of architecture {config.architecture} cannot leave a modality out", where=where)
    model = keep(config.model, modalities)
    processors = {key: options for key, options in config.processors.items() if key in model.adapters}
    return replace(config, model=model, processors=processors)
