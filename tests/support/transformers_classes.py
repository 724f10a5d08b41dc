"""Classes of the transformers plug-in, and comparison of what they compute."""

import torch
import transformers

import onepeace.plugins.transformers as plugin

AUTO_CLASSES = {
    plugin.OnePeaceModel: transformers.AutoModel,
    plugin.OnePeaceForImageClassification: transformers.AutoModelForImageClassification,
    plugin.OnePeaceForAudioClassification: transformers.AutoModelForAudioClassification,
}
"""Every class, and the Auto class that finds it."""
ARGUMENTS = {
    "text": ("input_ids", "attention_mask"),
    "image": ("pixel_values",),
    "audio": ("input_values", "padding_mask"),
}


def arguments_of(model, inputs):
    """Those of the inputs that belong to the model's modalities."""
    arguments = {}
    for modality in model.onepeace.adapters:
        for name in ARGUMENTS[modality]:
            arguments[name] = inputs[name]
    return arguments


def outputs_of(model, inputs):
    """All output tensors."""
    return model(**arguments_of(model, inputs)).to_tuple()


def check_same_outputs(model, other, inputs):
    for tensor, other_tensor in zip(outputs_of(model, inputs), outputs_of(other, inputs), strict=True):
        assert torch.equal(tensor, other_tensor)
