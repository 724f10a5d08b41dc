"""Classifiers of pictures, of sounds, and of questions about pictures, with the head "classifier" of our model."""

from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils.output_capturing import capture_outputs

from onepeace.config import to_plain

from .configuration import HEAD, OnePeaceConfig
from .modeling import Inputs, OnePeacePreTrainedModel, model_inputs


class _Classifier(OnePeacePreTrainedModel):
    """Keeps the modalities it needs. The head is the model's own, or a new one on ``head_on``.

    ``num_labels`` and ``id2label`` of the configuration say how many classes there are.
    """

    modalities: ClassVar[tuple[str, ...]]
    head_on: ClassVar[str]
    # A part of a larger model is taken from its file.
    _keys_to_ignore_on_load_unexpected = [r"^onepeace\."]  # noqa: RUF012

    def __init__(self, config: OnePeaceConfig) -> None:
        config = deepcopy(config)
        head = config.to_onepeace().model.heads.get(HEAD, {})
        if head.get("on") not in self.modalities:
            head = {"kind": "classifier", "on": self.head_on}
        if len(head.get("labels") or ()) not in (0, config.num_labels):  # those of other classes
            head = {key: value for key, value in head.items() if key != "labels"}
        config.keep(self.modalities)
        config.model = {**config.model, "heads": {HEAD: {**head, "num_classes": config.num_labels}}}  # type: ignore
        super().__init__(config)
        self.num_labels = config.num_labels
        self.loss_type = "ForSequenceClassification"  # the library finds no loss by the name of every subclass

    def reset_head(self, num_labels: int) -> None:
        """Give the head a fresh output layer for that many classes."""
        self.onepeace.reset_head(HEAD, num_labels)
        self.config.model = to_plain(self.onepeace.config)
        self.config.num_labels = self.num_labels = num_labels

    def _classify(self, inputs: Inputs, labels: Tensor | None, **kwargs: Any) -> tuple[Tensor | None, Tensor]:
        logits = self.onepeace.predict(inputs, head=HEAD)
        # The library's: by problem_type, else by the labels' dtype, cross entropy or binary cross entropies.
        return None if labels is None else self.loss_function(labels, logits, self.config, **kwargs), logits


class OnePeaceForImageClassification(_Classifier):
    """Pictures to logits (B, num_labels)."""

    main_input_name = "pixel_values"
    modalities = ("image",)
    head_on = "image"

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B,) class numbers; (B, num_labels) of several classes or of regression.
        """
        return ImageClassifierOutput(
            *self._classify(model_inputs(self, kwargs, pixel_values=pixel_values), labels, **kwargs)
        )


class OnePeaceForAudioClassification(_Classifier):
    """Sounds to logits (B, num_labels)."""

    main_input_name = "input_values"
    modalities = ("audio",)
    head_on = "audio"

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_values, padding_mask: (B, N), as of `OnePeaceModel`.
            labels: (B,) class numbers; (B, num_labels) of several classes or of regression.
        """
        inputs = model_inputs(self, kwargs, input_values=input_values, padding_mask=padding_mask)
        return SequenceClassifierOutput(*self._classify(inputs, labels, **kwargs))


class OnePeaceForVisualQuestionAnswering(_Classifier):
    """A question about a picture to logits (B, num_labels) of answers, from one pass over both."""

    modalities = ("text", "image")
    head_on = "text"

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_ids, attention_mask, pixel_values: as of `OnePeaceModel`.
            labels: (B,) numbers of answers, or (B, num_labels) how right each answer is.
        """
        inputs = model_inputs(self, kwargs, input_ids, attention_mask, pixel_values)
        return SequenceClassifierOutput(*self._classify(inputs, labels, **kwargs))
