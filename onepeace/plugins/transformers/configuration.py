"""Configurations: the content of a model folder's config.yaml, under the names of transformers."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from onepeace.config import SIZES, Config, build, merge, to_plain
from onepeace.errors import UserError
from onepeace.hub.architectures import architecture, keep_modalities
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import resolve
from onepeace.model.adapters import ADAPTERS
from onepeace.processors.tokenizer import BOS, EOS, PAD

HEAD = "classifier"
"""Name of the head that the classifiers use."""


def _field(*path: str, default: Any = None) -> Any:
    """Property for a field of ``model``, given the path of names to it."""

    def get(self: "OnePeaceConfig") -> Any:
        value: Any = self.model or {}
        for name in path[:-1]:
            value = value.get(name, {})
        return value.get(path[-1], default)

    def put(self: "OnePeaceConfig", value: Any) -> None:
        for name in reversed(path):
            value = {name: value}
        self.model = merge(self.model or {}, value)

    return property(get, put)


class OnePeaceConfig(PreTrainedConfig):
    """Fields of `onepeace.config.Config` as plain values.

    Sizes in ``model`` also have their names in transformers (``hidden_size``, ``projection_dim``, ...).
    """

    model_type = "onepeace"
    modality: ClassVar[str | None] = None
    """The only modality of a configuration of a part of the model."""

    architecture: str = "onepeace"
    model: dict[str, Any] | None = None
    processors: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model is not None and self.modality is not None:
            self.keep((self.modality,))
        super().__post_init__(**kwargs)

    @classmethod
    def from_onepeace(cls, name: str = "tiny", **kwargs: Any) -> Any:
        """Configuration of a model by name, see `onepeace.load`; ``kwargs`` as in ``from_pretrained``."""
        config = to_plain(read_config(resolve(name)))
        head = config["model"].get("heads", {}).get(HEAD)
        if head and not {"num_labels", "id2label"} & kwargs.keys():
            kwargs["num_labels"] = head["num_classes"]
            labels = head.get("labels")
            if labels:
                kwargs["id2label"] = dict(enumerate(labels))
                kwargs["label2id"] = {label: number for number, label in enumerate(labels)}
        fields = {key: config[key] for key in ("architecture", "model", "processors")}
        return cls.from_dict(fields, name_or_path=str(name), **kwargs)

    def to_onepeace(self) -> Config:
        """Configuration as in a model folder; UserError if it is missing or invalid."""
        where = f"configuration {self.name_or_path or self.model_type}"
        if self.model is None:
            raise UserError("has no field model; take one from_onepeace(NAME) or from_pretrained(FOLDER)", where=where)
        # config.json is sorted by name, but the order of modalities is that of their tokens in a joint pass.
        adapters = self.model.get("adapters", {})
        order = dict.fromkeys([*ADAPTERS, *adapters])
        ordered = {modality: adapters[modality] for modality in order if modality in adapters}
        content = {**self.model, "adapters": ordered}
        model: Any = build(architecture(self.architecture, where).config, content, where, "model")
        return Config(model, dict(self.processors or {}), self.architecture)

    def keep(self, modalities: tuple[str, ...]) -> None:
        """Remove all other modalities; UserError if one of these is missing."""
        whole = self.to_onepeace()
        if set(whole.model.adapters) != set(modalities):
            part = keep_modalities(whole, modalities, f"configuration {self.name_or_path or self.model_type}")
            self.model = to_plain(part.model)
            self.processors = to_plain(part.processors)

    def remove_shared_space(self) -> None:
        """Remove what embeddings and pretraining use, and task heads: a part that reads features never trains these."""
        unused = {"projections": [], "logit_scale": False, "decoder": None, "heads": {}}
        self.model = {**(self.model or {}), **unused}

    hidden_size = _field("dim", default=0)
    projection_dim = _field("embed_dim", default=0)
    num_hidden_layers = _field("depth", default=0)
    num_attention_heads = _field("num_heads", default=0)
    intermediate_size = _field("ffn_dim", default=0)
    vocab_size = _field("adapters", "text", "vocab_size")
    patch_size = _field("adapters", "image", "patch_size", default=16)

    @property
    def image_size(self) -> int | list[int]:
        """Side of the processor's images; [height, width] if they differ."""
        return (self.processors or {}).get("image", {}).get("size", 256)

    @property
    def text_config(self) -> "OnePeaceConfig | None":
        """This configuration, whose sizes are those of all modalities; None if the model does not read text."""
        return self if "text" in (self.model or {}).get("adapters", {}) else None

    num_channels = 3
    bos_token_id = BOS
    pad_token_id = PAD
    eos_token_id = EOS


class _PartConfig(BackboneConfigMixin, OnePeaceConfig):
    """Configuration of the encoder of one modality; it also reads its part of the configuration of a whole model.

    Without a model, it is that of the size "base"; the names of transformers (``hidden_size``, ...) change its sizes.
    Stage 0 of a backbone, "stem", is the input of the first block, and "stage3" the output of the third.
    """

    apply_layernorm: bool = True
    """Whether the final norm is applied to feature maps."""
    reshape_hidden_states: bool = True
    """Whether feature maps are (B, D, rows, columns), rather than tokens (B, L, D) with CLS first."""
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        out_features = kwargs.pop("out_features", None)
        out_indices = kwargs.pop("out_indices", None)
        if self.model is None:
            self.model = dict(SIZES["base"])
        super().__post_init__(**kwargs)
        self.remove_shared_space()
        self._name_stages(out_features, out_indices)

    def _name_stages(self, out_features: list[str] | None = None, out_indices: list[int] | None = None) -> None:
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]
        self.set_output_features_output_indices(out_features, out_indices)

    def _set_depth(self, value: int) -> None:
        last_only = self._out_indices == [self.num_hidden_layers]
        OnePeaceConfig.num_hidden_layers.fset(self, value)
        self._name_stages(out_indices=None if last_only else self._out_indices)

    num_hidden_layers = property(OnePeaceConfig.num_hidden_layers.fget, _set_depth)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        content, rest = super().get_config_dict(*args, **kwargs)
        if content.get("model_type") == OnePeaceConfig.model_type:
            content["model_type"] = cls.model_type
        return content, rest


class OnePeaceVisionConfig(_PartConfig):
    model_type = "onepeace_vision"
    modality = "image"


class OnePeaceAudioConfig(_PartConfig):
    model_type = "onepeace_audio"
    modality = "audio"
