"""The encoder of pictures or of sounds alone: token features, and feature maps for dense heads."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from onepeace.layers.features import Features
from onepeace.model.adapters.audio import AudioAdapter
from onepeace.model.backbone import shaped

from .configuration import OnePeaceAudioConfig, OnePeaceVisionConfig
from .modeling import Inputs, OnePeacePreTrainedModel, model_inputs


class _Part(OnePeacePreTrainedModel):
    """Of one modality. Files of a whole model load as well; the rest of them is left out."""

    _keys_to_ignore_on_load_unexpected = [r"^onepeace\."]  # noqa: RUF012
    key: ClassVar[str]

    def _encode(self, inputs: Inputs, blocks: list[int]) -> tuple[Features, Features]:
        """What enters the first block, and the features of the last, with ``blocks`` as intermediates."""
        stems = self.onepeace.stems(inputs)
        placed = self.onepeace.adapters[self.key].embed_positions(stems[self.key])
        first = Features(placed.tokens, placed.padding_mask, placed.spans[0].grid)
        return first, self.onepeace.encode(stems, out_indices=blocks)[self.key]

    def _wants_states(self, asked: Any) -> bool:
        """``output_hidden_states`` may also be a number, of the state that a caller wants."""
        return (self.config.output_hidden_states if asked is None else asked) is not False

    def _tokens(self, inputs: Inputs, states: bool) -> BaseModelOutputWithPooling:
        first, last = self._encode(inputs, list(range(len(self.onepeace.blocks))) if states else [])
        hidden = tuple(features.tokens for features in (first, *last.intermediates)) if states else None
        return BaseModelOutputWithPooling(last.tokens, last.cls, hidden)


class OnePeaceVisionModel(_Part):
    """Pictures to token features, for example as the vision tower of a language model."""

    config_class = OnePeaceVisionConfig
    main_input_name = "pixel_values"
    key = "image"

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; sides are multiples of the patch.

        Returns:
            ``last_hidden_state`` (B, 1 + L, D), CLS first, after the final norm; ``pooler_output`` (B, D), its CLS;
            ``hidden_states``: what enters the first block and what leaves each, before the final norm.
        """
        return self._tokens(model_inputs(self, pixel_values=pixel_values), self._wants_states(output_hidden_states))


class OnePeaceAudioModel(_Part):
    """Sounds to token features."""

    config_class = OnePeaceAudioConfig
    main_input_name = "input_values"
    key = "audio"

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_values, padding_mask: (B, N), as of `OnePeaceModel`.

        Returns:
            As of `OnePeaceVisionModel`; features of padding are unspecified.
        """
        inputs = model_inputs(self, input_values=input_values, padding_mask=padding_mask)
        return self._tokens(inputs, self._wants_states(output_hidden_states))


class _Backbone(BackboneMixin, _Part):
    """Feature maps of chosen stages: ``out_indices`` or ``out_features`` of the configuration."""

    has_attentions = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(self.stage_names)

    def _maps(self, inputs: Inputs, states: bool) -> dict[str, Any]:
        stages = range(len(self.stage_names)) if states else [i % len(self.stage_names) for i in self.out_indices]
        first, last = self._encode(inputs, [stage - 1 for stage in stages if stage > 0])
        found = dict(zip([stage for stage in stages if stage > 0], last.intermediates, strict=True)) | {0: first}
        maps = tuple(self._map(found[i % len(self.stage_names)]) for i in self.out_indices)
        hidden = tuple(found[stage].tokens for stage in stages) if states else None
        return {"feature_maps": maps, "hidden_states": hidden}

    def _map(self, features: Features) -> Tensor:
        norms = self.onepeace.norms
        if self.config.apply_layernorm and norms is not None:
            features = features._replace(tokens=norms[self.key](features.tokens))
        return shaped(features, self.config.reshape_hidden_states)


class OnePeaceImageBackbone(_Backbone):
    """Pictures to feature maps (B, D, rows, columns)."""

    config_class = OnePeaceVisionConfig
    main_input_name = "pixel_values"
    key = "image"

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any) -> BackboneOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; sides are multiples of the patch.
        """
        inputs = model_inputs(self, pixel_values=pixel_values)
        return BackboneOutput(**self._maps(inputs, self._wants_states(output_hidden_states)))


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
        return 1 / cast(AudioAdapter, self.onepeace.adapters[self.key]).seconds_per_token

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> AudioBackboneOutput:
        """
        Args:
            input_values, padding_mask: (B, N), as of `OnePeaceModel`.
        """
        inputs = model_inputs(self, input_values=input_values, padding_mask=padding_mask)
        found = self._maps(inputs, self._wants_states(output_hidden_states))
        adapter = self.onepeace.adapters[self.key]
        lengths = adapter.token_lengths(inputs[self.key])
        frames = torch.arange(int(adapter.token_lengths({"waveform": input_values[:1]})[0]), device=input_values.device)
        return AudioBackboneOutput(
            **found,
            timestamps=torch.stack([frames, frames + 1], dim=1) / self.frame_rate,
            frame_mask=frames < lengths[:, None],
        )
