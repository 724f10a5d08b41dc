"""Image and audio encoders alone: token features, and feature maps of images for dense heads."""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from onepeace.layers.features import Features
from onepeace.model.sequence import StemOutput

from .configuration import OnePeaceAudioConfig, OnePeaceVisionConfig
from .modeling import OnePeacePreTrainedModel, model_inputs


class _Part(OnePeacePreTrainedModel):
    """Encoder of one modality. It can also be loaded from the files of a whole model, and reads only its part."""

    _keys_to_ignore_on_load_unexpected = [r"^onepeace\."]  # noqa: RUF012
    key: ClassVar[str]

    @capture_outputs(tie_last_hidden_states=False)
    def _tokens(self, stem: StemOutput, **_: Any) -> BaseModelOutputWithPooling:
        features = self.onepeace.encode({self.key: stem})[self.key]
        return BaseModelOutputWithPooling(features.tokens, features.cls)


class OnePeaceVisionModel(_Part):
    """Images to token features, for example as the vision tower of a language model."""

    config_class = OnePeaceVisionConfig
    main_input_name = "pixel_values"
    key = "image"

    def forward(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; sides are multiples of the patch.

        Returns:
            ``last_hidden_state`` (B, 1 + L, D), CLS first, after the final norm; ``pooler_output`` (B, D), its CLS;
            ``hidden_states``: input of the first block and output of each, before the final norm; if
            ``output_hidden_states`` is a number, only the state with that index, and None for the others.
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
        """See `OnePeaceModel.forward` and `OnePeaceVisionModel.forward`; features of padding are unspecified."""
        inputs = model_inputs(self, options, input_values=input_values, padding_mask=padding_mask)
        return self._tokens(self.onepeace.stems(inputs)[self.key], **options)


class OnePeaceImageBackbone(BackboneMixin, OnePeaceVisionModel):
    """Images to feature maps (B, D, rows, columns) of the stages in ``out_indices`` or ``out_features``."""

    has_attentions = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(self.stage_names)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **options: Any) -> BackboneOutput:
        """Feature maps of normalised images (B, 3, H, W), whose sides are multiples of the patch."""
        stem = self.onepeace.stems(model_inputs(self, options, pixel_values=pixel_values))[self.key]
        states = self._tokens(stem, output_hidden_states=True, return_dict=True).hidden_states
        norms = self.onepeace.norms
        norm: nn.Module = nn.Identity()
        if self.config.apply_layernorm and norms is not None and self.key in norms:
            norm = norms[self.key]
        maps = []
        for index in self.out_indices:
            features = Features(norm(states[index]), None, stem.grid)
            maps.append(features.feature_map() if self.config.reshape_hidden_states else features.tokens)
        return BackboneOutput(tuple(maps), states)  # type: ignore[arg-type]
