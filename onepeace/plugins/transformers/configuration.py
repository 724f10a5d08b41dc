"""Configurations: the content of a model folder's config.yaml, under the names of transformers."""

from typing import Any

from transformers import PreTrainedConfig

from onepeace.config import Config, build, to_plain
from onepeace.errors import UserError
from onepeace.hub.architectures import architecture, keep_modalities
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import resolve
from onepeace.model.adapters import ADAPTERS

HEAD = "classifier"
"""Name of the head that the classifiers use."""


class OnePeaceConfig(PreTrainedConfig):
    """Fields of `onepeace.config.Config` as plain values."""

    model_type = "onepeace"

    architecture: str = "onepeace"
    model: dict[str, Any] | None = None
    processors: dict[str, Any] | None = None

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

    def keep(self, modality: str) -> None:
        """Remove all other modalities; UserError if this one is missing."""
        whole = self.to_onepeace()
        part = keep_modalities(whole, [modality], f"configuration {self.name_or_path or self.model_type}")
        self.model = to_plain(part.model)
        self.processors = to_plain(part.processors)

    @property
    def hidden_size(self) -> int:
        return (self.model or {}).get("dim", 0)
