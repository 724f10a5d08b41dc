"""Configuration and model: embeddings of images, sounds and texts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from onepeace.config import Config, build, to_plain, write_config
from onepeace.errors import UserError, expect
from onepeace.hub import weights
from onepeace.hub.architectures import architecture, build_encoder
from onepeace.hub.folder import CONFIG
from onepeace.hub.resolve import fetch_model
from onepeace.losses import contrastive
from onepeace.model import INITIAL_SCALE, OnePeace
from onepeace.model.adapters import ADAPTERS
from onepeace.model.adapters.base import values_are_known
from onepeace.model.stems import PretrainedStem


class OnePeaceConfig(PreTrainedConfig):
    """Fields of `onepeace.config.Config`, the content of a model folder's config.yaml, as plain values."""

    model_type = "onepeace"

    architecture: str = "onepeace"
    model: dict[str, Any] | None = None
    processors: dict[str, Any] | None = None

    @classmethod
    def from_onepeace(cls, name: str | os.PathLike[str] = "tiny", **kwargs: Any) -> Any:
        """Configuration of a model by name, see `onepeace.load`; ``kwargs`` as in ``from_pretrained``."""
        config = to_plain(fetch_model(name).config)
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

    @property
    def hidden_size(self) -> int:
        return (self.model or {}).get("dim", 0)


Inputs = dict[str, dict[str, Tensor]]
README = """A model of onepeace. `pip install onepeace`, then
`import onepeace.plugins.transformers` before `AutoModel.from_pretrained(...)` and its siblings;
or `onepeace.load(...)` without transformers.
"""


