"""The encoder of pictures or of sounds alone: token features, and feature maps for dense heads."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from onepeace.errors import expect
from onepeace.layers.features import Features
from onepeace.model.adapters.audio import AudioAdapter
from onepeace.model.backbone import shaped
from onepeace.model.sequence import Stem

from .configuration import OnePeaceAudioConfig, OnePeaceVisionConfig
from .modeling import OnePeacePreTrainedModel, model_inputs


class _Part(OnePeacePreTrainedModel):
    """The encoder of one modality. Files of a whole model load as well; the rest of them is left out."""

    _keys_to_ignore_on_load_unexpected = [r"^onepeace\."]  # noqa: RUF012
    key: ClassVar[str]

    @capture_outputs(tie_last_hidden_states=False)
    def _tokens(self, stem: Stem, **_: Any) -> BaseModelOutputWithPooling:
        features = self.onepeace.encode({self.key: stem})[self.key]
        return BaseModelOutputWithPooling(features.tokens, features.cls)


class OnePeaceVisionModel(_Part):
    """Pictures to token features, for example as the vision tower of a language model."""

    config_class = OnePeaceVisionConfig
    main_input_name = "pixel_values"
    key = "image"

    def forward(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; sides are multiples of the patch.

        Returns:
            ``last_hidden_state`` (B, 1 + L, D), CLS first, after the final norm; ``pooler_output`` (B, D), its CLS;
            ``hidden_states``: what enters the first block and what leaves each, before the final norm; where
            ``output_hidden_states`` is a number, that one of them, and None for the others.
        """
        inputs = model_inputs(self, options, pixel_values=pixel_values)
        return self._tokens(self.onepeace.stems(inputs)[self.key], **options)


class OnePeaceAudioModel(_Part):
    """Sounds to token features."""

    config_class = OnePeaceAudioConfig
    main_input_name = "input_values"
    key = "audio"

    def forward(
        self, input_values: Tensor, padding_mask: Tensor | None = None, **options: Any
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_values, padding_mask: (B, N), as of `OnePeaceModel`.

        Returns:
            As of `OnePeaceVisionModel`; features of padding are unspecified.
        """
        inputs = model_inputs(self, options, input_values=input_values, padding_mask=padding_mask)
        return self._tokens(self.onepeace.stems(inputs)[self.key], **options)


class _Backbone(BackboneMixin, _Part):
    """Feature maps of chosen stages: ``out_indices`` or ``out_features`` of the configuration."""

    has_attentions = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(self.stage_names)

    def _maps(self, stem: Stem) -> dict[str, Any]:
        states = self._tokens(stem, output_hidden_states=True, return_dict=True).hidden_states
        mask = None if stem.padding_mask is None else F.pad(stem.padding_mask, (1, 0))
        chosen = [Features(self._norm(states[i]), mask, stem.grid) for i in self.out_indices]
        maps = tuple(shaped(features, self.config.reshape_hidden_states) for features in chosen)
        return {"feature_maps": maps, "hidden_states": states}

    def _norm(self, tokens: Tensor) -> Tensor:
        norms = self.onepeace.norms
        return norms[self.key](tokens) if self.config.apply_layernorm and norms is not None else tokens


class OnePeaceImageBackbone(_Backbone):
    """Pictures to feature maps (B, D, rows, columns)."""

    config_class = OnePeaceVisionConfig
    main_input_name = "pixel_values"
    key = "image"

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **options: Any) -> BackboneOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; sides are multiples of the patch.
        """
        inputs = model_inputs(self, options, pixel_values=pixel_values)
        return BackboneOutput(**self._maps(self.onepeace.stems(inputs)[self.key]))


@dataclass
class AudioBackboneOutput(BackboneOutput):
    """
    Args:
        feature_maps: (B, D, frames) of each stage; zero behind the end of a sound.
        timestamps: (frames, 2) second at which each frame starts and ends.
        frame_mask: (B, frames) bool, False behind the end of a sound.
    """

    timestamps: Tensor | None = None
    frame_mask: Tensor | None = None


class OnePeaceAudioBackbone(_Backbone):
    """Sounds to feature maps (B, D, frames) with their times."""

    config_class = OnePeaceAudioConfig
    main_input_name = "input_values"
    key = "audio"

    @property
    def frame_rate(self) -> float:
        """Frames per second: 50 with the released stem, "wave"."""
        return 1 / expect(self.onepeace.adapters[self.key], AudioAdapter).seconds_per_token

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, input_values: Tensor, padding_mask: Tensor | None = None, **options: Any) -> AudioBackboneOutput:
        """
        Args:
            input_values, padding_mask: (B, N), as of `OnePeaceModel`.
        """
        inputs = model_inputs(self, options, input_values=input_values, padding_mask=padding_mask)
        found = self._maps(self.onepeace.stems(inputs)[self.key])
        adapter = self.onepeace.adapters[self.key]
        lengths = adapter.token_lengths(inputs[self.key])
        frames = torch.arange(int(adapter.token_lengths({"waveform": input_values[:1]})[0]), device=input_values.device)
        return AudioBackboneOutput(
            **found,
            timestamps=torch.stack([frames, frames + 1], dim=1) / self.frame_rate,
            frame_mask=frames < lengths[:, None],
        )
