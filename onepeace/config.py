"""Configuration: frozen dataclasses, and the one reader that fills them from YAML. No torch here.

``ModelConfig`` says what OnePeace is built of, ``Config`` adds how each medium is decoded: together they are the
``config.yaml`` of a model folder. Recipes (onepeace/train/recipe.py) are read by the same ``build``.
"""

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from onepeace.errors import UserError

T = TypeVar("T")
Options = dict[str, Any]


@dataclass(frozen=True)
class DecoderConfig:
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
    decoder: DecoderConfig | None = None
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
    media: dict[str, Options] = field(default_factory=dict)
    """Keyword options of each modality's decoder of files and values (onepeace/media)."""
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

# Named sizes a recipe starts from; every field can be overridden there. An FFN has three matrices: 2,048 wide they cost
# what the two of 3,072 cost in a ViT-B, so "base" is a ViT-B in parameters and compute per block, and "large" likewise
# a ViT-L (within 1 %: 2,752 is a multiple of 64). What one modality goes through in "small" is 30 M parameters.
SIZES: dict[str, Options] = {
    "tiny": {"dim": 256, "embed_dim": 256, "depth": 6, "num_heads": 4, "ffn_dim": 768, "layer_scale": 0.1,
             "adapters": TINY_ADAPTERS, "heads": _MODALITIES,
             "decoder": {"dim": 128, "depth": 2, "num_heads": 4, "ffn_dim": 384}},
    "small": {"dim": 512, "embed_dim": 512, "depth": 9, "num_heads": 8, "ffn_dim": 1344,
              "adapters": RELEASED_ADAPTERS, "heads": _MODALITIES,
              "decoder": {"dim": 256, "depth": 2, "num_heads": 4, "ffn_dim": 704}},
    "base": {"dim": 768, "embed_dim": 768, "depth": 12, "num_heads": 12, "ffn_dim": 2048,
             "adapters": RELEASED_ADAPTERS, "heads": _MODALITIES,
             "decoder": {"dim": 384, "depth": 2, "num_heads": 6, "ffn_dim": 1024}},
    "large": {"dim": 1024, "embed_dim": 1024, "depth": 24, "num_heads": 16, "ffn_dim": 2752,
              "adapters": RELEASED_ADAPTERS, "heads": _MODALITIES,
              "decoder": {"dim": 512, "depth": 2, "num_heads": 8, "ffn_dim": 1344}},
    "4b": {"adapters": RELEASED_ADAPTERS, "heads": _MODALITIES,
           "decoder": {"dim": 768, "depth": 2, "num_heads": 12, "ffn_dim": 2048}},
}  # fmt: skip


def read_yaml(path: Path | str) -> Options:
    """The mapping in a YAML file; UserError names the file and line of a mistake."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path}:{line} not YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


def read_config(path: Path | str) -> Config:
    """Read a model folder's config.yaml."""
    content = read_yaml(path)
    if content.get("format", 1) != 1:
        raise UserError(f"{path}: format {content['format']} is newer than this onepeace reads (1); upgrade onepeace")
    return build(Config, content, str(path))


def write_config(config: Any, path: Path | str) -> None:
    """Write a dataclass as YAML, atomically."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        yaml.safe_dump(to_plain(config), file, sort_keys=False, allow_unicode=True)
    os.replace(temporary, path)


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as plain YAML values; ``build`` reads them back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Options:
    """``base`` with the fields of ``over`` in place of its own, mappings merged field by field."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def apply_override(content: Options, override: str) -> None:
    """Set a field of a mapping: "a.b=value", the value in YAML; a number in the path counts into a list."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r} is not an override; write it as a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not YAML") from error
    *parents, last = name.split(".")
    place: Any = content
    for parent in parents:
        if isinstance(place, list):
            place = place[_index(place, parent, override)]
        else:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
        if not isinstance(place, dict | list):
            raise UserError(f"{override!r}: {parent} is a value and has no fields")
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _index(place: list[Any], text: str, override: str) -> int:
    if not text.isdigit() or int(text) >= len(place):
        raise UserError(f"{override!r}: {text} is not one of the list's places, 0 to {len(place) - 1}")
    return int(text)


def build(cls: type[T], content: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of a mapping: unknown fields are refused, values coerced to the declared type.

    Args:
        cls: a dataclass; nested dataclasses, ``X | None``, lists, tuples and dicts of them are followed.
        content: as read from YAML.
        where: the file, for messages.
    """
    return _build(cls, content, where, "")


def _build(cls: Any, content: Any, where: str, at: str) -> Any:
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: {at or 'the file'} should be a mapping of fields, not {content!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for name, value in content.items():
        path = f"{at}.{name}" if at else str(name)
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {at + '.' if at else ''}{near[0]}?" if near else f"known: {', '.join(fields)}"
            raise UserError(f"{where}: {path} is not a field; {hint}")
        values[name] = _coerce(hints[name], value, where, path)
    missing = [
        name for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise UserError(f"{where}: {at + '.' if at else ''}{missing[0]} is missing")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _coerce(kind: Any, value: Any, where: str, at: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return _coerce(option, value, where, at)
            except UserError as error:
                errors.append(error)
        raise errors[-1]
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where, at)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(_coerce(args[0] if args else Any, item, where, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _coerce(args[1], item, where, f"{at}.{key}") for key, item in value.items()}
    if kind is bool and isinstance(value, bool):
        return value
    # PyYAML reads "1e-6" (no dot) as text; a float field takes it for what it is.
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float or number == int(number):
                return kind(number)
        except (ValueError, OverflowError):
            pass
    if kind is str and isinstance(value, str):
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise UserError(f"{where}: {at} should be {name}, not {value!r}")
