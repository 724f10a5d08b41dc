"""Classifiers of images and of sounds, with the head "classifier" of our model."""

from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration import HEAD, OnePeaceConfig
from .modeling import Inputs, OnePeacePreTrainedModel, model_inputs


class _Classifier(OnePeacePreTrainedModel):
    """Model with only its modality, and with the model's own head or a new one.

    ``num_labels`` or ``id2label`` of the configuration sets the number of classes. The loss reaches every parameter,
    so that DistributedDataParallel needs no search for unused ones.
    """

    modality: ClassVar[str]
    output_class: ClassVar[Any] = SequenceClassifierOutput
    # Files of a larger model load too.
    _keys_to_ignore_on_load_unexpected = [r"^onepeace\."]  # noqa: RUF012

    def __init__(self, config: OnePeaceConfig) -> None:
        config = deepcopy(config)
        whole = config.to_onepeace().model
        head = dict(whole.heads.get(HEAD, {}))
        if head.get("on") != self.modality:
            head = {"kind": "classifier", "on": self.modality}
        labels = head.get("labels")
        if labels and len(labels) != config.num_labels:  # the names are of other classes
            del head["labels"]
        config.keep(self.modality)
        config.model = {
            **(config.model or {}),
            # What embeddings and pretraining use is never trained here.
            "projections": [],
            "logit_scale": False,
            "decoder": None,
            "heads": {HEAD: {**head, "num_classes": config.num_labels}},
        }
        super().__init__(config)
        self.num_labels = config.num_labels
        self.loss_type = "ForSequenceClassification"  # the library cannot derive it from the name of every subclass

    @can_return_tuple
    def _classify(self, inputs: Inputs, labels: Tensor | None, **kwargs: Any) -> Any:
        logits = self.onepeace.predict(inputs, head=HEAD)
        loss = None
        if labels is not None:
            # Cross entropy, binary cross entropy or a squared error, by problem_type or else the labels' dtype.
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return self.output_class(loss, logits)


class OnePeaceForImageClassification(_Classifier):
    """Images to logits (B, num_labels)."""

    main_input_name = "pixel_values"
    modality = "image"
    output_class = ImageClassifierOutput

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: class numbers (B,), or (B, num_labels) for multi-label classification or regression.
        """
        return self._classify(model_inputs(self, kwargs, pixel_values=pixel_values), labels, **kwargs)


class OnePeaceForAudioClassification(_Classifier):
    """Sounds to logits (B, num_labels)."""

    main_input_name = "input_values"
    modality = "audio"

    def forward(
        self,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_values, padding_mask: (B, N), see `OnePeaceModel`.
            labels: class numbers (B,), or (B, num_labels) for multi-label classification or regression.
        """
        inputs = model_inputs(self, kwargs, input_values=input_values, padding_mask=padding_mask)
        return self._classify(inputs, labels, **kwargs)