@dataclass
class OnePeaceOutput(ModelOutput):
    """Outputs for the given inputs; the remaining fields are None.

    Args:
        loss: with ``return_loss``, symmetric InfoNCE of texts with images or sounds; the mean if both are given.
        logits_per_image, logits_per_audio: (images or sounds, texts), cosines times the logit scale.
        logits_per_text: (texts, images), or (texts, sounds) without images.
        text_embeds, image_embeds, audio_embeds: unit vectors (B, E).
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    logits_per_audio: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    audio_embeds: Tensor | None = None


class OnePeaceModel(PreTrainedModel):
    """Images, sounds and texts in one vector space, for zero-shot classification and search.

    It holds our module, ``onepeace``; parameter names are ours with the prefix "onepeace.".
    """

    config: OnePeaceConfig
    config_class = OnePeaceConfig
    base_model_prefix = "onepeace"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block", "ClipBlock", *(adapter.__name__ for adapter in ADAPTERS.values())]  # noqa: RUF012

    onepeace: OnePeace

    def __init__(self, config: OnePeaceConfig) -> None:
        super().__init__(config)
        self.onepeace = expect(build_encoder(config.to_onepeace()), OnePeace)
        for module in self.onepeace.modules():
            # Modules are initialised, except on the meta device: they wait for a file or `_init_weights`.
            module._is_hf_initialized = not any(p.is_meta for p in module.parameters(recurse=False))  # type: ignore
        self.post_init()

    @classmethod
    def from_onepeace(cls, name: str | os.PathLike[str] = "tiny", **kwargs: Any) -> Any:
        """Load a model by name, as in `onepeace.load`: "tiny", a model folder, a released name.

        Args:
            kwargs: as in ``from_pretrained``: fields of the configuration, ``device_map``, ``dtype`` (default float32;
                "auto" keeps the file's).

        Raises:
            UserError: unknown name, or missing tensors or modalities.
        """
        loading = {"dtype": kwargs.pop("dtype", torch.float32), "device_map": kwargs.pop("device_map", None)}
        opened = fetch_model(name)
        config, rest = cls.config_class.from_onepeace(opened, return_unused_kwargs=True, **kwargs)
        tensors = weights.load_encoder(opened).state_dict()
        state = {f"{cls.base_model_prefix}.{key}": tensor for key, tensor in tensors.items()}
        model = cls.from_pretrained(None, config=config, state_dict=state, **loading, **rest)
        model.name_or_path = model.config.name_or_path = str(name)
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Write the library's files, a README, and a configuration that makes the folder a model folder too.

        `onepeace.load` reads it with the tokenizer that `OnePeaceProcessor.save_pretrained` writes.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(self.config.to_onepeace(), folder / CONFIG)
        if not (folder / "README.md").exists():
            (folder / "README.md").write_text(README, encoding="utf-8")
        return super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding; in a model without text, the stem of its modality, as in ViT."""
        adapters: Any = self.onepeace.adapters
        if "text" in adapters:
            adapter = adapters["text"]
            return adapter.token_embed if adapter.stem is None else adapter.stem.network.get_input_embeddings()
        stem = next(iter(adapters.values())).stem
        # Of a pretrained stem only the projection is always called.
        return stem.proj if isinstance(stem, PretrainedStem) else stem

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module whose weights were not in the file."""
        if type(module).__module__.startswith("torch.") and hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
        self.onepeace.reset_module(module)

    def logit_scale(self) -> Any:
        """Scale from cosines to logits; CLIP's initial value if the model has not learned one."""
        if self.onepeace.logit_scale is None:
            return INITIAL_SCALE
        if not hasattr(self.onepeace, "_hf_hook"):
            return self.onepeace.logit_scale.float().exp()
        # accelerate offloads it until its module is called.
        with import_module("accelerate.utils").align_module_device(self.onepeace):
            return self.onepeace.logit_scale.float().exp()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        return_loss: bool | None = None,
        **options: Any,
    ) -> OnePeaceOutput:
        """Unit vectors of the given inputs, and logits between texts and the other inputs.

        Args:
            input_ids, attention_mask: (B, L); mask 1 for tokens, 0 for padding.
            pixel_values: (B, 3, H, W), normalised.
            input_values, padding_mask: (B, N) waveforms at 16 kHz, normalised; 1 for samples, 0 for padding.
            return_loss: compute the contrastive loss; rows are pairs.
        """
        inputs = model_inputs(self, options, input_ids, attention_mask, pixel_values, input_values, padding_mask)
        embeds = self.onepeace(inputs)
        logits = self._logits(embeds)
        loss = None
        if return_loss:
            if not logits:
                raise UserError("return_loss needs texts with pictures or sounds")
            losses = [contrastive(embeds[modality], embeds["text"], self.logit_scale()) for modality in logits]
            loss = torch.stack(losses).mean()
        logits_with_text = logits.get("image", logits.get("audio"))
        return OnePeaceOutput(
            loss=loss,
            logits_per_image=logits.get("image"),
            logits_per_text=None if logits_with_text is None else logits_with_text.T,
            logits_per_audio=logits.get("audio"),
            text_embeds=embeds.get("text"),
            image_embeds=embeds.get("image"),
            audio_embeds=embeds.get("audio"),
        )

    def _logits(self, embeds: dict[str, Tensor]) -> dict[str, Any]:
        """Scaled cosines (items, texts) of each other modality with the texts; {} without texts."""
        if "text" not in embeds:
            return {}
        scale = self.logit_scale()
        others = [modality for modality in embeds if modality != "text"]
        return {modality: scale * embeds[modality] @ embeds["text"].T for modality in others}

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> BaseModelOutputWithPooling:
        """``pooler_output``: unit vectors (B, E); ``last_hidden_state``: (B, 1 + L, D), CLS first."""
        return self._features(model_inputs(self, options, input_ids, attention_mask), **options)

    def get_image_features(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        """See `get_text_features`."""
        return self._features(model_inputs(self, options, pixel_values=pixel_values), **options)

    def get_audio_features(
        self, input_values: Tensor, padding_mask: Tensor | None = None, **options: Any
    ) -> BaseModelOutputWithPooling:
        """See `get_text_features`."""
        inputs = model_inputs(self, options, input_values=input_values, padding_mask=padding_mask)
        return self._features(inputs, **options)

    @can_return_tuple
    def _features(self, inputs: Inputs, **_: Any) -> BaseModelOutputWithPooling:
        ((modality, features),) = self.onepeace.encode(self.onepeace.stems(inputs)).items()
        return BaseModelOutputWithPooling(features.tokens, self.onepeace.embed(modality, features))


def model_inputs(
    model: PreTrainedModel,
    options: Mapping[str, Any],
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    input_values: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> Inputs:
    """Arguments of `OnePeaceModel.forward` as the input of our module.

    Raises:
        UserError: attentions or hidden states are asked for in ``options`` (other arguments of the call) or in the
            configuration, or padding is not on the right.
    """
    for name in ("output_attentions", "output_hidden_states"):
        if options.get(name, getattr(model.config, name)):
            raise UserError(
                f"{name} is not supported: outputs of blocks are those of model.onepeace.encode(..., out_indices=...), "
                "and onepeace.load(...).explain shows where a picture or a sound fits a query"
            )
    inputs: Inputs = {}
    if input_ids is not None:
        inputs["text"] = _with_lengths("ids", input_ids, attention_mask)
    if pixel_values is not None:
        inputs["image"] = {"pixels": pixel_values.to(model.dtype)}
    if input_values is not None:
        inputs["audio"] = _with_lengths("waveform", input_values, padding_mask)
    return inputs


def _with_lengths(name: str, values: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """{name: (B, L)}, and "lengths": (B,) if the mask (B, L) marks padding on the right."""
    if mask is None:
        return {name: values}
    lengths = mask.sum(1).long()
    if not values_are_known(mask):
        return {name: values, "lengths": lengths}
    longest = mask.shape[1]
    if bool((lengths == longest).all()):
        return {name: values}
    if not torch.equal(mask.bool(), torch.arange(longest, device=mask.device) < lengths[:, None]):
        raise UserError("padding is in front of an item or inside it; give the processor's inputs, padded on the right")
    return {name: values, "lengths": lengths}
